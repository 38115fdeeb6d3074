"""`atoll chat` as somebody types it: in a terminal, with Tab, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from support.servers import Served, served_world

TIMEOUT_S = 60.0
CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_world(tmp_path_factory.mktemp("chat")) as served:
        yield served


class Terminal:
    """A pseudo-terminal with `atoll chat` in it."""

    def __init__(self, *arguments: str) -> None:
        ours, theirs = pty.openpty()
        self._fd = ours
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atoll", "chat", *arguments],
            env=os.environ | {"TERM": "xterm", "NO_COLOR": "1"},
            preexec_fn=lambda: os.login_tty(theirs),
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, pattern: str, *, pressing: str = "") -> str:
        """What is shown up to `pattern`, a key being pressed in each silent second; fails when it does not come."""
        shown, ends_at = "", time.monotonic() + TIMEOUT_S
        while not re.search(pattern, shown):
            if time.monotonic() >= ends_at:
                pytest.fail(f"no {pattern!r} in {shown!r}")
            if not select.select([self._fd], [], [], 1.0)[0]:
                self.type(pressing)
                continue
            try:
                shown += os.read(self._fd, 4096).decode("utf-8", "replace")
            except OSError:
                pytest.fail(f"it ended without {pattern!r}: {shown!r}")
        return shown

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(served: Served) -> Iterator[Terminal]:
    opened = Terminal("--url", served.url)
    yield opened
    opened.close()


def test_a_conversation_in_a_terminal(terminal: Terminal) -> None:
    assert "/help shows commands" in terminal.until(r"> $")
    terminal.type("The quick brown fox\r")
    assert re.search(r"\(\d+ pieces in [\d.]+ s, \d+ a second\)", terminal.until(r"a second\)\s+.*> $"))
    terminal.type("/use al\t")
    assert "alpha" in terminal.until("alpha")
    terminal.type("\r")
    terminal.until(r"alpha.*> $")
    terminal.type("half a line")
    terminal.until("half a line$")
    # Python's readline does not see a Ctrl-C that comes just before it waits for a key, so press it as a person would
    assert "Ctrl-D or /quit to leave" in terminal.until(r"leave\)\s+.*> $", pressing=CTRL_C)
    terminal.type("/nonsense\r")
    terminal.until(r"error: .*nonsense[\s\S]*> $")
    terminal.type(CTRL_D)
    assert terminal.process.wait(TIMEOUT_S) == 0
