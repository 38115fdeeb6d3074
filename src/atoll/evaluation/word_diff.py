"""An answer beside the right one, word by word."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

Change = Literal["same", "added", "missing"]

# A word has the space after it, or every second word of two strangers' texts would be the same: a space.
_WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")


@dataclass(frozen=True)
class Span:
    """Words that a text shares with the reference, has beyond it, or lacks."""

    change: Change
    text: str


def word_diff(reference: str, answer: str, *, max_words: int) -> tuple[Span, ...]:
    """How `answer` differs from `reference`, white space aside.

    An answer that has nothing in common with it comes as it is, and so does one where a text has more than `max_words`:
    comparing takes their square.
    """
    expected, given = _WORD.findall(reference), _WORD.findall(answer)
    if max(len(expected), len(given)) > max_words:
        return (Span("same", answer),)
    old, new = ([word.strip() for word in words] for words in (expected, given))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if not matcher.get_matching_blocks()[:-1]:
        return (Span("same", answer),) if answer else ()
    spans = []
    for tag, start, end, new_start, new_end in matcher.get_opcodes():
        if tag == "equal":
            spans.append(Span("same", "".join(given[new_start:new_end])))
            continue
        spans.append(Span("missing", "".join(expected[start:end])))
        spans.append(Span("added", "".join(given[new_start:new_end])))
    return tuple(span for span in spans if span.text)
