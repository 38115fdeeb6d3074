"""The one place where a row becomes tokens, for training, for evaluation and for serving.

The prompt that is generated from is a strict prefix of the ids that are trained on, because the second is made from the
first: prompt ids, then the completion's ids, then the token that ends an answer.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll.config.task import PromptConfig
from atoll.config.template import TemplatePart, parse_template
from atoll.errors import ConfigError, DataError, Incompatible
from atoll.text.chat import ChatFrame, chat_frame, chat_pieces
from atoll.text.chat_tools import Message, Tool
from atoll.text.encoding import Piece, encoder_of
from atoll.text.tokenizer import completion_end_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_PROMPT_CHARS = 1 << 22
# After these a completion begins at once; after anything else a plain prompt is followed by a space.
_OPENING = tuple("\n\t([{\"'`")
_LIMIT_PERCENTILE = 0.95
# The automatic length limit leaves at least this much of an input column, however long the answer is.
_MIN_COLUMN_TOKENS = 32


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt to generate from; `num_cut_tokens` of its longest input column were left out."""

    ids: list[int]
    num_cut_tokens: int


@dataclass(frozen=True)
class RenderedExample:
    """An example to train on: the prompt, the completion and its end; ids[num_prompt_tokens:] carry the loss."""

    ids: list[int]
    num_prompt_tokens: int
    num_cut_tokens: int


class PromptRenderer:
    """Turns rows into ids by a task's prompt.

    In chat mode the filled template is one user message in the base's chat template. In plain mode it is the prompt
    itself, after the system text and an empty line if there is one. Special tokens are read in a plain template's own
    text, for bases whose format is written by hand, and never in a column, a system text or a chat message.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: PromptConfig,
        input_columns: Sequence[str],
        target_column: str,
        max_length: int | None = None,
    ) -> None:
        """max_length: tokens of prompt and completion together. Raises Incompatible if the base cannot chat."""
        self.uses_chat = bool(tokenizer.chat_template) if prompt.chat_template is None else prompt.chat_template
        if self.uses_chat and not tokenizer.chat_template:
            mend = "remove `chat_template: true` from the task's prompt, or use an instruct model as base"
            raise Incompatible("the base model has no chat template", where="prompt.chat_template", mend=mend)
        self.max_length = max_length
        self.end_id = completion_end_id(tokenizer, self.uses_chat)
        self._encoder = encoder_of(tokenizer)
        self._template: Sequence[TemplatePart] = parse_template(prompt.template)
        self._columns = [column for column in input_columns if column in prompt.columns]
        self._target_column = target_column
        self._system = prompt.system
        # A worked answer goes on where the template's own words end, and below a column's text.
        last = self._template[-1]
        self._answer_gap = "\n" if last.is_column else "" if last.text[-1:].isspace() else " "
        if self.uses_chat:
            self._frame = chat_frame(tokenizer, prompt.system)
        else:
            self._template, self._frame = _plain_frame(self._template, prompt.system)

    def prompt(self, row: Mapping[str, str], reserve_tokens: int = 0) -> RenderedPrompt:
        """The prompt of `row`, cut inside its longest input column so that `reserve_tokens` more fit in max_length.

        Raises DataError if a column is missing, or if the rest of the prompt alone is too long.
        """
        row = self._checked(row, self._columns)
        ids = self._prompt_ids(row)
        if self.max_length is None or len(ids) + reserve_tokens <= self.max_length:
            return RenderedPrompt(ids, num_cut_tokens=0)
        kept = self._prompt_ids(self._cut(row, self.max_length - reserve_tokens, reserve_tokens))
        return RenderedPrompt(kept, num_cut_tokens=len(ids) - len(kept))

    def fitted(self, row: Mapping[str, str]) -> Mapping[str, str]:
        """`row` itself where its prompt fits, else with its longest input column cut. Raises as `prompt` does."""
        row = self._checked(row, self._columns)
        if self.max_length is None or len(self._prompt_ids(row)) <= self.max_length:
            return row
        return self._cut(row, self.max_length, 0)

    def prompt_after(self, row: Mapping[str, str], shots: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a prompt that shows worked examples first, each as its filled template and its target.

        In chat mode all of it is one user message. Nothing is cut. Raises DataError if a column is missing.
        """
        pieces: list[Piece] = []
        for shot in shots:
            self._checked(shot, [*self._columns, self._target_column])
            pieces += [
                *self._filled(shot),
                Piece(f"{self._answer_gap}{shot[self._target_column]}\n\n", is_control=False),
            ]
        return self._framed_ids([*pieces, *self._filled(self._checked(row, self._columns))])

    def messages(self, row: Mapping[str, str]) -> list[Message]:
        """The prompt as chat messages, for a model that writes its own chat template around them. Raises DataError."""
        user: Message = {"role": "user", "content": self.text(row)}
        return [{"role": "system", "content": self._system}, user] if self._system else [user]

    def plain_text(self, row: Mapping[str, str]) -> str:
        """The whole prompt of plain mode, the system text included. Raises DataError."""
        return "".join(piece.text for piece in self._frame.before) + self.text(row)

    def supervised(self, row: Mapping[str, str]) -> RenderedExample:
        """The whole example of `row`. Raises DataError as `prompt` does."""
        self._checked(row, [self._target_column])
        completion = [*self._completion_ids(row[self._target_column]), self.end_id]
        prompt = self.prompt(row, reserve_tokens=len(completion))
        return RenderedExample(prompt.ids + completion, len(prompt.ids), prompt.num_cut_tokens)

    def text(self, row: Mapping[str, str]) -> str:
        """The filled template, without what the chat template puts around it. Raises DataError."""
        return "".join(piece.text for piece in self._filled(self._checked(row, self._columns)))

    def num_column_tokens(self, row: Mapping[str, str]) -> int:
        """The tokens of the longest input column."""
        return max(len(self._encoder.continuation(row[column])) for column in self._columns)

    def _prompt_ids(self, row: Mapping[str, str]) -> list[int]:
        return self._framed_ids(self._filled(row))

    def _framed_ids(self, filled: list[Piece]) -> list[int]:
        if self._frame.trims:
            filled = [Piece("".join(piece.text for piece in filled).strip(), is_control=False)]
        return self._encoder.prompt([*self._frame.before, *filled, *self._frame.after])

    def _filled(self, row: Mapping[str, str]) -> list[Piece]:
        pieces = [
            Piece(row[part.text], is_control=False) if part.is_column else Piece(part.text, not self.uses_chat)
            for part in self._template
        ]
        # A template of a stranger may name one column a hundred thousand times: counted before it is joined.
        if (num_chars := sum(len(piece.text) for piece in pieces)) > MAX_PROMPT_CHARS:
            mend = f"shorten its columns: a prompt may have {MAX_PROMPT_CHARS:,}"
            raise DataError(f"the filled template has {num_chars:,} characters", mend=mend)
        return pieces

    def _completion_ids(self, target: str) -> list[int]:
        lead = "" if target[:1].isspace() or not target else self._frame.lead
        return self._encoder.continuation(lead + target)

    def _cut(self, row: Mapping[str, str], max_tokens: int, num_reserved: int) -> Mapping[str, str]:
        """The row with as many leading characters of its longest column as fit. Raises DataError."""
        column = max(self._columns, key=lambda name: len(self._encoder.continuation(row[name])))

        def with_chars(num_chars: int) -> dict[str, str]:
            return {**row, column: row[column][:num_chars]}

        def num_tokens(num_chars: int) -> int:
            return len(self._prompt_ids(with_chars(num_chars)))

        # More characters may mean fewer tokens here and there; bisect still ends at a length it has seen to fit.
        num_fitting = bisect.bisect(range(len(row[column]) + 1), max_tokens, key=num_tokens)
        if num_fitting:
            return with_chars(num_fitting - 1)
        raise DataError(
            f"the prompt does not fit in {self.max_length} tokens, even without its longest column",
            why=f"the answer takes {num_reserved} of them",
            mend="raise `max_length`, shorten the template, or leave out examples with very long answers",
        )

    def _checked(self, row: Mapping[str, str], columns: Iterable[str]) -> Mapping[str, str]:
        for column in columns:
            if column not in row:
                mend = "the columns given are " + (", ".join(f"`{name}`" for name in row) or "none")
                raise DataError(f"the column `{column}` is missing", mend=mend)
        return row


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, parse_special: bool = False) -> list[int]:
    """The ids of a raw prompt. parse_special: read special tokens in `text`, for callers who write the format by hand.

    Raises Incompatible for a tokenizer without a fast implementation.
    """
    return encoder_of(tokenizer).prompt([Piece(text, is_control=parse_special)])


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> list[int]:
    """The ids of a conversation, ready for the assistant's answer, which may call one of the tools.

    Raises Incompatible if the base has no chat template or its template refuses the messages.
    """
    if not tokenizer.chat_template:
        mend = "send a text prompt instead, or use an instruct model as base"
        raise Incompatible("the base model has no chat template", mend=mend)
    return encoder_of(tokenizer).prompt(chat_pieces(tokenizer, messages, tools))


