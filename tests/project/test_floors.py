"""The shape of the code: floors, sizes, what is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "atoll"
FILES = sorted(
    path
    for folder in ("src", "tests", "bench", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)  # the peers' environments
)
MAX_LINES_OF_FILE = 400
MAX_LINES_OF_FUNCTION = 50
USUAL_LINES_OF_FUNCTION = 30
HEAVY = {"torch", "transformers", "pydantic", "fastapi", "duckdb", "pyarrow", "numpy"}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def imports_of(tree: ast.AST) -> Iterator[str]:
    """The top-level names that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file with its number of lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield f"{path.relative_to(ROOT)}: {node.name}", node.end_lineno - node.lineno + 1


def test_each_package_stands_on_a_floor_and_each_floor_exists(pyproject: dict[str, Any]) -> None:
    contract = pyproject["tool"]["importlinter"]["contracts"][0]
    floors = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    modules = {f"atoll.{path.stem}" for path in SOURCE.glob("*.py") if not path.stem.startswith("_")}
    packages = {f"atoll.{path.parent.name}" for path in SOURCE.glob("*/__init__.py")}
    assert floors == modules | packages


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_at_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES_OF_FILE


def test_functions_are_short() -> None:
    lengths = dict(item for path in FILES if SOURCE in path.parents for item in functions_of(path))
    assert {name: length for name, length in lengths.items() if length > MAX_LINES_OF_FUNCTION} == {}
    long = sorted(name for name, length in lengths.items() if length > USUAL_LINES_OF_FUNCTION)
    assert len(long) <= len(lengths) / 10, long


def test_what_is_imported_is_declared(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    extras = [project["optional-dependencies"][extra] for extra in ("notebook", "postgres", "s3", "tracing")]
    normal = {canonical(requirement) for listed in (project["dependencies"], *extras) for requirement in listed}
    # pydantic pins its own core exactly, and gives no other way to its errors; PyTorch's CUDA builds bring triton.
    normal |= {"pydantic-core", "triton"}
    distributions = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCE.rglob("*.py")
        for name in imports_of(ast.parse(path.read_text(encoding="utf-8")))
        if name not in sys.stdlib_module_names
        and name != "atoll"
        and normal.isdisjoint(canonical(distribution) for distribution in distributions.get(name, [name]))
    }
    assert undeclared == set()


def test_the_command_line_imports_heavy_modules_only_inside_functions() -> None:
    for path in (SOURCE / "cli").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert HEAVY.isdisjoint(imports_of(top)), path.name


def canonical(requirement: str) -> str:
    """The normalised name of the distribution that a requirement asks for."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()
