"""Rates with restarts, and when validation comes."""

from __future__ import annotations

import pytest
import torch

from atoll.config.fleet import AdapterEntry, FleetConfig, TrainerConfig
from atoll.training.optim import learning_rate_at


@pytest.mark.parametrize("cycle", [1, 7, 40])
def test_the_cosine_with_restarts_is_pytorchs(cycle: int) -> None:
    config = TrainerConfig(learning_rate_scheduler="cosine_with_restarts", warmup_fraction=0.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=cycle)
    for step in range(40):
        assert learning_rate_at(step, 40, config, 0.5, cycle) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_cycles_begin_after_the_warm_up() -> None:
    config = TrainerConfig(learning_rate_scheduler="cosine_with_restarts", warmup_fraction=0.1)
    rates = [learning_rate_at(step, 40, config, 1.0, 9) for step in range(40)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert [step for step in range(4, 40) if rates[step] == 1.0] == [4, 13, 22, 31]


@pytest.mark.parametrize(
    ("fields", "steps"),
    [({}, 5), ({"evaluations_per_epoch": 4}, 3), ({"evaluate_every_steps": 2}, 2), ({"evaluate_every_steps": 99}, 10)],
)
def test_validation_comes_by_share_or_by_steps_and_after_each_epoch(fields: dict[str, int], steps: int) -> None:
    assert TrainerConfig.model_validate(fields).evaluate_every(10) == steps
    assert TrainerConfig.model_validate(fields).evaluate_every(1) == 1


def test_what_is_not_set_leaves_no_trace_in_the_fingerprint_of_a_run() -> None:
    fleet = FleetConfig(adapters={"a": AdapterEntry(task="dates")})
    assert "evaluate_every_steps" not in fleet.model_dump_json()


def test_an_adapter_can_take_back_what_the_fleet_sets() -> None:
    own = AdapterEntry.model_validate({"task": "dates", "trainer": {"evaluate_every_steps": None, "epochs": 2}})
    (member,) = FleetConfig(adapters={"a": own}, trainer=TrainerConfig(evaluate_every_steps=5)).members()
    assert member.trainer.evaluate_every_steps is None
    assert member.trainer.epochs == 2