def length_limit(
    renderer: PromptRenderer, rows: Sequence[Mapping[str, str]], *, max_length: int | None, model_max_length: int
) -> int:
    """The most tokens that an example of a task may have: max_length, or the 95th percentile of `rows`.

    renderer: one without a limit of its own. The percentile is raised where it would leave a row less than 32 tokens
    of its longest column, and never exceeds the model. Raises ConfigError if max_length does. Source of the percentile:
    LoRA Land, arXiv 2405.00732.
    """
    if max_length is not None:
        if max_length > model_max_length:
            mend = f"lower `max_length` to {model_max_length} or less"
            raise ConfigError(
                f"the base model has no more than {model_max_length} positions", where="max_length", mend=mend
            )
        return max_length
    lengths = [len(renderer.supervised(row).ids) for row in rows]
    if not lengths:
        return model_max_length
    limit = percentile(lengths, _LIMIT_PERCENTILE)
    for row, length in zip(rows, lengths, strict=True):
        if length > limit:
            limit = max(limit, length - max(0, renderer.num_column_tokens(row) - _MIN_COLUMN_TOKENS))
    return min(limit, model_max_length)


def num_within(lengths: Sequence[int], max_tokens: int | None) -> int:
    """How many examples from the first on have at most `max_tokens` tokens in all; one at least, where there is one."""
    if max_tokens is None:
        return len(lengths)
    return max(min(1, len(lengths)), bisect.bisect_right(list(itertools.accumulate(lengths)), max_tokens))


def percentile(values: Iterable[int], share: float) -> int:
    """The smallest of `values` that at least `share` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _plain_frame(template: Sequence[TemplatePart], system: str | None) -> tuple[list[TemplatePart], ChatFrame]:
    """The template without the spaces at its end, and a frame that hands them to the completion.

    Most vocabularies hold a word together with the space before it, so a completion begins with the space.
    """
    *parts, last = template
    lead = " "
    if not last.is_column:
        bare = last.text.rstrip(" ")
        lead = " " if bare != last.text or not bare.endswith(_OPENING) else ""
        parts += [TemplatePart(bare, is_column=False)] if bare else []
    else:
        parts.append(last)
    before = (Piece(f"{system}\n\n", is_control=False),) if system else ()
    return parts, ChatFrame(before, after=(), lead=lead, trims=False)
