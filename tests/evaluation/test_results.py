"""Scores, verdicts, report and plot from answers written by hand."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from atoll.config.task import PublishedScores
from atoll.evaluation.outputs import ADAPTER, BASE
from atoll.evaluation.plot import scores_svg
from atoll.evaluation.report import markdown, summary_lines, terminal_table
from atoll.evaluation.scores import example_statistics
from atoll.tasks.metrics import METRICS
from support.answers import make_results, output, outputs, record

SVG = "{http://www.w3.org/2000/svg}"


def test_a_failure_counts_as_zero_whatever_the_metric() -> None:
    references = {
        "accuracy": "",  # an empty answer would be right
        "exact_match": "",
        "rouge_l": "some words",
        "entity_f1": '{"person": ["Ann"]}',
        "accuracy_flex_as_published": "0",
        "sql_execution": "SELECT name FROM players",
        "sql_canonical": "SELECT name FROM players",
        "wikisql_logical": "SELECT name FROM table",
        "wikisql_execution": "SELECT name FROM table",
        "ifeval_loose": '["punctuation:no_comma"]',
        "ifeval_strict": '["punctuation:no_comma"]',
    }
    columns = {"table": "name", "references": '["a"]', "answers": '["0"]', "kwargs": "[{}]"}
    columns |= {"problem": "def f():", "entry_point": "f", "test": ""}
    for name, metric in METRICS.items():
        failed = output("half an answer", references.get(name, "0"), error="it broke")
        rows = example_statistics(metric, [failed.model_copy(update={"columns": columns})])
        assert metric.aggregate(rows[0].tolist()) == 0.0, name


def test_a_measure_of_order_is_compared_like_the_others() -> None:
    scale = [str(number / 10) for number in range(50)]
    tuned = [output(number, number, index) for index, number in enumerate(scale)]
    base = [output("2.5", number, index) for index, number in enumerate(scale)]
    scored = make_results((record(metrics=("spearman", "closeness")), base, tuned)).members[0]
    assert scored.primary.scores[ADAPTER].value == pytest.approx(1)
    assert scored.primary.scores[BASE].value == 0
    assert scored.primary.against[BASE].verdict == "beats"


def test_a_failure_lowers_the_score_of_the_others() -> None:
    answers = [*outputs(9, 9), output("yes", "yes", 9, error="it broke")]
    scored = make_results((record(), outputs(0, 10), answers)).members[0]
    assert scored.primary.scores[ADAPTER].value == pytest.approx(0.9)
    assert [(f.contender, f.example_id, f.error) for f in scored.failures] == [
        (ADAPTER, "0000000000000009", "it broke")
    ]


@pytest.mark.parametrize(
    ("num_base", "num_tuned", "verdict"),
    [(30, 90, "beats"), (90, 30, "loses to"), (50, 52, "no difference shown"), (50, 50, "no difference shown")],
)
def test_beats_is_said_only_where_the_tests_say_so(num_base: int, num_tuned: int, verdict: str) -> None:
    results = make_results((record(), outputs(num_base, 100), outputs(num_tuned, 100)))
    comparison = results.members[0].primary.against[BASE]
    assert comparison.verdict == verdict
    assert comparison.lift.value == pytest.approx((num_tuned - num_base) / 100)
    text = markdown(results) + "\n".join(summary_lines(results))
    # The legend says what *beats* means; a claim names whom.
    assert ("| beats base |" in text) == (verdict == "beats")


def test_three_of_three_beat_no_published_score() -> None:
    published = PublishedScores(metric="accuracy", gpt_4=0.6, source="a paper")
    few = make_results((record(published=published), outputs(0, 3), outputs(3, 3))).members[0]
    many = make_results((record(published=published), outputs(0, 100), outputs(100, 100))).members[0]
    assert [item.verdict for item in few.published_comparisons] == ["no difference shown"]
    assert [item.verdict for item in many.published_comparisons] == ["beats"]
    assert few.primary.against[BASE].verdict == "no difference shown"  # p is 1/4 at best


def test_published_scores_are_held_against_their_own_measure() -> None:
    published = PublishedScores(metric="accuracy", mistral_7b=0.959, gpt_4=0.5, source="a paper")
    both = record(metrics=("accuracy", "accuracy_flex_as_published"), published=published)
    rambling = [output("1, I think", "1", i) for i in range(100)]
    scored = make_results((both, rambling, rambling)).members[0]
    assert scored.primary.scores[ADAPTER].value == 0.0
    assert [(c.contender, c.metric, c.verdict) for c in scored.published_comparisons] == [
        ("gpt_4", "accuracy_flex_as_published", "beats"),
        ("mistral_7b", "accuracy_flex_as_published", "beats"),
    ]
    other = record(metrics=("exact_match",), published=published)
    assert make_results((other, rambling, rambling)).members[0].published_comparisons == ()


def test_the_plot_is_one_self_contained_svg_with_bars_from_zero() -> None:
    published = PublishedScores(metric="accuracy", mistral_7b=0.8, gpt_4=0.6, source="a <paper> & more")
    results = make_results(
        (record(published=published), outputs(25, 100), outputs(50, 100)),
        (record("a & <b>"), outputs(10, 100), outputs(75, 100)),
        fleet="odd & <fleet>",
    )
    svg = scores_svg(results)
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    for element in root.iter():
        assert element.tag.removeprefix(SVG) not in ("script", "image", "style", "foreignObject", "use")
        assert not any(name.endswith("href") or name.startswith("on") for name in element.attrib)
    assert "url(" not in svg
    bars = [path.attrib["d"] for path in root.iter(f"{SVG}path") if path.attrib.get("aria-roledescription") == "bar"]
    shapes = [re.match(r"M([\d.]+),[\d.]+h([\d.]+)v", bar) for bar in bars]
    assert [float(shape[1]) for shape in shapes if shape] == [0.0] * 4
    widths = sorted(float(shape[2]) for shape in shapes if shape)
    assert widths == pytest.approx([520 * share for share in (0.10, 0.25, 0.50, 0.75)])
    texts = {"".join(element.itertext()) for element in root.iter(f"{SVG}text")}
    assert {"published: GPT-4", "published: Mistral-7B, tuned", "base model", "adapter", "1.0"} <= texts
    assert scores_svg(results) == svg


def test_without_published_scores_nothing_is_said_of_them() -> None:
    results = make_results((record(), outputs(10, 100), outputs(90, 100)))
    text = markdown(results) + scores_svg(results) + "\n".join(summary_lines(results))
    assert "GPT-4" not in text
    assert "(*)" not in text
    assert [str(column.header) for column in terminal_table(results).columns][-1] == "adapter vs base"


def test_text_from_outside_does_not_break_the_report() -> None:
    failed = [*outputs(9, 9), output("", "yes", 9, error="line | one\n# two")]
    results = make_results((record(), outputs(0, 10), failed), fleet="a|b\n# c [red]")
    text = markdown(results)
    assert "\n# two" not in text
    assert "\n# c" not in text
    assert "line \\| one # two" in text
    assert terminal_table(results).row_count == 1
