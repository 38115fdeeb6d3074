"""The bodies of LoRAX's dialect. Keys that LoRAX itself does not know are tolerated, as there."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from atoll.engine.request import MAX_LOGPROBS, MAX_SEED
from atoll.errors import RequestInvalid
from atoll.server.bodies import Body, ListOf
from atoll.server.forms import Form, JsonForm, PatternForm
from atoll.server.merge_ask import MajoritySignMethod, MergeAsk, MergeStrategy
from atoll.server.prepare import Ask
from atoll.server.prompts import Prompt

MAX_MERGED_ADAPTERS = 8
MAX_MERGE_WEIGHT = 100
MAX_API_TOKEN_CHARS = 1024
LORAX_BASE_ID = "__base_model__"
"""What LoRAX calls the base where it wants an adapter."""
MAX_TOKENIZE_CHARS = 1 << 17

_Text = Annotated[str, Field(min_length=1)]
_Inputs = _Text | dict[str, str]
_Weight = Annotated[float, Field(ge=-MAX_MERGE_WEIGHT, le=MAX_MERGE_WEIGHT)]


class MergedAdapters(Body):
    """Several adapters, mixed into one."""

    model_config = ConfigDict(extra="ignore")

    ids: ListOf[_Text] = Field(min_length=1, max_length=MAX_MERGED_ADAPTERS)
    weights: ListOf[_Weight] | None = Field(default=None, min_length=1, max_length=MAX_MERGED_ADAPTERS)
    """One for each adapter; unset: 1 each."""
    merge_strategy: MergeStrategy = "linear"
    density: float | None = Field(default=None, ge=0, le=1)
    """The share of values that ties, dare_linear and dare_ties keep. They need one above 0; linear ignores it."""
    majority_sign_method: MajoritySignMethod = "total"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.ids):
            what = f"merged_adapters has {len(self.ids)} ids and {len(self.weights)} weights"
            raise RequestInvalid(what, where="merged_adapters", mend="send one weight for each id, or none")
        if self.merge_strategy != "linear" and not self.density:
            raise RequestInvalid(
                f"the merge strategy {self.merge_strategy} needs a density",
                where="merged_adapters.density",
                why="a density of 0 keeps nothing of any adapter",
                mend="send a number above 0 and at most 1",
            )
        return self

    def ask(self) -> MergeAsk:
        """The same, without dialect."""
        return MergeAsk(
            ids=tuple(self.ids),
            weights=tuple(self.weights or ()),
            strategy=self.merge_strategy,
            density=1.0 if self.merge_strategy == "linear" else self.density or 0.0,
            majority_sign_method=self.majority_sign_method,
        )


class ResponseFormat(Body):
    """What form the answer must have. Unknown keys are refused here: without its schema an answer would be any JSON."""

    type: Literal["text", "json_object", "json_schema", "regex"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """The JSON schema for both of the JSON types; any object without one."""
    regex: _Text | None = None
    """The pattern that the whole answer matches, for the type regex."""

    @model_validator(mode="after")
    def _has_its_key_only(self) -> Self:
        if self.schema_ is not None and not self.type.startswith("json"):
            raise RequestInvalid(f"a {self.type} answer has no schema", where="response_format.schema")
        if (self.regex is None) == (self.type == "regex"):
            what = "the type regex needs `regex`" if self.regex is None else f"a {self.type} answer has no regex"
            raise RequestInvalid(what, where="response_format.regex")
        return self

    def form(self) -> Form | None:
        """The same, without dialect; None for plain text."""
        if self.regex is not None:
            return PatternForm(self.regex)
        return None if self.type == "text" else JsonForm(self.schema_ or {})


class AdapterParameters(Body):
    """Which adapter answers: one, a mix of several, or none for the base."""

    model_config = ConfigDict(extra="ignore")

    adapter_id: str = ""
    """The adapter: name, name@revision, or what its source calls it; empty for the base."""
    adapter_source: Literal["local", "hub", "s3", "pbase"] | None = None
    """`local` for a path below one of the server's adapter roots; unset for the store."""
    merged_adapters: MergedAdapters | None = None
    """A mix of adapters, instead of `adapter_id`."""
    api_token: str | None = Field(default=None, max_length=MAX_API_TOKEN_CHARS, repr=False)
    """What the adapter's source asks for. The `Authorization` header is never taken for it: that is the server's."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.adapter_id and self.merged_adapters is not None:
            raise RequestInvalid("send either adapter_id or merged_adapters, not both", where="merged_adapters")
        return self

    @field_validator("adapter_id")
    @classmethod
    def _base_by_its_name(cls, adapter_id: str) -> str:
        return "" if adapter_id == LORAX_BASE_ID else adapter_id

    @property
    def merge(self) -> MergeAsk | None:
        """The mix, without dialect."""
        return None if self.merged_adapters is None else self.merged_adapters.ask()


class Parameters(AdapterParameters):
    """LoRAX's `parameters`; each may be null, which is unset."""

    not_implemented: ClassVar = {"watermark": False}

    do_sample: bool = False
    """Draw tokens by their probability; greedy without it, unless temperature, top_k, top_p or typical_p say so."""
    temperature: float | None = Field(default=None, ge=0)
    top_k: int | None = Field(default=None, gt=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    typical_p: float | None = Field(default=None, gt=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    best_of: int | None = Field(default=None, gt=0)
    """Draw so many answers and send the one with the highest mean log-probability. Not in a stream."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Unset: what the adapter's contract says, else as many as fit."""
    stop: ListOf[_Text] = Field(default=[])
    ignore_eos_token: bool = False
    truncate: int | None = Field(default=None, gt=0)
    """Keep only so many tokens of the prompt, its last ones."""
    apply_chat_template: bool = False
    """Send `inputs` as one user's message through the base's chat template."""
    response_format: ResponseFormat | None = None
    return_full_text: bool = False
    """Put the prompt before the answer."""
    details: bool = False
    decoder_input_details: bool = False
    """Details with the log-probability of each token of the prompt. Not in a stream."""
    return_k_alternatives: int | None = Field(default=None, gt=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _several_answers_are_drawn(self) -> Self:
        if self.num_answers > 1 and not self.wanted_temperature:
            raise RequestInvalid(
                "best_of needs sampling",
                where="best_of",
                why="greedy answers are all the same",
                mend="set do_sample to true, or send a temperature above 0",
            )
        return self

    @property
    def num_answers(self) -> int:
        return self.best_of or 1

    @property
    def wants_details(self) -> bool:
        return self.details or self.decoder_input_details

    @property
    def wanted_temperature(self) -> float | None:
        """LoRAX's rules: 0 is greedy; do_sample, top_k, top_p, typical_p or a temperature other than 1 sample.

        A temperature of 1 samples with best_of alone. None: not said.
        """
        if self.temperature == 0:
            return 0.0
        is_cut = self.top_k is not None or any(
            share is not None and share < 1 for share in (self.top_p, self.typical_p)
        )
        is_said = self.temperature is not None and (self.temperature != 1 or self.num_answers > 1)
        if self.do_sample or is_cut or is_said:
            return 1.0 if self.temperature is None else self.temperature
        return None


class GenerateBody(Body):
    """A prompt and how to complete it."""

    model_config = ConfigDict(extra="ignore")

    inputs: _Inputs
    """The prompt; or the columns of the adapter's own template."""
    parameters: Parameters = Parameters()

    @model_validator(mode="after")
    def _one_template(self) -> Self:
        if self.parameters.apply_chat_template and not isinstance(self.inputs, str):
            raise RequestInvalid(
                "apply_chat_template is for a text",
                where="apply_chat_template",
                why="columns go through the adapter's own template",
                mend="leave it out, or send `inputs` as a text",
            )
        return self

    def ask(self) -> Ask:
        """The same, without dialect."""
        wanted = self.parameters
        prompt: Prompt = self.inputs
        if isinstance(prompt, str) and wanted.apply_chat_template:
            prompt = [{"role": "user", "content": prompt}]
        return Ask(
            prompt=prompt,
            adapter_id=wanted.adapter_id,
            adapter_source=wanted.adapter_source,
            merge=wanted.merge,
            api_token=wanted.api_token or None,
            max_new_tokens=wanted.max_new_tokens,
            stop=tuple(wanted.stop),
            temperature=wanted.wanted_temperature,
            top_p=wanted.top_p,
            top_k=wanted.top_k,
            typical_p=wanted.typical_p,
            repetition_penalty=wanted.repetition_penalty,
            frequency_penalty=wanted.frequency_penalty,
            presence_penalty=wanted.presence_penalty,
            seed=wanted.seed,
            ignore_eos=wanted.ignore_eos_token,
            num_alternatives=wanted.return_k_alternatives or 0,
            truncate=wanted.truncate,
            form=wanted.response_format.form() if wanted.response_format else None,
            prompt_logprobs=0 if wanted.decoder_input_details else None,
            default_temperature=0.0,
        )

    def stream_ask(self) -> Ask:
        """The same for a stream. Raises RequestInvalid for what only a whole answer can have."""
        if self.parameters.num_answers > 1:
            raise RequestInvalid("best_of is not for streams", where="best_of", mend="leave it out, or do not stream")
        if self.parameters.decoder_input_details:
            where = "decoder_input_details"
            raise RequestInvalid(f"{where} is not for streams", where=where, mend="leave it out, or do not stream")
        return self.ask()


class RootBody(GenerateBody):
    """The body of POST / and POST /invocations."""

    stream: bool = False


class EmbedBody(Body):
    """A text to be turned into a vector."""

    model_config = ConfigDict(extra="ignore")

    inputs: _Inputs
    """The text; or the columns of the adapter's own template."""
    parameters: AdapterParameters = AdapterParameters()

    def ask(self) -> Ask:
        """The same, without dialect."""
        wanted = self.parameters
        return Ask(
            prompt=self.inputs,
            adapter_id=wanted.adapter_id,
            adapter_source=wanted.adapter_source,
            merge=wanted.merge,
            api_token=wanted.api_token or None,
            embed=True,
            default_temperature=0.0,
        )


class TokenizeBody(Body):
    """A text to be cut into tokens."""

    model_config = ConfigDict(extra="ignore")

    inputs: str = Field(max_length=MAX_TOKENIZE_CHARS)
    add_special_tokens: bool = True
    """Begin with the token that begins a prompt, where the base model has one."""
