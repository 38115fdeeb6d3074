"""The report of an evaluation, made from its raw answers alone.

<folder>/results.json, report.md, report.html, scores.svg
"""

from __future__ import annotations

from pathlib import Path

from atoll.evaluation.outputs import MemberRecord, read_inputs, read_run
from atoll.evaluation.plot import scores_svg
from atoll.evaluation.report_examples import ShownExample, shown_examples
from atoll.evaluation.report_html import html
from atoll.evaluation.report_markdown import markdown
from atoll.evaluation.report_terminal import summary_lines, terminal_table
from atoll.evaluation.results import Outputs, Results, Tables, score_run
from atoll.files import write_atomic

__all__ = ["markdown", "summary_lines", "terminal_table", "write_report"]


def write_report(folder: Path) -> Results:
    """Score the raw answers in `folder` and write the report there; equal answers give equal bytes.

    Raises NotFound or DataError for raw files that are missing or damaged.
    """
    run = read_run(folder)
    examples: dict[str, list[ShownExample]] = {}

    def show(member: MemberRecord, outputs: Outputs, tables: Tables) -> None:
        inputs = read_inputs(folder, member)
        number = len(run.members)
        examples[member.name] = shown_examples(member, outputs, tables, inputs, num_members=number, seed=run.seed)

    results = score_run(folder, show)
    write_atomic(folder / "results.json", results.model_dump_json(indent=2) + "\n")
    write_atomic(folder / "scores.svg", scores_svg(results))
    write_atomic(folder / "report.md", markdown(results))
    write_atomic(folder / "report.html", html(results, examples))
    return results
