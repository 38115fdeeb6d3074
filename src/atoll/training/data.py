"""Training examples as tokens, each adapter's own order of them, and passes that mix adapters under a token budget."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from atoll.text.prompt import PromptRenderer, num_within


@dataclass(frozen=True)
class TokenizedExample:
    """ids: prompt, completion and end token. The loss is on ids[num_prompt_tokens:]. is_cut: a column did not fit."""

    ids: tuple[int, ...]
    num_prompt_tokens: int
    is_cut: bool = False

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.num_prompt_tokens


@dataclass(frozen=True)
class TokenizedSplit:
    """A split as tokens."""

    examples: tuple[TokenizedExample, ...]

    @cached_property
    def num_shared(self) -> int:
        """Tokens that every prompt begins with: those of its instruction."""
        return num_shared_tokens(self.examples)

    @property
    def num_cut(self) -> int:
        """Examples whose prompts were cut to the length limit."""
        return sum(example.is_cut for example in self.examples)

    @property
    def num_tokens(self) -> int:
        return sum(len(example.ids) for example in self.examples)

    def lengths(self, indices: Sequence[int]) -> list[int]:
        """What each of these examples adds to a pass in tokens: what they share is computed once, for the first."""
        whole = [len(self.examples[i].ids) for i in indices]
        return whole[:1] + [length - self.num_shared for length in whole[1:]]

    def within(self, max_tokens: int | None) -> TokenizedSplit:
        """The first examples, as many as have at most `max_tokens` tokens in all."""
        count = num_within([len(example.ids) for example in self.examples], max_tokens)
        return TokenizedSplit(self.examples[:count])


def num_shared_tokens(examples: Sequence[TokenizedExample]) -> int:
    """How many tokens all prompts begin with; at least the last of each prompt stays its own."""
    if not examples:
        return 0
    # What the first and the last in order begin with, all between them begin with.
    first, last = min(example.ids for example in examples), max(example.ids for example in examples)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return min(sum(1 for _ in same), *(example.num_prompt_tokens - 1 for example in examples))


def tokenize(rows: Sequence[Mapping[str, str]], renderer: PromptRenderer) -> TokenizedSplit:
    """Render every row for supervision. Raises DataError for a row whose instruction and answer alone do not fit."""
    rendered = [renderer.supervised(row) for row in rows]
    return TokenizedSplit(
        tuple(TokenizedExample(tuple(item.ids), item.num_prompt_tokens, item.num_cut_tokens > 0) for item in rendered)
    )


class ExampleOrder:
    """Which examples make up each optimiser step of one adapter: a function of its own seed and of nothing else."""

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._seed = seed
        self._epoch: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self._num_examples / self._batch_size)

    def step_indices(self, step: int) -> list[int]:
        """Indices of the examples of one step; the last step of an epoch may hold fewer."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            indices = list(range(self._num_examples))
            random.Random(self._seed * 1_000_003 + epoch).shuffle(indices)
            self._epoch = (epoch, indices)
        return self._epoch[1][batch * self._batch_size : (batch + 1) * self._batch_size]


class PassMixer:
    """Weighted deficit round-robin in tokens: decides how many examples of each adapter go into the next pass.

    Every pass credits each adapter with its share of the token budget, and each example that it gets is paid for. An
    adapter's share follows the tokens that it has to train on in all, so that long tasks are not starved and all
    adapters move through their schedules at the same pace. Source: Shreedhar and Varghese, SIGCOMM 1995.
    """

    def __init__(self, weights: Mapping[str, float], token_budget: int) -> None:
        self._weights = dict(weights)
        self._token_budget = token_budget
        self.credits: dict[str, float] = dict.fromkeys(weights, 0.0)

    def take(self, queues: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """How many examples from the front of each queue to run now.

        queues: what the examples that each active adapter has left in its current step add to the pass, none empty.
        The pass holds at most `token_budget` tokens, or one example that is longer than that.
        """
        total = sum(self._weights[name] for name in queues)
        for name in queues:
            self.credits[name] += self._token_budget * self._weights[name] / total
        taken = dict.fromkeys(queues, 0)
        room = self._token_budget
        while True:
            fitting = [
                name
                for name, lengths in queues.items()
                if taken[name] < len(lengths) and (lengths[taken[name]] <= room or room == self._token_budget)
            ]
            if not fitting:
                break
            name = max(fitting, key=lambda name: self.credits[name])
            length = queues[name][taken[name]]
            self.credits[name] -= length
            room -= length
            taken[name] += 1
        # What nobody could use in this pass must not pile up and distort the later ones.
        spare = sum(self.credits[name] for name in queues) / total
        for name in queues:
            self.credits[name] -= spare * self._weights[name]
        return {name: count for name, count in taken.items() if count}
