"""Quotes: their arithmetic on a clock of our own, against whole runs, and which run they are kept for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.config.fleet import LoraConfig, TrainerConfig
from atoll.config.load import load_fleet
from atoll.config.prices import MachinePrice
from atoll.model.load import load_base
from atoll.training.data import TokenizedExample, TokenizedSplit
from atoll.training.probe import probe_fleet
from atoll.training.quote import (
    QUOTE_NAME,
    Measured,
    Quote,
    keep_quote,
    kept_quote,
    make_bill,
    make_quote,
    peak_memory_bytes,
    time_span,
)
from atoll.training.trainer import PassTime, Trainer, TrainingJob

PRICE = MachinePrice("box", 3.6, "here", "2026-11-21")
CPU = torch.device("cpu")
S_PER_TOKEN = 0.25


def job(name: str, size: int, *, epochs: int = 2, r: int = 2, validated: bool = False) -> TrainingJob:
    examples = tuple(TokenizedExample(tuple(range(5, 15 + index % 4)), 6) for index in range(size))
    config = TrainerConfig(epochs=epochs, effective_batch_size=4, early_stop=None)
    validation = TokenizedSplit(examples[:3]) if validated else None
    return TrainingJob(name, LoraConfig(r=r), config, 1e-3, TokenizedSplit(examples), validation)


class Timed:
    """A trainer whose clock knows nothing but the tokens that it has trained on."""

    def __init__(
        self, folder: Path, jobs: list[TrainingJob], stop_after: int | None = None, token_budget: int = 60
    ) -> None:
        self.passes: list[PassTime] = []

        def note(one: PassTime) -> None:
            self.passes.append(one)
            if len(self.passes) == stop_after:
                self.trainer.request_stop()

        config = TrainerConfig(token_budget=token_budget)
        base = load_base(str(folder), dtype="float32", device="cpu")
        self.trainer = Trainer(base, jobs, config, on_pass=note, clock=self.clock)
        self.finished = self.trainer.train()

    def clock(self) -> float:
        return S_PER_TOKEN * sum(run.counters.num_tokens for run in self.trainer.runs)

    def quote(self, price: MachinePrice = PRICE) -> Quote:
        measured = Measured(tuple(self.passes), peak_memory_bytes(CPU), CPU)
        return make_quote(self.trainer, measured, fingerprint="f", made_from="first passes", price=price)


def test_a_quote_from_three_passes_is_what_the_whole_run_takes(tiny_base_folder: Path) -> None:
    jobs = [job("small", 9), job("large", 30, epochs=1)]
    quote = Timed(tiny_base_folder, jobs, stop_after=3).quote()
    whole = Timed(tiny_base_folder, jobs)
    bill = make_bill(whole.trainer, PRICE, CPU)
    assert whole.finished
    assert quote.num_passes == 3 < len(whole.passes)
    assert quote.seconds.expected == pytest.approx(bill.seconds)
    assert quote.cost_usd.expected == pytest.approx(bill.cost_usd) == pytest.approx(bill.seconds / 1000)
    assert quote.seconds.low < bill.seconds < quote.seconds.high
    assert bill.num_tokens == sum(member.num_train_tokens for member in quote.members)
    for quoted, taken in zip(quote.members, bill.members, strict=True):
        assert (quoted.name, quoted.num_steps, quoted.num_train_tokens) == (
            taken.name,
            taken.num_steps,
            taken.num_tokens,
        )
        assert quoted.cost_usd == pytest.approx(taken.cost_usd)
    assert sum(member.cost_usd for member in bill.members) == pytest.approx(bill.cost_usd)


def test_validation_is_timed_by_itself_and_planned_as_it_happens(tiny_base_folder: Path) -> None:
    timed = Timed(tiny_base_folder, [job("a", 9, validated=True)])
    (run,) = timed.trainer.runs
    assert sum(one.num_validation_tokens for one in timed.passes) == run.planned_validation_tokens > 0
    assert sum(one.num_tokens for one in timed.passes) == run.planned_tokens
    assert timed.quote().seconds.expected == pytest.approx(timed.trainer.seconds)


def test_memory_is_quoted_with_what_an_adapter_takes_only_later(tiny_base_folder: Path) -> None:
    """After one small pass no step is done: AdamW's moments are still to come, and the best weights."""
    early = Timed(tiny_base_folder, [job("a", 30, r=256, validated=True)], stop_after=1, token_budget=20)
    late = Timed(tiny_base_folder, [job("a", 30, r=256, validated=True)])
    (run,) = early.trainer.runs
    num_bytes = sum(parameter.numel() * 4 for parameter in run.optimizer.parameters)
    assert run.counters.step == 0
    to_come = [
        timed.quote().memory_bytes - make_bill(timed.trainer, PRICE, CPU).memory_bytes for timed in (early, late)
    ]
    assert to_come == [pytest.approx(3 * num_bytes, abs=num_bytes / 4), pytest.approx(0, abs=num_bytes / 4)]


