"""Many adapters on disk, few in memory, fewer on the device, new revisions all the time: not one wrong answer."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from peft import PeftModel

from atoll.engine import Engine, EngineConfig, Event
from support.engines import greedy, settled
from support.scale import scaled
from support.signatures import (
    all_signatures,
    answer,
    any_prompt,
    make_signature_model,
    save_signature_adapter,
)
from support.signed import MEAN_ADAPTER_BYTES, Answers, Ask, SignedWorld

NUM_REQUESTS = scaled(600, 5000)
NUM_IN_HOST = 64
NUM_SLOTS = 16
NUM_OUTSTANDING = 64
RELOAD_EVERY = 12


def test_peft_itself_answers_with_the_signature(tmp_path: Path) -> None:
    """The tests below stand on this: the adapters are what they are meant to be, whatever rank and prompt."""
    rng = random.Random(0)
    for rank, signature in zip((1, 3, 8), all_signatures(), strict=False):
        folder = save_signature_adapter(tmp_path / str(rank), signature, rank=rank)
        model = PeftModel.from_pretrained(make_signature_model(), folder).eval()
        assert greedy(model, any_prompt(rng, rank * 5), 10) == answer(signature, 10)


class Traffic:
    """Keeps a number of requests under way, popular adapters more often, and reloads adapters meanwhile."""

    def __init__(self, world: SignedWorld, engine: Engine, seed: int) -> None:
        self.num_superseded = 0
        self._world = world
        self._engine = engine
        self._rng = random.Random(seed)
        self._answers = Answers()
        self._ended: SimpleQueue[str] = SimpleQueue()
        self._asks: dict[str, Ask] = {}

    def run(self, num_requests: int) -> None:
        """Send all requests and check every answer as it ends."""
        names = self._world.zipf_names(self._rng, num_requests)
        for index, name in enumerate(names):
            if index % RELOAD_EVERY == 0:
                self._reload(self._world.zipf_names(self._rng, 1)[0])
            self._submit(name)
            while len(self._asks) >= NUM_OUTSTANDING:
                self._check_one()
        while self._asks:
            self._check_one()

    def _reload(self, name: str) -> None:
        self.num_superseded += sum(
            ask.request.adapter is not None and ask.request.adapter.name == name for ask in self._asks.values()
        )
        self._world.publish(name)

    def _submit(self, name: str) -> None:
        ask = self._world.ask(None if self._rng.random() < 0.05 else name, self._rng, answers=self._answers)
        self._asks[ask.request.request_id] = ask
        self._engine.submit(replace(ask.request, on_event=self._receive))

    def _receive(self, event: Event) -> None:
        self._answers.receive(event)
        if event.request_id in self._answers.ends:
            self._ended.put(event.request_id)

    def _check_one(self) -> None:
        self._answers.check(self._asks.pop(self._ended.get(timeout=60)))


def test_no_wrong_answer_under_a_zipf_mix_with_reloads(world: SignedWorld) -> None:
    """New requests get the new revision at once, those under way finish on their own."""
    config = EngineConfig(
        max_batch_tokens=128,
        max_num_requests=32,
        block_size=8,
        host_adapter_bytes=NUM_IN_HOST * MEAN_ADAPTER_BYTES,
    )
    with world.engine(num_slots=NUM_SLOTS, config=config) as engine:
        traffic = Traffic(world, engine, seed=1)
        traffic.run(NUM_REQUESTS)
        stats = settled(engine)
    assert traffic.num_superseded > NUM_REQUESTS / 100, "no reload met a request under way"
    assert stats.tiers.num_slot_evictions > NUM_REQUESTS / 10, "slots were never scarce"
    assert stats.tiers.num_host_evictions > NUM_REQUESTS / 20, "host memory was never scarce"
    assert stats.num_prefix_tokens_found > NUM_REQUESTS, "no prompt began like an earlier one"
    assert (stats.num_finished, stats.num_failed) == (NUM_REQUESTS, 0)
