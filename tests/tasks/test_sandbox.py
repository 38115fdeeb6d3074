"""Programs that a model wrote: what passes, what the sandbox refuses, and that the kernel refuses it too."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.tasks import sandbox_child
from atoll.tasks.dataset import load_split
from atoll.tasks.metrics import METRICS, Answer
from atoll.tasks.metrics.code import assemble
from atoll.tasks.sandbox import SandboxLimits, run_program
from atoll.tasks.task import find_task


def test_a_program_that_ends_passes_and_may_use_files_of_its_own() -> None:
    assert run_program("x = 1").passed
    assert run_program("import typing, math, re, collections, itertools, hashlib, heapq, random, datetime").passed
    assert run_program("open('a.txt', 'w').write('hi')\nassert open('a.txt').read() == 'hi'").passed
    assert run_program("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()").passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("assert False, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "exited with status 0"),
        ("import os\nos.abort()", "signal 6"),
        ("def f():\n    return f()\nf()", "RecursionError"),
        ("x = 'a' * 10**10", "MemoryError"),
        ("while True:\n    pass", "out of processor time"),
        ("with open('big', 'wb') as file:\n    file.write(bytes(3_000_000))", "OSError"),
        ("x" * 300_000, "longer than"),
        ("x = '\ud800'", "Error"),
        ("x = '\0'", "Error"),
    ],
)
def test_a_program_that_breaks_off_does_not_pass(program: str, reason: str) -> None:
    verdict = run_program(program, SandboxLimits(cpu_s=1))
    assert not verdict.passed
    assert reason in verdict.reason


def test_a_program_that_waits_for_ever_is_ended() -> None:
    verdict = run_program("import time\ntime.sleep(3600)", SandboxLimits(wall_s=2))
    assert verdict.reason == "out of time"


@pytest.mark.parametrize(
    "program",
    [
        "open('{file}', 'w')",
        "open(b'{file}', 'a')",
        "import os\nos.open('{file}', os.O_WRONLY | os.O_CREAT)",
        "import pathlib\npathlib.Path('{file}').write_text('x')",
        "import os\nos.remove('{kept}')",
        "import os\nos.rename('{kept}', 'mine')",
        "import os\nos.symlink('{kept}', 'link')",
        "import os\nos.truncate('{kept}', 0)",
        "import os\nos.mkdir('{file}')",
        "import shutil\nshutil.rmtree('{folder}')",
        "import socket",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}')",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import os\nos.fork()",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.kill(1, 0)",
        "import ctypes",
        "import _ctypes",
        "import importlib\nimportlib.import_module('_socket')",
        "import multiprocessing",
    ],
)
def test_the_sandbox_refuses(program: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        filled = program.replace("{file}", str(tmp_path / "file")).replace("{kept}", str(tmp_path / "kept"))
        filled = filled.replace("{folder}", str(tmp_path)).replace("{port}", str(server.getsockname()[1]))
        verdict = run_program(filled)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not verdict.passed
    assert verdict.reason.startswith(("Refused", "OSError", "ImportError", "URLError")), verdict.reason
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "kept"


def test_an_answer_cannot_see_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_SECRET", "s3cret")
    assert run_program("import os\nassert 'ATOLL_SECRET' not in os.environ").passed
    assert not run_program("import torch").passed


ISOLATED = """
import os, socket, sys
sys.path.insert(0, {package!r})
import sandbox_child
sandbox_child._isolate({folder!r})
os.chdir({folder!r})
open("mine", "w").close()
try:
    open({outside!r}, "w")
except OSError as error:
    print("write", error.errno)
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=5)
except OSError as error:
    print("connect", type(error).__name__)
print(open("/proc/self/status").read().split("CapEff:")[1].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_the_kernel_refuses_what_the_audit_hook_refuses(tmp_path: Path) -> None:
    """Without the hook: writing elsewhere, the network, and every capability."""
    if subprocess.run(["unshare", "--user", "--net", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces")
    folder = tmp_path / "own"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = ISOLATED.format(
            package=str(Path(sandbox_child.__file__).parent),
            folder=str(folder),
            outside=str(tmp_path / "evil"),
            port=server.getsockname()[1],
        )
        done = subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[:3] == ["write 30", "connect OSError", "0" * 16]
    assert not (tmp_path / "evil").exists()
    assert not list(folder.iterdir())  # what it wrote was in memory, and is gone


PROBLEM = 'def double(number: int) -> int:\n    """Twice the number."""\n'
TEST = "def check(candidate):\n    assert candidate(4) == 8\n    assert candidate(-1) == -2\n"


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("    return 2 * number\n", 1),
        ("return 2 * number", 1),
        ("result = 2 * number\n    return result", 1),
        ("result = 2 * number\nreturn result", 1),
        ("if number:\n        return 2 * number\n    return 0", 1),
        ("if number:\n    return 2 * number\nreturn 0", 1),
        ("return 2 * number\n\nThat is all.", 1),
        ("    return 2 * number\n\nprint(double(4))\nsome prose", 1),
        ("def double(number):\n    return number + number", 1),
        ("Here it is:\n```python\ndef double(number):\n    return 2 * number\n```\nIt doubles.", 1),
        ("```\n    return 2 * number\n```", 1),
        ("    return number ** 2", 0),
        ("    return 8", 0),
        ("    import sys; sys.exit(0)", 0),
        ("", 0),
        ("I do not know.", 0),
        ("    pass", 0),
        ("((((" * 2_000, 0),
        ("\0", 0),
    ],
)
def test_pass_at_1_reads_bodies_and_functions(prediction: str, expected: float) -> None:
    columns = {"problem": PROBLEM, "entry_point": "double", "test": TEST}
    assert METRICS["pass_at_1"].score([Answer(prediction, "", columns)]) == expected


def test_what_stands_after_the_body_is_left_out() -> None:
    program = assemble("    return 1\n\ndef other():\n    pass", "def f():\n", "f")
    assert program == "def f():\n    return 1\n\n"


@pytest.mark.slow
def test_humanevals_own_solutions_pass(loraland: Path) -> None:
    metric = METRICS["pass_at_1"]
    for example in load_split(find_task("code_alpaca"), "test", data_root=loraland, for_scoring=True):
        solution = example.row["solution"]
        assert metric.score([Answer(solution, solution, example.columns)]) == 1, example.columns["entry_point"]
        assert metric.score([Answer(solution.strip(), solution, example.columns)]) == 1
