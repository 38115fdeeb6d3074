"""Five hundred requests at once where four can run: every one of them is answered as if it had come alone."""

from __future__ import annotations

import random
from pathlib import Path

from support.engines import ADAPTERS, NUM_REFERENCE_TOKENS, greedy_request, make_prompt, make_world

NUM_REQUESTS = 500
PROMPTS = [make_prompt(seed, length) for seed, length in enumerate([1, 4, 7, 12, 17, 23])]


def test_an_overloaded_engine_answers_as_peft_does_one_by_one(tmp_path: Path) -> None:
    """Blocks for about two full requests: those that run preempt each other all the time."""
    world = make_world(tmp_path)
    rng = random.Random(0)
    jobs = [
        (rng.choice([None, *ADAPTERS]), rng.choice(PROMPTS), rng.randint(1, NUM_REFERENCE_TOKENS))
        for _ in range(NUM_REQUESTS)
    ]
    engine = world.engine(num_slots=3, num_blocks=20, block_size=4, max_num_requests=6, max_batch_tokens=32)
    completions = engine.generate(
        [greedy_request(prompt, num_new, world.adapters[name] if name else None) for name, prompt, num_new in jobs]
    )
    engine.close()
    for (name, prompt, num_new), completion in zip(jobs, completions, strict=True):
        assert completion.error is None
        assert completion.token_ids == world.reference(name, prompt)[:num_new]
    stats = engine.stats()
    assert stats.num_preemptions > NUM_REQUESTS / 50, "blocks never ran out"
    assert stats.num_free_blocks == stats.num_blocks
    assert (stats.num_finished, stats.num_failed) == (NUM_REQUESTS, 0)
