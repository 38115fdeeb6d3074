"""IFEval's checks, each with answers that follow an instruction and answers that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import DataError
from atoll.tasks.dataset import load_split
from atoll.tasks.metrics import METRICS, Answer
from atoll.tasks.metrics.ifeval import _CHECKS
from atoll.tasks.metrics.languages import is_in_language
from atoll.tasks.task import find_task

# instruction -> (parameters, an answer that follows it, one that does not)
CASES: dict[str, list[tuple[dict[str, Any], str, str]]] = {
    "change_case:capital_word_frequency": [
        ({"capital_relation": "at least", "capital_frequency": 2}, "ALL of THIS", "ALL of this"),
        ({"capital_relation": "less than", "capital_frequency": 2}, "ALL of this", "ALL of THIS"),
    ],
    "change_case:english_capital": [({}, "THIS IS THE ANSWER.", "THIS is the answer.")],
    "change_case:english_lowercase": [({}, "this is the answer.", "This is the answer.")],
    "combination:repeat_prompt": [({"prompt_to_repeat": "Name it."}, "name it. Rhine", "Rhine")],
    "combination:two_responses": [({}, "one\n******\ntwo", "one\n******\none"), ({}, "a******b", "a******b******c")],
    "detectable_content:number_placeholders": [({"num_placeholders": 2}, "[name] of [place]", "[name] of place")],
    "detectable_content:postscript": [
        ({"postscript_marker": "P.S."}, "Bye.\nP.S. Call me", "Bye. PS Call me"),
        ({"postscript_marker": "P.P.S"}, "Bye.\nP. P. S. Call", "Bye.\nP.S. Call"),
    ],
    "detectable_format:constrained_response": [({}, "My answer is maybe.", "Maybe.")],
    "detectable_format:json_format": [({}, '```json\n{"a": [1]}\n```', "{'a': 1}")],
    "detectable_format:multiple_sections": [
        ({"section_spliter": "Section", "num_sections": 2}, "Section 1\na\nSection 2\nb", "Section 1\na\nSection b")
    ],
    "detectable_format:number_bullet_lists": [
        ({"num_bullets": 2}, "* one\n* two", "* one\n* two\n* three"),
        ({"num_bullets": 2}, "- one\n- two", "**one**\n* two"),
    ],
    "detectable_format:number_highlighted_sections": [
        ({"num_highlights": 2}, "*one* and **two**", "*one* and ** **")
    ],
    "detectable_format:title": [({}, "<<Rivers>>\nRhine", "<Rivers>\nRhine")],
    "keywords:existence": [({"keywords": ["rhine", "c++"]}, "The Rhine in C++", "The Rhine in C")],
    "keywords:forbidden_words": [({"forbidden_words": ["cat"]}, "The category", "The Cat")],
    "keywords:frequency": [({"keyword": "a.b", "frequency": 2, "relation": "at least"}, "a.b A.B", "a.b aXb")],
    "keywords:letter_frequency": [
        ({"letter": "!", "let_frequency": 2, "let_relation": "at least"}, "Oh! No!", "Oh! No."),
        ({"letter": "T", "let_frequency": 1, "let_relation": "less than"}, "an apple", "that"),
    ],
    "language:response_language": [
        ({"language": "de"}, "Das ist nicht der Fluss, den ich mag.", "This is not the river that I like."),
        ({"language": "hi"}, "यह नदी बहुत बड़ी है और इसका पानी साफ है।", "ही नदी खूप मोठी आहे आणि पाणी स्वच्छ आहे."),
        ({"language": "ko"}, "이 강은 길다", "The river is long"),
    ],
    "length_constraints:nth_paragraph_first_word": [
        ({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"}, "One.\n\n'Weekend!' two", "Weekend\n\nno")
    ],
    "length_constraints:number_paragraphs": [({"num_paragraphs": 2}, "one\n***\ntwo", "one\n***\n***\ntwo")],
    "length_constraints:number_sentences": [
        ({"num_sentences": 2, "relation": "at least"}, "Dr. Lee came. She left!", "Dr. Lee came and left."),
        ({"num_sentences": 2, "relation": "less than"}, "It costs 3.5 euros.", "It costs 3. No."),
    ],
    "length_constraints:number_words": [({"num_words": 3, "relation": "at least"}, "one two three", "one two")],
    "punctuation:no_comma": [({}, "one and two", "one, two")],
    "startend:end_checker": [({"end_phrase": "Is there more?"}, 'So. "is there more?"', "Is there more? No.")],
    "startend:quotation": [({}, '"Rhine"', "Rhine")],
}  # fmt: skip


def credit(metric: str, prediction: str, names: list[str], kwargs: list[dict[str, Any]]) -> float:
    return METRICS[metric].score([Answer(prediction, json.dumps(names), {"kwargs": json.dumps(kwargs)})])


@pytest.mark.parametrize("name", sorted(_CHECKS))
def test_an_instruction_tells_who_follows_it(name: str) -> None:
    for kwargs, follows, fails in CASES[name]:
        assert credit("ifeval_strict", follows, [name], [kwargs]) == 1, follows
        assert credit("ifeval_strict", fails, [name], [kwargs]) == 0, fails
        assert credit("ifeval_loose", "  ", [name], [kwargs]) == 0


@pytest.mark.parametrize(
    "text", ["[" * 30_000, "<<" * 15_000, "!" * 30_000 + "x", "* " * 15_000, "\n\n" * 9_999, "\0\ud800"]
)
def test_absurd_answers_follow_something_or_nothing(text: str) -> None:
    for name, cases in CASES.items():
        assert credit("ifeval_loose", text, [name], [cases[0][0]]) in (0, 1)


def test_all_instructions_must_be_followed() -> None:
    names, kwargs = ["punctuation:no_comma", "startend:quotation"], [{}, {}]
    assert credit("ifeval_strict", '"a b"', names, kwargs) == 1
    assert credit("ifeval_strict", '"a, b"', names, kwargs) == 0


def test_the_loose_reading_leaves_out_an_opening_line() -> None:
    answer = "Sure, here it is:\nRhine and Elbe"
    assert credit("ifeval_strict", answer, ["punctuation:no_comma"], [{}]) == 0
    assert credit("ifeval_loose", answer, ["punctuation:no_comma"], [{}]) == 1
    assert credit("ifeval_loose", '**"Rhine"**', ["startend:quotation"], [{}]) == 1


@pytest.mark.parametrize(
    ("names", "kwargs"),
    [
        (["no:such_check"], [{}]),
        (["punctuation:no_comma"], []),
        (["keywords:existence"], [{}]),
        (["language:response_language"], [{"language": "xx"}]),
        ("text", [{}]),
    ],
)
def test_instructions_that_cannot_be_read_are_errors_of_the_data(names: Any, kwargs: Any) -> None:
    with pytest.raises(DataError, match="instructions cannot be read"):
        credit("ifeval_strict", "x", names, kwargs)


def test_every_instruction_of_the_data_has_a_check(loraland: Path) -> None:
    examples = load_split(find_task("ifeval"), "test", data_root=loraland, for_scoring=True)
    names = {name for example in examples for name in json.loads(example.row["instruction_id_list"])}
    assert names == _CHECKS.keys() == CASES.keys()
    languages = {
        kwargs["language"] for example in examples for kwargs in json.loads(example.columns["kwargs"])
        if "language" in kwargs
    }  # fmt: skip
    assert all(is_in_language("", code) is False for code in languages)
    for metric in ("ifeval_loose", "ifeval_strict"):
        answers = [Answer(e.row["prompt"], e.row["instruction_id_list"], e.columns) for e in examples]
        assert 0 < METRICS[metric].score(answers) < 0.3


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ar", "هذا هو النهر الذي أحبه في هذا البلد"),
        ("fa", "این رودخانه را دوست دارم و از آن آب می خورم"),
        ("ur", "یہ دریا بہت لمبا ہے اور اس کا پانی صاف ہے"),
        ("mr", "ही नदी मोठी आहे आणि पाणी स्वच्छ आहे"),
        ("ne", "यो नदी लामो छ र पानी सफा छ"),
        ("ru", "Это река, и она не такая большая, как я думал"),
        ("bg", "Това е река и не е голяма, но се харесва на хората"),
        ("it", "Questo è il fiume che non è della città ma con le barche"),
        ("pt", "Este é o rio que não tem peixes, mas uma ponte do século passado"),
        ("fi", "Tämä on joki, joka on pitkä, mutta se ei ole syvä"),
        ("vi", "Đây là con sông dài và không có nước trong"),
        ("sw", "Huu ni mto wa watu wa kijiji na maji yake ni safi"),
        ("th", "แม่น้ำนี้ยาว"),
        ("pa", "ਇਹ ਨਦੀ ਲੰਬੀ ਹੈ"),
        ("en", "This is the river that I like and it is long"),
    ],
)
def test_languages_are_told_apart(code: str, text: str) -> None:
    found = {other for other in ("ar", "fa", "ur", "hi", "mr", "ne", "ru", "bg", "it", "pt", "fi", "vi", "sw", "th",
                                 "pa", "en", "de", "ko", "bn") if is_in_language(text, other)}  # fmt: skip
    assert found == {code}
