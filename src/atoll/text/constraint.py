"""What a completion must look like: a grammar, and the tokens that it allows next."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits
from llguidance.hf import from_tokenizer

from atoll.errors import Incompatible, RequestInvalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MAX_GRAMMAR_CHARS = 65_536
MAX_SCHEMA_DEPTH = 32
# What one grammar may cost, to compile it and at each token, in llguidance's units: some ten milliseconds.
_LIMITS = LLParserLimits(max_grammar_size=50_000, initial_lexer_fuel=500_000, step_lexer_fuel=100_000)
# Between the parts of JSON: a space, or a new line and its indentation. Some models write spaces for ever if they may.
_JSON_SPACE = r" |\n[ \t]{0,32}"


class TokenConstraint:
    """One completion's way through a grammar. Not for several threads at once."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> TokenConstraint:
        """The same, at the same place, for another completion."""
        return TokenConstraint(self._matcher.deep_copy())

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """[vocab_size]: the tokens that may come next. Once the grammar has failed all are; `push` then tells."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            return np.ones(vocab_size, np.bool_)
        allowed = np.zeros(vocab_size, np.bool_)
        bits = np.unpackbits(mask, bitorder="little")[:vocab_size]
        allowed[: len(bits)] = bits
        return allowed

    def push(self, token_id: int) -> None:
        """Take one generated token. Raises RequestInvalid when the grammar has become too costly to follow."""
        if not self._matcher.consume_token(token_id):
            raise RequestInvalid(
                "the answer's grammar could not be followed to its end",
                where="response_format",
                why=_first_line(self._matcher.get_error()),
                mend="make the schema or the pattern simpler",
            )


class ConstraintCompiler:
    """Makes constraints for one tokenizer; its methods may run on any thread.

    end_ids: tokens that end a completion. Raises Incompatible for a tokenizer that llguidance cannot read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Iterable[int]) -> None:
        ids = sorted(end_ids)
        try:
            self._tokenizer = from_tokenizer(tokenizer, eos_token=ids)
        except Exception as error:
            what = "structured output needs a tokenizer of the tokenizers library"
            raise Incompatible(what, why=str(error)) from None

    def json_schema(self, schema: Mapping[str, Any]) -> TokenConstraint:
        """Text that is valid JSON for a schema. Raises RequestInvalid for one that is wrong, too large or too deep."""
        text = schema_text(schema)
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _JSON_SPACE})
            return self._compile(grammar)
        except ValueError as error:
            raise _refused(str(error)) from None

    def regex(self, pattern: str) -> TokenConstraint:
        """Text that matches a pattern as a whole. Raises RequestInvalid for one that is wrong or too large."""
        _check_size(pattern)
        return self._compile(LLMatcher.grammar_from_regex(pattern))

    def _compile(self, grammar: str) -> TokenConstraint:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return TokenConstraint(matcher)


def schema_text(schema: Mapping[str, Any]) -> str:
    """A schema as JSON. Raises RequestInvalid for one that is too large or too deep."""
    if nesting_depth(schema) > MAX_SCHEMA_DEPTH:
        raise RequestInvalid(f"the schema is nested deeper than {MAX_SCHEMA_DEPTH} levels", where="response_format")
    text = json.dumps(schema)
    _check_size(text)
    return text


def _check_size(text: str) -> None:
    if len(text) > MAX_GRAMMAR_CHARS:
        raise RequestInvalid(
            f"the schema or pattern has {len(text)} characters",
            where="response_format",
            mend=f"at most {MAX_GRAMMAR_CHARS} are allowed",
        )


def nesting_depth(value: Any) -> int:
    """Levels of nesting, up to one more than allowed; counted without recursion: the value is a stranger's."""
    deepest, todo = 0, [(value, 1)]
    while todo:
        item, depth = todo.pop()
        deepest = max(deepest, depth)
        if depth > MAX_SCHEMA_DEPTH:
            break
        children: Iterable[Any] = ()
        if isinstance(item, Mapping):
            children = item.values()
        elif isinstance(item, list | tuple):
            children = item
        todo.extend((child, depth + 1) for child in children)
    return deepest


def _refused(why: str) -> RequestInvalid:
    return RequestInvalid(
        "the schema or pattern cannot be used",
        where="response_format",
        why=_first_line(why),
        mend="see llguidance's documentation for what is supported",
    )


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:200]
