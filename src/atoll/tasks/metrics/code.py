"""pass@1: does the program do what its tests ask?"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

from atoll.tasks.metrics.metric import MAX_ANSWER_CHARS, Stats
from atoll.tasks.sandbox import run_program

_FENCE = re.compile(r"```(?:[\w+-]*\n)?(.*?)(?:```|\Z)", re.DOTALL)


def pass_at_1(prediction: str, _reference: str, problem: str, entry_point: str, test: str) -> Stats:
    """(1 if the one answer passes all of the problem's tests, 1). Chen et al. 2021, HumanEval, with one sample.

    problem: the start of a module, with the head of the function `entry_point` and its docstring. test: defines
    `check(candidate)`. The answer is the function's body or a whole function, also in a Markdown code fence.
    """
    program = assemble(prediction, problem, entry_point)
    if program is None or not entry_point.isidentifier():
        return 0.0, 1.0
    return float(run_program(f"{program}\n\n{test}\n\ncheck({entry_point})\n").passed), 1.0


def assemble(prediction: str, problem: str, entry_point: str) -> str | None:
    """The module that an answer and its problem make; None where none of its readings is Python."""
    text = prediction[:MAX_ANSWER_CHARS]
    fenced = _FENCE.search(text)
    code = (fenced[1] if fenced else text).strip("\n").rstrip()
    if not code.strip():
        return None
    if re.search(rf"^def {re.escape(entry_point)}\b", textwrap.dedent(code), re.MULTILINE):
        readings = [textwrap.dedent(code)]
    elif code[0].isspace():
        readings = [_first_block(code)]
    else:
        readings = [textwrap.indent(code, "    "), _first_block("    " + code)]
        readings = readings[::-1] if _has_lost_indentation(code) else readings
    programs = (f"{problem.rstrip()}\n{reading}\n" for reading in readings)
    return next((program for program in programs if _is_python(program)), None)


def _has_lost_indentation(code: str) -> bool:
    """Whether only the first line of a body stands at the margin, as in an answer that a server has stripped."""
    first, *rest = [line for line in code.split("\n") if line.strip()]
    following = rest[0] if rest else ""
    return len(following) - len(following.lstrip()) >= (8 if first.rstrip().endswith(":") else 4)


def _first_block(code: str) -> str:
    """The indented lines that a body begins with; what a model adds after the function is left out."""
    lines = code.split("\n")
    ends = (number for number, line in enumerate(lines) if number and line.strip() and not line[0].isspace())
    return "\n".join(lines[: next(ends, len(lines))])


def _is_python(program: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in the answer: the answer's affair
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # all that the parser raises on bad text
        return False
    return True
