"""A flood of requests leaves the time to first token of all others as it was, counted in steps of a whole engine."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from atoll.engine import EngineConfig
from support.scale import scaled
from support.signed import MAX_RANK, Answers, SignedWorld
from support.stepping import Stepper

CONFIG = EngineConfig(max_batch_tokens=64, max_num_requests=8, block_size=8, max_length=512)
NUM_FLOODING = 200
# Well below the token budget, around it, and in several chunks.
NUM_PROMPT_TOKENS = (1, 20, 45, 100, 200, 300)
MAX_RATIO = 1.5


@dataclass(frozen=True)
class Party:
    """Who asks for what: a tenant, and the adapters that its requests take turns in."""

    tenant: str
    adapters: tuple[str, ...]


QUIET = Party("", ("a000",))
FLOODS = {
    "another adapter": Party("", ("a001",)),
    "another tenant, the same adapter": Party("other", ("a000",)),
    "another tenant, three adapters": Party("other", ("a001", "a002", "a003")),
}


@dataclass
class Site:
    """An engine with room for all adapters, and those who ask."""

    world: SignedWorld
    stepper: Stepper
    rng: random.Random
    answers: Answers = field(default_factory=Answers)

    def submit(self, party: Party, num_prompt_tokens: int, num_tokens: int) -> str:
        """Queue a request; returns its id."""
        ask = self.world.ask(
            self.rng.choice(party.adapters),
            self.rng,
            num_prompt_tokens=num_prompt_tokens,
            num_tokens=num_tokens,
            answers=self.answers,
        )
        self.stepper.submit(replace(ask.request, tenant=party.tenant))
        return ask.request.request_id

    def num_steps_to_first_token(self, num_prompt_tokens: int) -> int:
        """Queue a request of QUIET between two steps, and count those that it takes."""
        request_id = self.submit(QUIET, num_prompt_tokens, 2)
        before = self.stepper.stats.num_steps
        while request_id not in self.answers.tokens:
            self.stepper.step()
        return self.stepper.stats.num_steps - before


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
@pytest.mark.parametrize("seed", range(scaled(1, 10)))
def test_a_flood_delays_nobody_else(world: SignedWorld, seed: int, flood: Party) -> None:
    """All adapters are on the device, and the flood has taken all places, before the others come one by one."""
    stepper = Stepper(world.load_base(), num_slots=4, max_rank=MAX_RANK, config=CONFIG)
    site = Site(world, stepper, random.Random(seed))
    for party in (QUIET, flood):
        for name in party.adapters:
            site.submit(replace(party, adapters=(name,)), 5, 1)
            stepper.run()
    alone = [site.num_steps_to_first_token(count) for count in NUM_PROMPT_TOKENS]
    assert alone[0] == 1
    for _ in range(NUM_FLOODING):
        site.submit(flood, site.rng.randint(20, 200), 40)
    for _ in range(30):
        stepper.step()
    assert stepper.stats.num_running == CONFIG.max_num_requests
    among = [site.num_steps_to_first_token(count) for count in NUM_PROMPT_TOKENS]
    assert stepper.stats.num_waiting > NUM_FLOODING / 2, "the flood was over"
    stepper.close()
    assert sum(among) <= MAX_RATIO * sum(alone), f"{among} steps instead of {alone}"
