"""A step leaves the cores to other programs that use them, and takes them back when those have gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.kernels.cores import LOOK_EVERY_S, Cores, Use, read_use, threads_beside

MOST = 4


class Machine:
    """Four cores, of which this process keeps `own` busy and other programs `others`."""

    def __init__(self) -> None:
        self.now = Use(0.0, 0.0, 0.0)

    def passes(self, seconds: float, *, own: float, others: float) -> None:
        wall, busy, before = self.now
        self.now = Use(wall + seconds, busy + seconds * (own + others), before + seconds * own)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(MOST)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def cores(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Cores:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(MOST)))
    return Cores(lambda: machine.now, lambda: machine.now.wall)


def test_cores_that_others_use_are_left_at_the_next_look(cores: Cores, machine: Machine) -> None:
    for others, expected in [(0.1, 4), (1.0, 3), (2.6, 1), (4.0, 1)]:
        machine.passes(LOOK_EVERY_S, own=MOST - others, others=others)
        cores.adapt()
        assert torch.get_num_threads() == cores.num_threads == expected


def test_they_are_taken_back_once_they_have_been_free_for_a_while(cores: Cores, machine: Machine) -> None:
    machine.passes(LOOK_EVERY_S, own=2.0, others=2.0)
    cores.adapt()
    seen = []
    for others in (0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        machine.passes(LOOK_EVERY_S, own=2.0, others=others)
        cores.adapt()
        seen.append(torch.get_num_threads())
    assert seen == [2, 2, 2, 2, 2, 2, 4, 4]


def test_between_looks_and_after_a_pause_nothing_changes(cores: Cores, machine: Machine) -> None:
    machine.passes(LOOK_EVERY_S / 2, own=0.0, others=4.0)
    cores.adapt()
    machine.passes(60.0, own=0.0, others=4.0)
    cores.adapt()
    assert torch.get_num_threads() == MOST


def test_steps_of_seconds_leave_cores_and_take_them_back_as_short_ones_do(cores: Cores, machine: Machine) -> None:
    for own, others, expected in [(1.0, 3.0, 1), (1.0, 0.0, 4), (0.4, 3.6, 1)]:
        machine.passes(5.0, own=own, others=others)
        cores.adapt()
        assert torch.get_num_threads() == expected


@given(others=st.floats(0, 300), most=st.integers(1, 128), spare=st.integers(0, 128))
def test_there_is_always_one_thread_and_never_more_than_there_were(others: float, most: int, spare: int) -> None:
    num = threads_beside(others, most=most, num_cores=most + spare)
    assert 1 <= num <= most
    assert num == most if others <= spare else num >= min(most, most + spare - others - 1)


def test_what_the_system_counts_grows() -> None:
    before = read_use()
    torch.ones(400, 400) @ torch.ones(400, 400)
    after = read_use()
    assert after.wall > before.wall
    assert after.own >= before.own
    assert after.busy >= before.busy
