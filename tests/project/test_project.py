"""What the project's own files say agrees: Makefile, pyproject, lock, examples, documents."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from atoll.config.load import load_fleet
from atoll.tasks.dataset import SPLITS, load_split
from atoll.tasks.metrics import METRICS
from atoll.tasks.task import find_task

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
FLEETS = sorted(path for path in (ROOT / "examples").rglob("*.yaml") if path.name != "task.yaml")
TARGETS = {"setup", "demo", "test", "nightly", "check", "bench"}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))


def text(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_make_has_the_promised_targets_and_all_of_them_set_up_first() -> None:
    rules = dict(re.findall(r"^([a-z]+):(.*)$", text("Makefile"), flags=re.MULTILINE))
    assert rules.keys() >= TARGETS
    for target in TARGETS - {"setup"}:
        assert "setup" in rules[target].split(), target
    for target in sorted(TARGETS):
        assert f'"make {target} ' in text("Makefile"), f"`make help` does not mention {target}"


def test_nightly_finds_every_test_that_has_a_full_size() -> None:
    """By what they import, so no other file may look at the environment itself."""
    own = Path(__file__)
    readers = [path for path in (ROOT / "tests").rglob("*.py") if path != own and "ATOLL_NIGHTLY" in path.read_text()]
    assert readers == [ROOT / "tests/support/scale.py"]
    command = re.search(r"ATOLL_NIGHTLY=1 .* tests/load \\\n\t\t\$\$\((.*)\)\n", text("Makefile"))
    assert command is not None
    found = subprocess.run(command[1], shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {"tests/server/test_usage_faults.py", "tests/engine/test_constraint.py"} <= set(found)


@pytest.mark.parametrize(
    "script", [*(f"scripts/{name}" for name in ("setup", "check", "lock", "debian-tools")), ".ci/run"]
)
def test_scripts_can_be_run(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111, "not executable"
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_the_lock_pins_everything_with_hashes_but_leaves_torch_to_the_machine(pyproject: dict[str, Any]) -> None:
    lock = text("requirements.lock")
    entries = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]
    names = {re.split(r"==", entry)[0] for entry in entries}
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not {name for name in names if re.match(r"(torch|triton|nvidia-.*|cuda-.*)$", name)}
    (torch,) = pyproject["tool"]["uv"]["constraint-dependencies"]
    assert f"\n# {torch}\n" in lock


def test_the_lock_has_all_that_is_declared(pyproject: dict[str, Any]) -> None:
    locked = set(
        re.findall(r"^([a-z0-9-]+)==", text("requirements.lock") + text("requirements-test.lock"), flags=re.MULTILINE)
    )
    assert {normal(name) for name in declared(pyproject)} - {"torch"} <= locked


def test_each_dependency_has_its_reason(pyproject: dict[str, Any]) -> None:
    rows = re.findall(r"^\| ([^|]+) \| ", text(DECISIONS / "0005-libraries-and-lock.md"), flags=re.MULTILINE)
    reasons = {normal(name) for row in rows if not row.startswith(("used ", "---")) for name in row.split(",")}
    assert reasons == {normal(name) for name in declared(pyproject)}


def test_decisions_are_short_and_of_one_form() -> None:
    paths = sorted(DECISIONS.glob("*.md"))
    assert [path.name[:4] for path in paths] == [f"{number:04}" for number in range(1, len(paths) + 1)]
    for path in paths:
        lines = text(path).splitlines()
        assert len(lines) <= 60, path.name
        headings = [line[3:] for line in lines if line.startswith("## ")]
        assert headings == ["Context", "Decision", "Consequences", "Alternatives"], path.name


@pytest.mark.parametrize("path", FLEETS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_fleet_loads_and_its_tasks_exist(path: Path) -> None:
    for member in load_fleet(path).members():
        assert set(find_task(member.task_ref).metrics) <= METRICS.keys()


def test_the_example_with_own_data_has_examples_in_every_split() -> None:
    (member,) = load_fleet(ROOT / "examples" / "tickets" / "tickets.yaml").members()
    task = find_task(member.task_ref)
    messages = {split: {example.row["message"] for example in load_split(task, split)} for split in SPLITS}
    assert sum(map(len, messages.values())) == len(set().union(*messages.values())) == 60
    assert min(map(len, messages.values())) >= 5


def test_the_readme_shows_every_command() -> None:
    from atoll.cli.main import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    missing = {name for name in commands if f"atoll {name}" not in text("README.md")}
    assert not missing, f"README.md does not mention {missing}"


def test_the_readme_shows_every_make_target() -> None:
    missing = {target for target in TARGETS if f"make {target}" not in text("README.md")}
    assert not missing, f"README.md does not mention {missing}"


def test_the_architecture_describes_every_floor() -> None:
    packages = {path.parent.name for path in (ROOT / "src" / "atoll").glob("*/__init__.py")}
    missing = {name for name in packages if f"{name}/" not in text("ARCHITECTURE.md")}
    assert not missing, f"ARCHITECTURE.md does not mention {missing}"


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_between_documents_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text(name))
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    private = re.compile(r"(?<![\w.~}])/(home|root|Users|work)/\w")
    named = [
        f"{name}: {match[0]}"
        for name in listed.stdout.splitlines()
        if (ROOT / name).is_file() and (match := private.search((ROOT / name).read_text("utf-8", errors="ignore")))
    ]
    assert named == []


def declared(pyproject: dict[str, Any]) -> list[str]:
    """The requirements of the package, of development, and of the clients that tests use."""
    project = pyproject["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    lists += [pyproject["dependency-groups"][group] for group in ("clients", "interpreter")]
    return [requirement for requirements in lists for requirement in requirements if normal(requirement) != "atoll"]


def normal(requirement: str) -> str:
    """The normalised name in a requirement or a table."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=~!;\[]", requirement)[0].strip()).lower()
