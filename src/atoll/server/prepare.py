"""From an ask, in nobody's dialect, to what the engine takes: adapter, prompt ids and sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.store import StoredAdapter
from atoll.engine import Event, Request, SamplingParams
from atoll.engine.request import MAX_SEED
from atoll.errors import RequestInvalid
from atoll.server.caller import Caller
from atoll.server.forms import Constraints, Form
from atoll.server.merge_ask import MergeAsk
from atoll.server.prompts import Prompt, last_ids, prompt_ids
from atoll.server.settings import ServerSettings
from atoll.server.sources import AdapterSources
from atoll.text.constraint import TokenConstraint

if TYPE_CHECKING:
    from atoll.model.load import BaseModel

# Tokenised in a quarter of a millisecond.
_QUICK_CHARS = 500


class PromptTooLongError(RequestInvalid):
    """Prompt and answer do not fit in the model's positions."""

    code = "context_length_exceeded"


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a client asks for, in any dialect. None: not said, so the adapter's contract or the dialect decides.

    default_temperature, default_max_new_tokens: the dialect's, for adapters without a contract; None tokens: as many
    as the model has positions for. truncate: keep the prompt's last tokens only. prompt_logprobs: how many alternatives
    to report for each token of the prompt, None for nothing. embed: the prompt's vector instead of a completion.
    merge: a mix of adapters instead of one. api_token: what the adapter's source asks for; it is never shown.
    """

    prompt: Prompt
    adapter_id: str = ""
    adapter_source: str | None = None
    merge: MergeAsk | None = None
    api_token: str | None = field(default=None, repr=False)
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    num_alternatives: int = 0
    truncate: int | None = None
    form: Form | None = None
    prompt_logprobs: int | None = None
    embed: bool = False
    default_temperature: float
    default_max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An ask, resolved: what goes to the engine, once or several times."""

    prompt_ids: tuple[int, ...]
    num_cut_tokens: int
    sampling: SamplingParams
    adapter: StoredAdapter | None
    constraint: TokenConstraint | None
    prompt_logprobs: int | None
    embed: bool

    def request(self, index: int, caller: Caller, on_event: Callable[[Event], None]) -> Request:
        """The request of one of several completions: with a given seed each has its own."""
        sampling = self.sampling
        if index and sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + index) % (MAX_SEED + 1))
        return Request(
            prompt_ids=self.prompt_ids,
            sampling=sampling,
            adapter=self.adapter,
            tenant=caller.tenant,
            priority=caller.priority,
            constraint=self.constraint and self.constraint.copy(),
            prompt_logprobs=self.prompt_logprobs,
            embed=self.embed,
            on_event=on_event,
        )


