"""IFEval: does an answer follow instructions that a program can check?

Zhou et al. 2023, arXiv 2311.07911. An answer has the credit when it follows all instructions of its prompt. The checks
are written from the paper and its published checkers, with two of our own: sentences are counted by their marks
instead of NLTK's model, and languages are told by script and frequent words instead of langdetect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atoll.errors import DataError
from atoll.tasks.metrics.languages import is_in_language
from atoll.tasks.metrics.metric import MAX_ANSWER_CHARS, Stats

_ABBREVIATIONS = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|jr|sr|inc|[a-z])\.$", re.IGNORECASE)
_CONSTRAINED = ("my answer is yes.", "my answer is no.", "my answer is maybe.")

Kwargs = Mapping[str, Any]


def ifeval_strict(prediction: str, reference: str, kwargs: str) -> Stats:
    """(1 if the answer follows every instruction, 1).

    reference: a JSON list of instruction ids; kwargs: a JSON list of their parameters. Raises DataError.
    """
    return _follows_all([prediction[:MAX_ANSWER_CHARS]], reference, kwargs), 1.0


def ifeval_loose(prediction: str, reference: str, kwargs: str) -> Stats:
    """(1 if every instruction is followed by some reading of the answer, 1). Raises DataError.

    The readings leave out the first line, the last line or both ("Sure, here is ..."), each also without asterisks.
    """
    text = prediction[:MAX_ANSWER_CHARS]
    lines = text.split("\n")
    parts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return _follows_all([*parts, *(part.replace("*", "") for part in parts)], reference, kwargs), 1.0


def _follows_all(readings: Sequence[str], reference: str, kwargs: str) -> float:
    try:
        names, parameters = json.loads(reference), json.loads(kwargs)
        pairs = list(zip(names, parameters, strict=True))
        return float(all(any(_follows(text, *pair) for text in readings) for pair in pairs) and bool(pairs))
    except (KeyError, TypeError, ValueError, RecursionError, re.error) as error:
        mend = "give IFEval's `instruction_id_list` as target and its `kwargs`, lists of one length"
        raise DataError("the instructions cannot be read", where=reference[:200], why=repr(error), mend=mend) from error


def _follows(text: str, name: str, kwargs: Kwargs) -> bool:
    return bool(text.strip()) and _CHECKS[name](text, kwargs)


def _compares(count: int, relation: str, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


def _has_keywords(text: str, kwargs: Kwargs) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in kwargs["keywords"])


def _keyword_frequency(text: str, kwargs: Kwargs) -> bool:
    count = len(re.findall(re.escape(kwargs["keyword"]), text, re.IGNORECASE))
    return _compares(count, kwargs["relation"], kwargs["frequency"])


def _no_forbidden_words(text: str, kwargs: Kwargs) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in kwargs["forbidden_words"])


def _letter_frequency(text: str, kwargs: Kwargs) -> bool:
    return _compares(text.lower().count(kwargs["letter"].lower()), kwargs["let_relation"], kwargs["let_frequency"])


def _num_words(text: str, kwargs: Kwargs) -> bool:
    return _compares(len(re.findall(r"\w+", text)), kwargs["relation"], kwargs["num_words"])


def _num_sentences(text: str, kwargs: Kwargs) -> bool:
    ends = list(re.finditer(r"[.!?]+[\"'”’)\]*]*(?=\s|$)", text))
    count = sum(not _ABBREVIATIONS.search(text[max(0, end.start() - 8) : end.start() + 1]) for end in ends)
    closed = bool(ends) and not text[ends[-1].end() :].strip()
    return _compares(count + (not closed), kwargs["relation"], kwargs["num_sentences"])


def _num_paragraphs(text: str, kwargs: Kwargs) -> bool:
    return bool(_num_parts(re.split(r"\s?\*\*\*\s?", text)) == kwargs["num_paragraphs"])


def _num_parts(parts: Sequence[str]) -> int:
    """How many parts have text; -1 where one that is neither the first nor the last has none."""
    filled = [bool(part.strip()) for part in parts]
    return sum(filled) if all(filled[1:-1]) else -1


def _paragraph_first_word(text: str, kwargs: Kwargs) -> bool:
    paragraphs = text.split("\n\n")
    place = kwargs["nth_paragraph"]
    if sum(bool(part.strip()) for part in paragraphs) != kwargs["num_paragraphs"] or place > len(paragraphs):
        return False
    words = paragraphs[place - 1].split()
    first = re.match(r"[\"']*([^.,?!'\"]*)", words[0]) if words else None
    return first is not None and first[1].lower() == kwargs["first_word"].lower()


def _num_placeholders(text: str, kwargs: Kwargs) -> bool:
    return bool(len(re.findall(r"\[[^\[\]\n]*\]", text)) >= kwargs["num_placeholders"])


def _postscript(text: str, kwargs: Kwargs) -> bool:
    marker = kwargs["postscript_marker"]
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return re.search(pattern, text.lower()) is not None


def _num_highlights(text: str, kwargs: Kwargs) -> bool:
    single = [part for part in re.findall(r"\*[^\n*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", text) if part.strip("*").strip()]
    return bool(len(single) + len(double) >= kwargs["num_highlights"])


def _num_sections(text: str, kwargs: Kwargs) -> bool:
    marks = re.findall(rf"{re.escape(kwargs['section_spliter'])}\s?\d+\s?", text)
    return bool(len(marks) >= kwargs["num_sections"])


def _is_json(text: str, _kwargs: Kwargs) -> bool:
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(text: str, _kwargs: Kwargs) -> bool:
    marked = (
        line[line.find("<<") + 2 : line.rfind(">>")] for line in text.split("\n") if "<<" in line and ">>" in line
    )
    return any(title.strip("<>").strip() for title in marked)


def _num_bullets(text: str, kwargs: Kwargs) -> bool:
    stars = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return bool(len(stars) + len(dashes) == kwargs["num_bullets"])


def _two_responses(text: str, _kwargs: Kwargs) -> bool:
    parts = text.split("******")
    answers = [part.strip() for part in parts if part.strip()]
    return _num_parts(parts) == 2 and answers[0] != answers[1]


def _repeats_prompt(text: str, kwargs: Kwargs) -> bool:
    return text.strip().lower().startswith(kwargs["prompt_to_repeat"].strip().lower())


def _ends_with(text: str, kwargs: Kwargs) -> bool:
    return text.strip().strip('"').lower().endswith(kwargs["end_phrase"].strip().lower())


def _is_quoted(text: str, _kwargs: Kwargs) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def _capital_words(text: str, kwargs: Kwargs) -> bool:
    count = sum(word.isupper() for word in re.findall(r"[\w'-]+", text))
    return _compares(count, kwargs["capital_relation"], kwargs["capital_frequency"])


_CHECKS: dict[str, Callable[[str, Kwargs], bool]] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text, _: text.isupper() and is_in_language(text, "en"),
    "change_case:english_lowercase": lambda text, _: text.islower() and is_in_language(text, "en"),
    "combination:repeat_prompt": _repeats_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _num_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": lambda text, _: any(item in text.lower() for item in _CONSTRAINED),
    "detectable_format:json_format": _is_json,
    "detectable_format:multiple_sections": _num_sections,
    "detectable_format:number_bullet_lists": _num_bullets,
    "detectable_format:number_highlighted_sections": _num_highlights,
    "detectable_format:title": _has_title,
    "keywords:existence": _has_keywords,
    "keywords:forbidden_words": _no_forbidden_words,
    "keywords:frequency": _keyword_frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": lambda text, kwargs: is_in_language(text, kwargs["language"]),
    "length_constraints:nth_paragraph_first_word": _paragraph_first_word,
    "length_constraints:number_paragraphs": _num_paragraphs,
    "length_constraints:number_sentences": _num_sentences,
    "length_constraints:number_words": _num_words,
    "punctuation:no_comma": lambda text, _: "," not in text,
    "startend:end_checker": _ends_with,
    "startend:quotation": _is_quoted,
}
