"""What the Try page is asked: the same names in its address, in its form and in what its script sends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from atoll.errors import RequestInvalid

BASE = "base"
"""How the bare base model is called among contenders."""
MAX_CONTENDERS = 4
MAX_PROMPT_CHARS = 200_000
MAX_NEW_TOKENS = 4096
_MAX_COLUMNS = 64
_COLUMN = "in."


@dataclass(frozen=True, kw_only=True)
class TryState:
    """One state of the page. adapter: whose template is filled; `base` for a free text to the base model.

    inputs: the template's columns; prompt: the text where there is no template. contenders: who answers. None where
    nothing was said: then the adapter's contract decides.
    """

    adapter: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    contenders: tuple[str, ...] = ()
    blind: bool = False
    max_new_tokens: int | None = None
    temperature: float | None = None

    @property
    def query(self) -> str:
        """The page's address in this state, after the question mark."""
        pairs: list[tuple[str, str]] = [("adapter", self.adapter)]
        pairs += [(_COLUMN + column, text) for column, text in self.inputs.items()]
        pairs += [("prompt", self.prompt)] if self.prompt else []
        pairs += [("with", name) for name in self.contenders]
        pairs += [("blind", "1")] if self.blind else []
        for name in ("max_new_tokens", "temperature"):
            value = getattr(self, name)
            pairs += [(name, f"{value:g}")] if value is not None else []
        return urlencode(pairs)


def parse_state(pairs: Iterable[tuple[str, str]]) -> TryState:
    """The state that names and values stand for; other names are left to others. Raises RequestInvalid."""
    inputs: dict[str, str] = {}
    contenders: dict[str, None] = {}
    single: dict[str, str] = {}
    for name, value in pairs:
        if name.startswith(_COLUMN):
            inputs[name.removeprefix(_COLUMN)] = value.replace("\r\n", "\n")
        elif name == "with" and value:
            contenders[value] = None
        else:
            single[name] = value
    prompt = single.get("prompt", "").replace("\r\n", "\n")
    _check_size(inputs, prompt)
    if len(contenders) > MAX_CONTENDERS:
        raise RequestInvalid(f"{len(contenders)} contenders are too many", mend=f"choose at most {MAX_CONTENDERS}")
    return TryState(
        adapter=single.get("adapter", ""),
        inputs=inputs,
        prompt=prompt,
        contenders=tuple(contenders),
        blind=single.get("blind", "") not in ("", "0"),
        max_new_tokens=_whole(single.get("max_new_tokens", "")),
        temperature=_number(single.get("temperature", "")),
    )


def _check_size(inputs: Mapping[str, str], prompt: str) -> None:
    num_chars = len(prompt) + sum(len(column) + len(text) for column, text in inputs.items())
    if num_chars > MAX_PROMPT_CHARS or len(inputs) > _MAX_COLUMNS:
        raise RequestInvalid("the inputs are too long", mend=f"send at most {MAX_PROMPT_CHARS} characters in all")


def _whole(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 8 and 1 <= int(text) <= MAX_NEW_TOKENS):
        mend = f"write a whole number from 1 to {MAX_NEW_TOKENS}"
        raise RequestInvalid("the number of new tokens is not valid", where="max_new_tokens", mend=mend)
    return int(text)


def _number(text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10:
        raise RequestInvalid("the temperature is not valid", where="temperature", mend="write a number from 0 to 10")
    return value