class Preparer:
    """Resolves asks for one base model; its methods read files and tokenise, and may run on any thread.

    max_length: tokens that a prompt and its completion can have together. max_rank: of the engine's slots.
    """

    def __init__(
        self,
        base: BaseModel,
        catalog: AdapterCatalog,
        settings: ServerSettings,
        *,
        max_length: int,
        max_rank: int,
    ) -> None:
        self.base = base
        self._sources = AdapterSources(catalog, settings, max_rank=max_rank, base=base)
        self._catalog = catalog
        self._settings = settings
        self._max_length = max_length
        self._constraints = Constraints(base)

    def prepare(self, ask: Ask, caller: Caller) -> Prepared:
        """Find the adapter, make the prompt, settle what the client left open. Raises what is wrong with it."""
        adapter = self._adapter_of(ask, caller)
        prompt = prompt_ids(self.base.tokenizer, ask.prompt, adapter)
        begin_id = self.base.tokenizer.bos_token_id
        ids = prompt.ids if ask.truncate is None else last_ids(prompt.ids, ask.truncate, begin_id)
        if not ids:
            raise RequestInvalid("the prompt is empty", where="prompt")
        return Prepared(
            prompt_ids=ids,
            num_cut_tokens=prompt.num_cut_tokens,
            sampling=self._sampling(ask, adapter, len(ids)),
            adapter=adapter,
            constraint=self._constraints.get(ask.form, caller.tenant) if ask.form else None,
            prompt_logprobs=ask.prompt_logprobs,
            embed=ask.embed,
        )

    def is_base(self, adapter_id: str) -> bool:
        """Whether a model's name means the bare base model."""
        return adapter_id in ("", self.base.name)

    def adapters(self, caller: Caller) -> list[StoredAdapter]:
        """The caller's adapters in the store that belong to this base; of those without a contract nobody knows."""
        known = [adapter for adapter in self._catalog.list() if caller.may_use(adapter.name)]
        return [a for a in known if a.contract is None or a.contract.base.digest == self.base.digest]

    def adapter(self, adapter_id: str, source: str | None, caller: Caller, token: str | None = None) -> StoredAdapter:
        """Raises AdapterNotFound, also for adapters that are not the caller's. token: what a remote source asks for."""
        return self._sources.adapter(adapter_id, source, caller, token)

    def is_quick(self, ask: Ask) -> bool:
        """Whether preparing reads no file and takes well under a millisecond."""
        has_adapter = not self.is_base(ask.adapter_id) or ask.merge is not None
        return not has_adapter and ask.form is None and isinstance(ask.prompt, str) and len(ask.prompt) <= _QUICK_CHARS

    def is_slow(self, ask: Ask) -> bool:
        """Whether preparing the ask may take seconds, for a download or a mix of adapters."""
        return self._sources.is_slow(ask.adapter_source, ask.merge)

    def _adapter_of(self, ask: Ask, caller: Caller) -> StoredAdapter | None:
        if ask.merge is not None:
            return self._sources.merged(ask.merge, ask.adapter_source, caller, ask.api_token)
        if self.is_base(ask.adapter_id):
            return None
        return self.adapter(ask.adapter_id, ask.adapter_source, caller, ask.api_token)

    def _sampling(self, ask: Ask, adapter: StoredAdapter | None, num_prompt_tokens: int) -> SamplingParams:
        contract = adapter.contract if adapter else None
        default_max, default_temperature = ask.default_max_new_tokens, ask.default_temperature
        default_stop: tuple[str, ...] = ()
        if contract is not None:
            default_max = contract.generation.max_new_tokens
            default_temperature = contract.generation.temperature
            default_stop = contract.generation.stop
        self._check_stop(ask.stop)
        return SamplingParams(
            max_new_tokens=self._max_new_tokens(1 if ask.embed else ask.max_new_tokens, default_max, num_prompt_tokens),
            temperature=default_temperature if ask.temperature is None else ask.temperature,
            top_p=1.0 if ask.top_p is None else ask.top_p,
            top_k=ask.top_k or 0,
            typical_p=1.0 if ask.typical_p is None else ask.typical_p,
            repetition_penalty=1.0 if ask.repetition_penalty is None else ask.repetition_penalty,
            frequency_penalty=ask.frequency_penalty or 0.0,
            presence_penalty=ask.presence_penalty or 0.0,
            logit_bias=ask.logit_bias,
            seed=ask.seed,
            stop=ask.stop or default_stop,
            ignore_eos=ask.ignore_eos,
            logprobs=ask.num_alternatives,
        )

    def _max_new_tokens(self, wanted: int | None, default: int | None, num_prompt_tokens: int) -> int:
        """A default gives way to the room that is left; what a client asks for fits or is refused."""
        room = self._max_length - num_prompt_tokens
        if room < 1 or (wanted is not None and wanted > room):
            answer = "" if wanted is None else f" and {wanted} new ones"
            raise PromptTooLongError(
                f"{num_prompt_tokens} prompt tokens{answer} do not fit in {self._max_length} tokens",
                where="prompt",
                mend="shorten the prompt" if room < 1 else f"shorten the prompt, or ask for at most {room} new tokens",
            )
        if wanted is not None:
            return wanted
        return room if default is None else min(default, room)

    def _check_stop(self, stop: tuple[str, ...]) -> None:
        limits = self._settings
        if len(stop) > limits.max_stop_strings or any(len(text) > limits.max_stop_chars for text in stop):
            raise RequestInvalid(
                "there are too many stop strings, or one is too long",
                where="stop",
                mend=f"send at most {limits.max_stop_strings} of at most {limits.max_stop_chars} characters",
            )
