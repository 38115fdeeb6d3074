"""The step: schedule -> run -> postprocess. Everything here belongs to one thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from atoll.adapters.bank import AdapterBank
from atoll.adapters.residency import AdapterResidency
from atoll.adapters.store import StoredAdapter
from atoll.adapters.tiers import TieredAdapter, TierStats
from atoll.engine.blocks import BlockPool
from atoll.engine.output import Output
from atoll.engine.request import ErrorEvent, Event, Request
from atoll.engine.runner import Runner, StepResult
from atoll.engine.sampler import Sample, sample, score
from atoll.engine.scheduler import Scheduler
from atoll.engine.sizing import choose_num_blocks
from atoll.engine.state import Chunk, RequestState, ScheduledBatch
from atoll.errors import AtollError, RequestInvalid, UsageError
from atoll.model.load import BaseModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits of an engine. Raises UsageError for a value out of range.

    max_batch_tokens: the token budget of one step. max_num_requests: requests that run at once. block_size: tokens in
    one KV block. kv_cache_bytes None: a share of the memory that is free. max_length None: the base model's own.
    prefix_cache: keep the KV blocks of earlier requests for others that begin alike; whoever changes the base model or
    an adapter's weights under a running engine (training does) must switch it off, as kept blocks would be stale.
    host_adapter_bytes: memory for adapters beside those in slots; None for a share of what is free. cuda_graphs: launch
    a step of one token a request as a whole, on CUDA.

    With max_batch_tokens three times max_num_requests or more, running requests leave two thirds of it to prompts.
    """

    max_batch_tokens: int = 512
    max_num_requests: int = 32
    block_size: int = 16
    kv_cache_bytes: int | None = None
    max_length: int | None = None
    prefix_cache: bool = True
    host_adapter_bytes: int | None = None
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        for name in (
            "max_batch_tokens",
            "max_num_requests",
            "block_size",
            "kv_cache_bytes",
            "max_length",
            "host_adapter_bytes",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}", where=name, mend=f"{name} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Counts since the start, and how things stand.

    num_free_blocks: those that a request can get, cached ones without a holder among them. num_prefix_tokens: tokens of
    admitted prompts that were looked up in the prefix cache. resident_adapters: ids, least recently used first.
    running_by_adapter, waiting_by_adapter: requests by the adapter's name, empty for the base. max_rank: of a slot.
    num_threads: of a step, fewer than there are cores while other programs want them.
    """

    num_waiting: int = 0
    num_running: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_cached_blocks: int = 0
    num_slots: int = 0
    num_steps: int = 0
    num_preemptions: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    num_prefix_tokens: int = 0
    num_prefix_tokens_found: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_threads: int = 0
    resident_adapters: tuple[str, ...] = ()
    running_by_adapter: Mapping[str, int] = field(default_factory=dict)
    waiting_by_adapter: Mapping[str, int] = field(default_factory=dict)
    max_rank: int = 0
    tiers: TierStats = field(default_factory=TierStats)


@dataclass(slots=True, eq=False)
class _Active:
    state: RequestState
    output: Output


class EngineCore:
    """The engine without threads.

    max_length: tokens that a prompt and its completion can have together: by the base model, config and KV cache.
    on_loaded is called from the loader's thread whenever an adapter may have become ready. Raises UsageError or
    ConfigError for limits that do not fit the base model or the memory.
    """

    def __init__(
        self, base: BaseModel, bank: AdapterBank, config: EngineConfig, *, on_loaded: Callable[[], None]
    ) -> None:
        max_length = config.max_length or base.max_length
        if max_length > base.max_length:
            raise UsageError(
                f"max_length is {max_length}, the base model has {base.max_length} positions",
                where="max_length",
                mend=f"set it to {base.max_length} or less",
            )
        num_blocks = choose_num_blocks(
            base,
            block_size=config.block_size,
            max_num_requests=config.max_num_requests,
            max_length=max_length,
            kv_cache_bytes=config.kv_cache_bytes,
        )
        logger.info("KV cache: %d blocks of %d tokens", num_blocks, config.block_size)
        # The last token is never computed: nothing follows it.
        self.max_length = min(max_length, num_blocks * config.block_size + 1)
        self._limit = "the model's length" if self.max_length == max_length else "the whole KV cache (kv_cache_bytes)"
        self._base = base
        self._num_slots = bank.num_slots
        self._max_rank = bank.max_rank
        self._vocab_size: int = base.model.get_input_embeddings().num_embeddings
        self._pool = BlockPool(num_blocks, config.block_size)
        self._residency = AdapterResidency(
            bank, base_digest=base.digest, host_bytes=config.host_adapter_bytes, on_loaded=on_loaded
        )
        self._scheduler = Scheduler(
            self._pool,
            self._residency,
            num_slots=bank.num_slots,
            max_batch_tokens=config.max_batch_tokens,
            max_num_requests=config.max_num_requests,
            prefix_cache=config.prefix_cache,
        )
        self._runner = Runner(
            base,
            bank,
            num_blocks=num_blocks,
            block_size=config.block_size,
            max_batch_tokens=config.max_batch_tokens,
            max_num_requests=config.max_num_requests,
            max_length=self.max_length,
            cuda_graphs=config.cuda_graphs,
        )
        self._active: dict[str, _Active] = {}
        self._num_steps = self._num_computed = self._num_generated = self._num_finished = self._num_failed = 0

    @property
    def has_requests(self) -> bool:
        return bool(self._active)

    def check(self, request: Request) -> None:
        """Raise RequestInvalid if the request can never run; changes nothing, so any thread may call it."""
        num_prompt, num_new = len(request.prompt_ids), request.sampling.max_new_tokens
        if not request.prompt_ids:
            raise RequestInvalid("the prompt is empty", where="prompt", mend="send at least one token")
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= self._vocab_size:
            raise RequestInvalid(
                f"the prompt has token ids outside of the vocabulary of {self._vocab_size}", where="prompt"
            )
        if any(token_id >= self._vocab_size for token_id, _ in request.sampling.logit_bias):
            raise RequestInvalid(
                f"logit_bias names token ids outside of the vocabulary of {self._vocab_size}", where="logit_bias"
            )
        if request.adapter is not None and self._num_slots == 0:
            raise RequestInvalid("this engine has no slots for adapters", mend="start it with at least one slot")
        allowed, limit = self.max_length, self._limit
        if num_prompt + num_new <= allowed:
            return
        if num_prompt >= allowed:
            raise RequestInvalid(
                f"the prompt has {num_prompt} tokens, {limit} is {allowed}",
                where="prompt",
                mend=f"shorten the prompt to {allowed - num_new} tokens or less"
                if num_new < allowed
                else "shorten the prompt and ask for fewer tokens",
            )
        raise RequestInvalid(
            f"a prompt of {num_prompt} tokens and max_new_tokens {num_new} together exceed {allowed}, {limit}",
            where="max_new_tokens",
            mend=f"max_new_tokens may be at most {allowed - num_prompt} for this prompt",
        )

    def add(self, request: Request, submitted_at_s: float) -> None:
        """Queue a request that `check` has passed."""
        try:
            if request.request_id in self._active:
                raise RequestInvalid(f"request {request.request_id} is already running", where="request_id")
            output = Output(request, self._base.tokenizer, self._base.end_ids, submitted_at_s)
            state = self._scheduler.add(request)
        except Exception as error:
            self._num_failed += 1
            _deliver_error(request, _explained(error, "the request could not be started"))
            return
        self._active[request.request_id] = _Active(state, output)

    def abort(self, request_id: str) -> None:
        """End a request with a FinishEvent "abort"; one that has ended already is left alone."""
        if active := self._active.get(request_id):
            self._finish(active)

    def pin(self, adapter: StoredAdapter) -> None:
        """Keep an adapter in a slot, and load it. Raises UsageError if no slot would be left for others."""
        self._residency.pin(adapter)

    def unpin(self, name: str) -> None:
        """Let an adapter be evicted again."""
        self._residency.unpin(name)

    def adapters(self) -> list[TieredAdapter]:
        """The adapters on the device and in host memory."""
        return self._residency.adapters()

    def abort_all(self) -> None:
        for request_id in list(self._active):
            self.abort(request_id)

    def fail_all(self, error: Exception) -> None:
        """End every request with the same error: nothing is known about the state of any."""
        for active in list(self._active.values()):
            self._fail(active.state, _explained(error, "the engine failed"))

    def step(self) -> bool:
        """Run one batch; False if there was nothing to compute. A failure ends the requests of this batch alone."""
        batch = self._scheduler.schedule()
        for state, error in batch.failures:
            self._fail(state, error)
        if not batch.chunks:
            return bool(batch.failures)
        outputs = [self._active[chunk.state.request.request_id].output for chunk in batch.chunks]
        for output in outputs:
            output.start()
        self._num_steps += 1
        sampled = [chunk for chunk in batch.chunks if chunk.is_sampled]
        try:
            result = self._runner.run(batch)
            samples = self._sample(sampled, result.logits)
            self._note_prompts(batch, result)
        except Exception as error:
            logger.exception("a step of %d requests failed", len(batch.chunks))
            for chunk in batch.chunks:
                self._fail(chunk.state, _explained(error, "the step that computed this request failed"))
            return True
        self._scheduler.advance(batch)
        self._num_computed += batch.num_tokens
        for chunk, choice in zip(sampled, samples, strict=True):
            self._take(chunk.state, choice)
        for row in result.hidden_sums:
            if batch.chunks[row].is_last:
                active = self._active[batch.chunks[row].state.request.request_id]
                active.output.finish_embedding()
                self._finish(active)
        return True

    def stats(self) -> EngineStats:
        tiers = self._residency.stats()
        return EngineStats(
            num_waiting=self._scheduler.num_waiting,
            num_running=len(self._scheduler.running),
            num_blocks=self._pool.num_blocks,
            num_free_blocks=self._pool.num_free,
            num_cached_blocks=self._pool.num_cached,
            num_slots=self._num_slots,
            num_steps=self._num_steps,
            num_preemptions=self._scheduler.num_preemptions,
            num_computed_tokens=self._num_computed,
            num_generated_tokens=self._num_generated,
            num_prefix_tokens=self._scheduler.num_prefix_tokens,
            num_prefix_tokens_found=self._scheduler.num_prefix_tokens_found,
            num_finished=self._num_finished,
            num_failed=self._num_failed,
            num_threads=torch.get_num_threads(),
            resident_adapters=tuple(adapter.id for adapter in self._residency.loaded),
            running_by_adapter=dict(self._scheduler.running_by_adapter),
            waiting_by_adapter=dict(self._scheduler.waiting_by_adapter),
            max_rank=self._max_rank,
            tiers=tiers,
        )

    def close(self) -> None:
        """Abort all requests and stop the loader."""
        self.abort_all()
        self._residency.close()

    def _sample(self, chunks: list[Chunk], logits: Tensor) -> list[Sample | None]:
        return sample(logits, [self._active[chunk.state.request.request_id].output.next_draw for chunk in chunks])

    def _note_prompts(self, batch: ScheduledBatch, result: StepResult) -> None:
        """Hand out what requests wanted to know about their prompts."""
        first = 0
        for row, chunk in enumerate(batch.chunks):
            if not chunk.state.request.needs_whole_prompt:
                continue
            output = self._active[chunk.state.request.request_id].output
            if row in result.hidden_sums:
                output.take_hidden(chunk.start, result.hidden_sums[row])
            if targets := chunk.prompt_targets:
                logits = result.prompt_logits[first : first + len(targets)]
                output.take_prompt_tokens(chunk.start, score(logits, targets, chunk.state.request.prompt_logprobs or 0))
                first += len(targets)

    def _take(self, state: RequestState, choice: Sample | None) -> None:
        """Hand one token to its request; whatever goes wrong here is that request's own failure."""
        active = self._active[state.request.request_id]
        if choice is None:
            why = "the base model or the adapter overflows on this prompt"
            self._fail(state, AtollError("the model computed logits that are not numbers", why=why))
            return
        try:
            event = active.output.push(choice)
            state.token_ids.append(choice.token_id)
            self._num_generated += 1
            state.request.on_event(event)
        except Exception as error:
            if not isinstance(error, RequestInvalid):
                logger.exception("request %s failed", state.request.request_id)
            self._fail(state, _explained(error, "the request's token could not be delivered"))
            return
        if active.output.finish_reason is not None:
            self._finish(active)

    def _finish(self, active: _Active) -> None:
        self._forget(active.state)
        self._num_finished += 1
        _deliver(active.state.request, active.output.finish(active.state.num_cached_tokens))

    def _fail(self, state: RequestState, error: AtollError) -> None:
        self._forget(state)
        self._num_failed += 1
        _deliver_error(state.request, error)

    def _forget(self, state: RequestState) -> None:
        """Whatever goes wrong here, the request has ended and must hear of it."""
        del self._active[state.request.request_id]
        try:
            self._scheduler.remove(state)
        except Exception:
            logger.exception("request %s could not be taken down", state.request.request_id)


def _deliver(request: Request, event: Event) -> None:
    """The last event of a request: an error in its receiver can only be logged."""
    try:
        request.on_event(event)
    except Exception:
        logger.exception("the receiver of request %s failed on its last event", request.request_id)


def _deliver_error(request: Request, error: AtollError) -> None:
    _deliver(request, ErrorEvent(request_id=request.request_id, error=error))


def _explained(error: Exception, what: str) -> AtollError:
    return error if isinstance(error, AtollError) else AtollError(what, why=f"{type(error).__name__}: {error}")
