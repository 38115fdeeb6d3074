"""From a state of the Try page to what the engine is asked, and to texts that ask the same elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atoll.adapters.store import StoredAdapter
from atoll.config.task import GenerationConfig
from atoll.errors import RequestInvalid
from atoll.server.caller import Caller
from atoll.server.gateway import Gateway
from atoll.server.prepare import Ask
from atoll.server.prompts import Prompt, PromptIds, TokenIds, prompt_ids, prompt_text
from atoll.server.ui import copying
from atoll.server.ui.try_state import BASE, TryState

_FREE_GENERATION = GenerationConfig(max_new_tokens=200)


@dataclass(frozen=True)
class Question:
    """A prompt as all contenders get it. text: as a person reads it. max_length: of prompt and answer together."""

    ids: PromptIds
    text: str
    generation: GenerationConfig
    max_length: int

    @property
    def room(self) -> int:
        """Tokens that the answer may have."""
        return self.max_length - len(self.ids.ids)


class Questions:
    """Makes the questions of one server. Methods read files and tokenise: call them in threads."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def question(self, state: TryState, caller: Caller) -> Question:
        """The prompt of a state, rendered as the API would do it. Raises what is wrong with it."""
        adapter, prompt = self._prompt(state, caller)
        tokenizer = self._gateway.base.tokenizer
        contract = adapter.contract if adapter else None
        return Question(
            ids=prompt_ids(tokenizer, prompt, adapter),
            text=prompt_text(tokenizer, prompt, adapter),
            generation=contract.generation if contract else _FREE_GENERATION,
            max_length=self._gateway.max_length,
        )

    def ask(self, question: Question, state: TryState, contender: str) -> Ask:
        """What one contender is asked: the same tokens and the same settings for all of them."""
        wanted = state.max_new_tokens or question.generation.max_new_tokens
        temperature = question.generation.temperature if state.temperature is None else state.temperature
        return Ask(
            prompt=TokenIds(question.ids.ids),
            adapter_id="" if contender == BASE else contender,
            max_new_tokens=min(wanted, max(1, question.room)),
            stop=question.generation.stop,
            temperature=temperature,
            default_temperature=temperature,
        )

    def _prompt(self, state: TryState, caller: Caller) -> tuple[StoredAdapter | None, Prompt]:
        """Columns for an adapter with a template; else the text, to the base as a chat message where it can chat."""
        if state.adapter not in ("", BASE):
            adapter = self._gateway.preparer.adapter(state.adapter, None, caller)
            if adapter.contract is not None:
                return adapter, dict(state.inputs)
            return adapter, _some(state.prompt)
        if self._gateway.base.tokenizer.chat_template:
            return None, [{"role": "user", "content": _some(state.prompt)}]
        return None, _some(state.prompt)

    def copies(self, state: TryState, url: str, *, has_keys: bool) -> list[copying.Copy]:
        """The same ask of the adapter (or of the base) by other programs."""
        is_base = state.adapter in ("", BASE)
        is_chat = is_base and bool(self._gateway.base.tokenizer.chat_template)
        path, body, answer = (_chat if is_chat else _generate)(state)
        return [
            copying.curl(url + path, body, has_keys=has_keys),
            copying.python(url + path, body, answer, has_keys=has_keys),
            copying.command(*_words(state, self._gateway.base.name)),
        ]


Told = tuple[str, dict[str, Any], str]


def _chat(state: TryState) -> Told:
    body = {
        "model": "",
        "messages": [{"role": "user", "content": state.prompt}],
        "max_tokens": state.max_new_tokens or _FREE_GENERATION.max_new_tokens,
        "temperature": state.temperature or 0,
    }
    return "/v1/chat/completions", body, '["choices"][0]["message"]["content"]'


def _generate(state: TryState) -> Told:
    parameters: dict[str, Any] = {} if state.adapter in ("", BASE) else {"adapter_id": state.adapter}
    if state.max_new_tokens is not None:
        parameters["max_new_tokens"] = state.max_new_tokens
    elif not state.inputs:
        parameters["max_new_tokens"] = _FREE_GENERATION.max_new_tokens
    if state.temperature is not None:
        parameters |= {"temperature": state.temperature} | ({"do_sample": True} if state.temperature == 1 else {})
    inputs: Any = dict(state.inputs) or state.prompt
    return "/generate", {"inputs": inputs, "parameters": parameters}, '["generated_text"]'


def _words(state: TryState, base_name: str) -> list[str]:
    is_base = state.adapter in ("", BASE)
    words = ["run", BASE if is_base else state.adapter]
    words += [word for column, text in state.inputs.items() for word in ("--input", f"{column}={text}")]
    words += [] if state.inputs else [state.prompt]
    words += ["--base-model", base_name] if is_base else []
    words += ["--max-new-tokens", str(state.max_new_tokens)] if state.max_new_tokens is not None else []
    return words + (["--temperature", f"{state.temperature:g}"] if state.temperature is not None else [])


def _some(prompt: str) -> str:
    if not prompt.strip():
        raise RequestInvalid("the prompt is empty", mend="write something to answer")
    return prompt
