"""A store of signature adapters, requests that know what they must be answered, and engines to ask."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.store import AdapterStore, StoredAdapter
from atoll.engine import Engine, EngineConfig, Event, FinishEvent, Request, TokenEvent, build_engine
from atoll.model.load import BaseModel, load_base
from support.engines import greedy_request
from support.signatures import (
    BASE_SIGNATURE,
    NUM_DIGITS,
    Signature,
    all_signatures,
    answer,
    any_prompt,
    make_signature_model,
    save_signature_adapter,
    save_signature_base,
)

MAX_RANK = 8
# Ranks from 1 to MAX_RANK are equally frequent, and each of an adapter's has 480 numbers.
MEAN_ADAPTER_BYTES = 480 * (MAX_RANK + 1) // 2 * 4
# An adapter held in bf16 stays well within; one foreign token among thirty does not.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Ask:
    """A request and the only right answer to it."""

    request: Request
    signature: Signature
    logprobs: tuple[float, ...]

    def check(self, tokens: list[TokenEvent], *, is_whole: bool = True) -> None:
        """Compare an answer, or with is_whole False the beginning of one, token by token."""
        expected = answer(self.signature, self.request.sampling.max_new_tokens)
        got = tuple(token.token_id for token in tokens)
        adapter = self.request.adapter
        assert got == (expected if is_whole else expected[: len(got)]), adapter and adapter.id
        for place, token in enumerate(tokens):
            assert token.logprob == pytest.approx(self.logprobs[place % NUM_DIGITS], abs=TOLERANCE), token


class Answers:
    """Collects what comes of many requests; give `receive` to each of them. late: what came after a request's end."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[TokenEvent]] = {}
        self.ends: dict[str, Event] = {}
        self.late: list[Event] = []

    def receive(self, event: Event) -> None:
        """Note an event. It does not raise, as the engine would take that for a consumer that vanished."""
        if event.request_id in self.ends:
            self.late.append(event)
        elif isinstance(event, TokenEvent):
            self.tokens.setdefault(event.request_id, []).append(event)
        else:
            self.ends[event.request_id] = event

    def check(self, ask: Ask) -> None:
        """The request has ended, by itself with its whole answer or aborted within it."""
        end = self.ends[ask.request.request_id]
        assert isinstance(end, FinishEvent), end
        assert not self.late
        ask.check(self.tokens.get(end.request_id, []), is_whole=end.finish_reason == "length")


class SignedWorld:
    """The signature base and its adapters a000, a001, ..., the most popular first; `publish` gives one a new answer."""

    def __init__(self, folder: Path, num_adapters: int) -> None:
        self.base_folder = save_signature_base(folder / "base")
        self.names = [f"a{index:03}" for index in range(num_adapters)]
        self.num_published = 0
        self._folder = folder
        self._store = AdapterStore(folder / "store")
        self._catalog = AdapterCatalog(self._store)
        self._unused = all_signatures()
        self._prefixes = [any_prompt(random.Random(seed), 12 * (seed + 1)) for seed in range(3)]
        self._signatures: dict[str, Signature] = {}
        for name in self.names:
            self.publish(name)
        self._logprobs = self._peft_logprobs(self.names[0])
        self._base_logprobs = self._peft_logprobs(None)

    def publish(self, name: str) -> StoredAdapter:
        """Publish the next revision of an adapter, with a signature that no other ever had."""
        rank = 1 + self.num_published % MAX_RANK
        self._signatures[name] = next(self._unused)
        source = self._folder / "sources" / str(self.num_published)
        self.num_published += 1
        return self._store.publish(name, save_signature_adapter(source, self._signatures[name], rank=rank))

    def load_base(self) -> BaseModel:
        """The base for one engine, whose bank changes it."""
        return load_base(str(self.base_folder), device="cpu", dtype="float32")

    def engine(self, *, num_slots: int, config: EngineConfig | None = None) -> Engine:
        """An engine that has not been started."""
        return build_engine(self.load_base(), num_slots=num_slots, max_rank=MAX_RANK, config=config)

    def ask(
        self,
        name: str | None,
        rng: random.Random,
        *,
        num_prompt_tokens: int | None = None,
        num_tokens: int | None = None,
        answers: Answers | None = None,
    ) -> Ask:
        """A request for an adapter's latest revision, or for the bare base; prompts begin alike, none are equal."""
        adapter = self._catalog.resolve(name) if name else None
        prompt_ids = rng.choice([(), *self._prefixes]) + any_prompt(rng, num_prompt_tokens or rng.randint(1, 24))
        request = greedy_request(prompt_ids[-(num_prompt_tokens or 0) :], num_tokens or rng.randint(1, 12), adapter)
        if answers:
            request = replace(request, on_event=answers.receive)
        if name is None:
            return Ask(request, BASE_SIGNATURE, self._base_logprobs)
        return Ask(request, self._signatures[name], self._logprobs)

    def zipf_names(self, rng: random.Random, count: int, exponent: float = 1.1) -> list[str]:
        """Random names, the one of rank n with a probability in proportion to n ** -exponent."""
        weights = [(rank + 1) ** -exponent for rank in range(len(self.names))]
        return rng.choices(self.names, weights, k=count)

    def _peft_logprobs(self, name: str | None) -> tuple[float, ...]:
        """The log-probability of a right digit at each place, by transformers and PEFT."""
        model = make_signature_model()
        if name:
            model = PeftModel.from_pretrained(model, self._store.resolve(name).folder).eval()
        digits = answer(self._signatures[name] if name else BASE_SIGNATURE, NUM_DIGITS)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([(*any_prompt(random.Random(0), 20), *digits)])).logits[0]
        rows = logits[-NUM_DIGITS - 1 : -1].log_softmax(-1)
        assert tuple(rows.argmax(-1).tolist()) == digits
        return tuple(rows.gather(1, torch.tensor(digits)[:, None])[:, 0].tolist())
