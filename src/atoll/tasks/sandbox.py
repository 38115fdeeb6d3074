"""Runs a Python program that a model wrote, in a process of its own that can do little.

The process has no environment, no packages but the standard library, a folder of its own that is deleted afterwards,
and limits on time, memory and files. On Linux, where user namespaces are allowed, the kernel gives it no network and
lets it write to its folder alone; everywhere an audit hook refuses sockets, other processes, foreign code and writes
elsewhere. This holds what generated code does by mistake. It is no wall against code written to break out of Python:
to score answers of a model that you do not trust at all, run Atoll in a container or a virtual machine.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

_CHILD = Path(__file__).with_name("sandbox_child.py")
_MAX_PROGRAM_CHARS = 200_000


@dataclass(frozen=True)
class SandboxLimits:
    """What a program may use. Processor time is what is counted: a busy machine changes no score.

    wall_s bounds a program that waits; cpu_s is whole seconds.
    """

    cpu_s: int = 5
    wall_s: float = 60.0
    memory_bytes: int = 512 * 2**20
    file_bytes: int = 2**20


@dataclass(frozen=True)
class Verdict:
    """Whether a program ran to its end, and what stopped it if not (an exception's name, a limit, a refusal)."""

    passed: bool
    reason: str = ""


def run_program(program: str, limits: SandboxLimits | None = None) -> Verdict:
    """Run `program` as a module; it passes when its last line has been run.

    A program that ends the process earlier, with whatever status, has not passed. Its output goes nowhere.
    """
    limits = limits or SandboxLimits()
    if len(program) > _MAX_PROGRAM_CHARS:
        return Verdict(False, f"longer than {_MAX_PROGRAM_CHARS} characters")
    # Only the launcher can know this word, so an answer that merely exits or prints does not pass.
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="atoll-sandbox-", ignore_cleanup_errors=True) as folder:
        request = {"program": program, "token": token, "folder": folder, "limits": asdict(limits)}
        word, status = _launch(json.dumps(request).encode("utf-8", "surrogatepass"), folder, limits.wall_s)
    if word.startswith(token):
        return Verdict(True)
    return Verdict(False, word[:200] or _reason(status))


def _launch(request: bytes, folder: str, wall_s: float) -> tuple[str, int | None]:
    """What the process reported, and its exit status; None for one that ran out of time."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", str(_CHILD), str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                pass_fds=(writing,),
                start_new_session=True,
            )
        finally:
            os.close(writing)
        status: int | None = None
        try:
            process.communicate(request, timeout=wall_s)
            status = process.returncode
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill(process)
        return report.read(4096).decode("utf-8", "replace"), status


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started, whether or not it has ended by itself."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it has ended; macOS says the second of a group without members
        return
    finally:
        process.wait()


def _reason(status: int | None) -> str:
    if status is None:
        return "out of time"
    if status == -signal.SIGXCPU or status == -signal.SIGKILL:
        return "out of processor time"
    return f"ended by signal {-status}" if status < 0 else f"exited with status {status}"
