"""What the benches share: the machine's quote and its peaks, tables, options."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

BENCH = Path(__file__).parent
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile")
PEAK_SIZE = 2048
PEAK_SECONDS = 3.0
COPY_BYTES = 1 << 29

# Nothing here needs a hub, and workers are forked while tokenizers may hold their threads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def parser(description: str | None, *, rounds: int | None = None) -> argparse.ArgumentParser:
    """The options that every bench has; the first line of `description` is shown by --help."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="a minute that shows that the bench works, no figures")
    options.add_argument("--json", type=Path, metavar="FILE", help="write everything measured into FILE")
    options.add_argument("--base", default="smollm2-135m-instruct", help="the base model")
    options.add_argument(
        "--work", type=Path, default=BENCH / ".work", help="where adapters are made, and removed again"
    )
    if rounds is not None:
        options.add_argument("--rounds", type=int, default=rounds, help=f"repetitions of each point ({rounds})")
    return options


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A folder below `parent` for as long as the context lasts."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


def best_seconds(run: Callable[[], object], seconds: float) -> float:
    """The shortest of at least three runs in about `seconds`: what other programs take counts least there."""
    best = float("inf")
    deadline = time.perf_counter() + seconds
    num_runs = 0
    while num_runs < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        num_runs += 1
    return best


def gemm_peak(dtype: torch.dtype = torch.float32, seconds: float = PEAK_SECONDS) -> float:
    """FLOP/s of a product of 2048 x 2048 matrices: the better of torch.mm (MKL) and oneDNN on packed weights."""
    x = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype)
    weight = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype)
    out = torch.empty_like(x)

    def mm() -> Tensor:
        return torch.mm(x, weight, out=out)

    contenders: list[Callable[[], object]] = [mm]
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        ops = torch.ops.mkldnn
        packed = ops._reorder_linear_weight(weight, None)
        contenders.append(lambda: ops._linear_pointwise(x, packed, None, "none", [], ""))
    with torch.inference_mode():
        best = min(best_seconds(run, seconds / len(contenders)) for run in contenders)
    return 2 * PEAK_SIZE**3 / best


def memory_bandwidth(seconds: float = 1.0) -> float:
    """Bytes per second that a sum over half a gigabyte reads."""
    x = torch.ones(COPY_BYTES // 4)
    return COPY_BYTES / best_seconds(x.sum, seconds)


def machine(*, quick: bool = False) -> dict[str, Any]:
    """What a reader must know of this machine, its peaks measured now."""
    info = _cpu_info()
    found = [flag for flag in FLAGS if flag in info.get("flags", "").split()]
    seconds = 0.3 if quick else PEAK_SECONDS
    return {
        "cpu": f"{info.get('model name', platform.processor() or platform.machine())}"
        + (f", family {info['cpu family']}" if "cpu family" in info else ""),
        "num_cores": num_threads(),
        "flags": found,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "bandwidth_gb_s": round(memory_bandwidth(seconds / 3) / 1e9, 1),
        "gemm_gflop_s": round(gemm_peak(seconds=seconds) / 1e9),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def quote(facts: dict[str, Any]) -> str:
    """`machine()` in two lines."""
    return (
        f"{facts['cpu']}; {facts['num_cores']} threads, {facts['memory_gb']} GB; {' '.join(facts['flags'])}\n"
        f"reads {facts['bandwidth_gb_s']} GB/s, multiplies {facts['gemm_gflop_s']} GFLOP/s in fp32 ({PEAK_SIZE}^3); "
        f"torch {facts['torch']}, Python {facts['python']}, {facts['date']}"
    )


def num_threads() -> int:
    """OMP_NUM_THREADS, else the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else len(psutil.Process().cpu_affinity() or [0])


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table, columns aligned; the first column is text and the others are figures."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(head))]
    for index, row in enumerate(cells):
        padded = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        print("| " + " | ".join(padded) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|")
    print(flush=True)


def say(text: str) -> None:
    """What is going on, beside the tables."""
    print(text, file=sys.stderr, flush=True)


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed; not a number where there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _cpu_info() -> dict[str, str]:
    """The first core's lines of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