@pytest.mark.parametrize(("device", "factor"), [("cpu", 10 ** (1 / 3)), ("meta", 1.0)])
def test_memory_on_a_cpu_is_quoted_to_grow_with_the_third_root_of_the_passes(
    tiny_base_folder: Path, device: str, factor: float
) -> None:
    """A quote after a tenth of the passes, where 200 MB came on top of what was loaded; no other device grows."""
    timed = Timed(tiny_base_folder, [job("a", 40)], stop_after=2)
    (run,) = timed.trainer.runs
    tenth = PassTime(round(run.planned_tokens / 10), 1.0)
    peak = peak_memory_bytes(CPU)
    measured = Measured((tenth,), peak - 200_000_000, torch.device(device))
    quote = make_quote(timed.trainer, measured, fingerprint="f", made_from="probe", price=PRICE)
    assert quote.memory_bytes == pytest.approx(peak - 2e8 + 2e8 * factor, abs=2e7)


@given(
    passes=st.lists(
        st.builds(PassTime, num_tokens=st.integers(1, 2000), seconds=st.floats(0.01, 50)), min_size=1, max_size=30
    ),
    num_tokens=st.integers(1, 10**7),
)
def test_a_range_holds_its_figure_and_never_claims_more_than_a_tenth(passes: list[PassTime], num_tokens: int) -> None:
    span = time_span(passes, num_tokens, 0, checkpointing=False)
    assert 0 < span.low <= 0.9 * span.expected * (1 + 1e-9)
    assert 1.1 * span.expected <= span.high * (1 + 1e-9)


def test_the_first_pass_is_a_warm_up_and_slow_passes_widen_the_range() -> None:
    even = [PassTime(100, 90.0)] + [PassTime(100, 10.0)] * 99
    assert time_span(even, 1000, 0, checkpointing=False).expected == pytest.approx(100)
    assert time_span(even, 1000, 0, checkpointing=False).high == pytest.approx(110)
    uneven = [PassTime(100, 90.0)] + [PassTime(100, 10.0), PassTime(100, 30.0)] * 50
    span = time_span(uneven, 1000, 0, checkpointing=False)
    assert (span.low, span.expected, span.high) == tuple(map(pytest.approx, (100, 200, 300)))


def test_few_passes_give_a_wide_range() -> None:
    widths = []
    for count in (1, 2, 5, 26, 200):
        span = time_span([PassTime(100, 10.0)] * count, 1000, 0, checkpointing=False)
        widths.append(span.high / span.expected - 1)
    assert widths == [pytest.approx(width) for width in (0.5, 0.5, 0.25, 0.1, 0.1)]


@pytest.mark.parametrize(("checkpointing", "share"), [(False, 1 / 2), (True, 1 / 3)])
def test_validation_counts_by_its_arithmetic_until_it_was_measured(checkpointing: bool, share: float) -> None:
    passes = [PassTime(100, 10.0)] * 3
    span = time_span(passes, 1000, 600, checkpointing=checkpointing)
    assert span.expected == pytest.approx(100 + 60 * share)
    measured = [*passes, PassTime(100, 10.0, num_validation_tokens=50, validation_seconds=20.0)]
    assert time_span(measured, 1000, 600, checkpointing=checkpointing).expected == pytest.approx(100 + 240)


def test_a_quote_is_kept_for_its_own_run_alone(tiny_base_folder: Path, tmp_path: Path) -> None:
    quote = Timed(tiny_base_folder, [job("a", 9)]).quote()
    keep_quote(tmp_path, quote)
    assert kept_quote(tmp_path, "f") == quote
    assert kept_quote(tmp_path, "another") is None
    assert kept_quote(tmp_path / "nowhere", "f") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"fingerprint": "f"}', "\x00", '{"fingerprint": "f", "seconds": 1e999}']
)
def test_a_damaged_quote_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / QUOTE_NAME).write_text(text)
    assert kept_quote(tmp_path, "f") is None


def test_a_probe_ends_when_its_time_is_used_and_publishes_nothing(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.yaml").write_text(
        f"base_model: {tiny_base_folder}\ndtype: float32\nadapters: {{a: {{task: dates}}, b: {{task: support}}}}\n"
        "data: {limit: 200, validation_limit: 4}\n"
    )
    fleet = load_fleet("fleet.yaml")
    before = sorted(tmp_path.rglob("*"))

    def ticking(step_s: float) -> Callable[[], float]:
        now = [0.0]

        def clock() -> float:
            now[0] += step_s
            return now[0]

        return clock

    def probe(step_s: float) -> Quote:
        own = load_base(str(tiny_base_folder), dtype="float32", device="cpu")
        return probe_fleet(fleet, own, budget_s=10, clock=ticking(step_s))

    short, long = probe(4.0), probe(2.0)
    assert (short.num_passes, long.num_passes) == (3, 5), "as many passes as fit, and the one that used the time up"
    assert short.fingerprint == long.fingerprint
    assert short.made_from == "probe"
    assert [member.name for member in short.members] == ["a", "b"]
    assert short.members == probe(4.0).members
    assert sorted(tmp_path.rglob("*")) == before
