"""The bodies of OpenAI's dialect, and the parameters that other servers added to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from atoll.engine.request import MAX_LOGPROBS, MAX_SEED
from atoll.errors import RequestInvalid
from atoll.server.bodies import Body, ListOf
from atoll.server.forms import Form
from atoll.server.openai_forms import ResponseFormat, StructuredOutputs
from atoll.server.openai_messages import ChatMessage, FunctionName, NamedTool, ToolBody, ToolMode, tool_use
from atoll.server.prepare import Ask
from atoll.server.prompts import Conversation, Prompt, TokenIds
from atoll.server.tools import ToolUse

DEFAULT_TEMPERATURE = 1.0
DEFAULT_COMPLETION_TOKENS = 16
MAX_API_TOKEN_CHARS = 1024

_StopString = Annotated[str, Field(min_length=1)]
Texts = str | ListOf[str] | ListOf[int] | ListOf[ListOf[int]]
"""One text, several, the token ids of one, or those of several."""


class StreamOptions(Body):
    """What a stream says beside the text."""

    not_implemented: ClassVar = {"include_obfuscation": False}

    include_usage: bool = False
    """Send one more chunk at the end, with the token counts."""


class ModelBody(Body):
    """Which model answers."""

    model: str = ""
    """An adapter's name or name@revision; the base model's name, or nothing, for the base."""
    adapter_source: Literal["local", "hub", "s3"] | None = None
    """Where `model` comes from when it is no name in the store: `local` for a path below one of the adapter roots."""
    api_token: str | None = Field(default=None, max_length=MAX_API_TOKEN_CHARS, repr=False)
    """What the adapter's source asks for. The `Authorization` header is never taken for it: that is the server's."""
    user: str = ""
    """The caller's name for its user. It changes nothing here."""


