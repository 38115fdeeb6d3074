"""Messages of customers, and the queue of a help desk that each belongs to.

The facts are troubles with their subjects ("My kettle broke after one week."): one that occurs in one split occurs in
no other, so that no test message was seen in training.
"""

from __future__ import annotations

from functools import cache

from atoll.tasks.generated.partition import NUM_ROWS, Split, split_of, split_random
from atoll.tasks.generated.support_phrases import CLOSINGS, OPENINGS, PHRASES

QUEUES = tuple(PHRASES)


def rows(split: Split, seed: int = 0) -> list[dict[str, str]]:
    """Rows with the columns `message` and `queue`; queues take turns, no message occurs twice."""
    random = split_random("support", split, seed)
    facts = _facts(split)
    queues: dict[str, str] = {}
    while len(queues) < NUM_ROWS[split]:
        queue = QUEUES[len(queues) % len(QUEUES)]
        message = _message(random.choice(OPENINGS), random.choice(facts[queue]), random.choice(CLOSINGS))
        queues[message] = queue
    messages = list(queues)
    random.shuffle(messages)
    return [{"message": message, "queue": queues[message]} for message in messages]


def _message(opening: str, trouble: str, closing: str) -> str:
    if opening.endswith(",") and not trouble.startswith("I "):
        trouble = trouble[0].lower() + trouble[1:]
    return " ".join(part for part in (opening, trouble, closing) if part)


@cache
def _facts(split: Split) -> dict[str, tuple[str, ...]]:
    facts = {
        queue: [trouble.format(subject) for subject in subjects for trouble in troubles]
        for queue, (subjects, troubles) in PHRASES.items()
    }
    return {queue: tuple(fact for fact in said if split_of(fact) == split) for queue, said in facts.items()}