class SamplingBody(ModelBody):
    """What completions, chat completions and responses share."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stream: bool = False
    safety_identifier: str = ""
    """Like `user`."""
    prompt_cache_key: str = ""
    """It changes nothing here: whatever of a prompt is known is found."""
    service_tier: Literal["auto", "default"] = "auto"
    """There is one."""

    def sampling_ask(self, prompt: Prompt, **fields: Any) -> Ask:
        """What is asked for, with `fields` for what the kinds of request do not share."""
        return Ask(
            prompt=prompt,
            adapter_id=self.model,
            adapter_source=self.adapter_source,
            api_token=self.api_token,
            temperature=self.temperature,
            top_p=self.top_p,
            default_temperature=DEFAULT_TEMPERATURE,
            **fields,
        )


class GenerationBody(SamplingBody):
    """What completions and chat completions share."""

    columns: dict[str, str] | None = None
    """The columns of the adapter's own template, instead of a prompt."""
    n: int = Field(default=1, gt=0)
    """How many answers to each prompt."""
    max_tokens: int | None = Field(default=None, gt=0)
    top_k: int | None = Field(default=None, ge=-1)
    """0, -1 or unset: off."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0)
    """1 or unset: off."""
    logit_bias: dict[str, float] = Field(default={})
    """What is added to the logits of tokens, by their ids."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    stop: ListOf[_StopString] = Field(default=[])
    """A string or a list of strings that end the answer."""
    ignore_eos: bool = False
    ignore_eos_token: bool = False
    """What LoRAX calls `ignore_eos`."""
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    stream_options: StreamOptions = StreamOptions()

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options.include_usage and not self.stream:
            raise RequestInvalid("stream_options is for streams", where="stream_options", mend="set `stream` to true")
        if self.response_format is not None and self.structured_outputs is not None:
            raise RequestInvalid("send one of response_format and structured_outputs", where="structured_outputs")
        return self

    def form(self) -> Form | None:
        """The form of the answer, None for plain text."""
        wanted = self.response_format or self.structured_outputs
        return wanted.form() if wanted else None

    def generation_ask(self, prompt: Prompt | None, **fields: Any) -> Ask:
        """What is asked for; the prompt is None where none was sent."""
        if (prompt is None) == (self.columns is None):
            given = "neither" if prompt is None else "both"
            raise RequestInvalid(f"send either a prompt or `columns`, not {given}", where="columns")
        return self.sampling_ask(
            self.columns or {} if prompt is None else prompt,
            stop=tuple(self.stop),
            top_k=max(self.top_k or 0, 0),
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=tuple((_token_id(key), bias) for key, bias in self.logit_bias.items()),
            seed=self.seed,
            ignore_eos=self.ignore_eos or self.ignore_eos_token,
            **fields,
        )


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    not_implemented: ClassVar = {"suffix": ""}

    prompt: Texts = ""
    """Taken as it is: no template is applied."""
    best_of: int | None = Field(default=None, gt=0)
    """As many as `n`: no answer is made to be thrown away."""
    echo: bool = False
    """Put the prompt before the answer."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """How many alternatives to report for each token."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _is_text_or_ids(cls, prompt: Any) -> Any:
        return checked_texts(prompt, "prompt")

    @model_validator(mode="after")
    def _can_be_kept(self) -> Self:
        if self.best_of not in (None, self.n):
            raise RequestInvalid("best_of other than n is not implemented", where="best_of", mend="leave it out")
        if self.echo and self.stream and self.logprobs is not None:
            raise RequestInvalid(
                "echo with logprobs is not for streams", where="echo", mend="leave one of them out, or do not stream"
            )
        return self

    def asks(self) -> list[Ask]:
        """The same, without dialect: one ask for each prompt."""
        prompts: Sequence[Prompt | None] = prompts_of(self.prompt) or [None]
        return [
            self.generation_ask(
                prompt,
                max_new_tokens=self.max_tokens,
                default_max_new_tokens=DEFAULT_COMPLETION_TOKENS,
                num_alternatives=self.logprobs or 0,
                prompt_logprobs=self.logprobs if self.echo else None,
                form=self.form(),
            )
            for prompt in prompts
        ]


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    not_implemented: ClassVar = {
        "audio": {},
        "functions": [],
        "function_call": "none",
        "metadata": {},
        "modalities": ["text"],
        "moderation": {},
        "prediction": {},
        "reasoning_effort": "none",
        "store": False,
        "verbosity": "medium",
        "web_search_options": {},
    }

    messages: ListOf[ChatMessage] = Field(default=[])
    max_completion_tokens: int | None = Field(default=None, gt=0)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: ListOf[ToolBody] = Field(default=[])
    tool_choice: ToolMode | FunctionName | NamedTool | None = None
    """A function may be named as OpenAI has it, or by its bare name, as LoRAX has it."""
    parallel_tool_calls: bool = True
    """false: not more than one call in an answer. A forced call is always one."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise RequestInvalid(
                "max_tokens and max_completion_tokens say different things", where="max_tokens", mend="send one of them"
            )
        if self.top_logprobs is not None and not self.logprobs:
            mend = "set `logprobs` to true"
            raise RequestInvalid("top_logprobs is for answers with logprobs", where="top_logprobs", mend=mend)
        return self

    def tool_use(self) -> ToolUse:
        """What the request says of functions. Raises RequestInvalid."""
        choice = self.tool_choice.function if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        functions = [tool.function.function() for tool in self.tools]
        use = tool_use(functions, choice, self.parallel_tool_calls, has_form=self.form() is not None)
        if use.offered and self.columns is not None:
            raise RequestInvalid("an adapter's own template has no tools", where="tools", mend="send `messages`")
        return use

    def asks(self) -> list[Ask]:
        """The same, without dialect."""
        use = self.tool_use()
        messages = [message.message() for message in self.messages]
        ask = self.generation_ask(
            Conversation(messages, use.told) if messages else None,
            max_new_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            num_alternatives=self.top_logprobs or 0,
            form=use.form() or self.form(),
        )
        return [ask]


class EmbeddingBody(ModelBody):
    """POST /v1/embeddings."""

    not_implemented: ClassVar = {"dimensions": None}

    input: Texts
    encoding_format: Literal["float", "base64"] = "float"

    @field_validator("input", mode="before")
    @classmethod
    def _is_text_or_ids(cls, given: Any) -> Any:
        return checked_texts(given, "input")

    def asks(self) -> list[Ask]:
        """The same, without dialect: one ask for each text."""
        return [
            Ask(
                prompt=prompt,
                adapter_id=self.model,
                adapter_source=self.adapter_source,
                api_token=self.api_token,
                embed=True,
                default_temperature=0.0,
            )
            for prompt in prompts_of(self.input) or [""]
        ]


class LoadAdapterBody(Body):
    """POST /v1/load_lora_adapter."""

    lora_name: str
    """The name that requests will use."""
    lora_path: str
    """A PEFT folder below one of the server's adapter roots."""
    load_inplace: bool = True
    """A name that is there already gets a new revision; false: it is refused."""


class UnloadAdapterBody(Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: str


def checked_texts(given: Any, where: str) -> Any:
    """Raise RequestInvalid unless `given` is one of Texts; pydantic would tell of each kind that it is not."""
    if isinstance(given, str) or (isinstance(given, list) and (_are(given, str) or _are(given, int))):
        return given
    if isinstance(given, list) and all(isinstance(ids, list) and _are(ids, int) for ids in given):
        return given
    kinds = "a text, a list of texts, token ids, or a list of them"
    raise RequestInvalid(f"{where} is none of {kinds}", where=where)


def prompts_of(texts: Texts) -> Sequence[Prompt]:
    """The prompts of a request; none where there is nothing."""
    if isinstance(texts, str):
        return [texts] if texts else []
    prompts: list[Prompt] = []
    ids = [item for item in texts if isinstance(item, int)]
    if ids:
        return [TokenIds(tuple(ids))]
    for item in texts:
        if isinstance(item, str):
            prompts.append(item)
        elif isinstance(item, list):
            prompts.append(TokenIds(tuple(item)))
    return prompts


def num_texts(texts: Texts) -> int:
    """How many prompts there are, without making them; nothing counts as an empty one."""
    several = isinstance(texts, list) and texts and not isinstance(texts[0], int)
    return len(texts) if several else 1


def _are(items: list[Any], kind: type) -> bool:
    return all(type(item) is kind for item in items)


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        raise RequestInvalid(f"logit_bias has the key {key[:20]!r}", where="logit_bias", mend="keys are token ids")
    return int(key)
