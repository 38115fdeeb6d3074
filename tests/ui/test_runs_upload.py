"""Uploaded files: hostile names and sizes, columns, and two splits that never share an input."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atoll.errors import AtollError, DataError, NotFound, UsageError
from atoll.server.errors import BodyTooLargeError
from atoll.server.ui.runs_form import RunForm, fleet_yaml, read_form, task_yaml, with_guesses
from atoll.server.ui.runs_upload import Upload, Uploads, guess_target, make_splits, sample_of

CSV = b"id,text,team\n" + b"".join(f"{i},word {i % 30} fox,{'ab'[i % 2]}\n".encode() for i in range(60))


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads", max_bytes=10_000)


def take(uploads: Uploads, content: bytes | Iterable[bytes], title: str = "data.csv") -> Upload:
    chunks = [content] if isinstance(content, bytes) else content

    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def run() -> Upload:
        return await uploads.take(title, stream())

    # The browser of other tests has an event loop in this thread.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, run()).result()


@pytest.mark.parametrize("title", ["../../etc/passwd.csv", "/etc/x.csv", "a\0b.csv", "..\\x.csv", "é" * 300 + ".csv"])
def test_a_name_is_never_a_path(uploads: Uploads, tmp_path: Path, title: str) -> None:
    upload = take(uploads, CSV, title)
    assert upload.path.name == "data.csv"
    assert upload.path.is_relative_to(tmp_path / "uploads")
    assert "/" not in upload.title
    assert upload.title.isprintable()
    assert {path.name for path in tmp_path.iterdir()} == {"uploads"}


@pytest.mark.parametrize("wanted", ["", "..", "../uploads", "0" * 24, "A" * 24, "0" * 24 + "/.."])
def test_an_id_that_is_none_is_not_found(uploads: Uploads, wanted: str) -> None:
    take(uploads, CSV)
    with pytest.raises(NotFound):
        uploads.find(wanted)


def test_a_file_that_is_too_large_leaves_nothing(uploads: Uploads, tmp_path: Path) -> None:
    taken = []

    def endless() -> Iterable[bytes]:
        for number in range(1000):
            taken.append(number)
            yield b"x" * 1000

    with pytest.raises(BodyTooLargeError):
        take(uploads, endless())
    assert len(taken) == 11
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("title", "content"),
    [
        ("data.exe", CSV),
        ("data.parquet", CSV),
        ("data", CSV),
        ("data.csv", b""),
    ],
)
def test_other_kinds_of_files_are_refused(uploads: Uploads, title: str, content: bytes) -> None:
    with pytest.raises(UsageError):
        take(uploads, content, title)


@pytest.mark.parametrize(
    ("title", "content"),
    [
        ("a.csv", b"only\nx\n"),
        ("a.csv", b"a,b\n1,2,3\n"),
        ("a.csv", b"\xff\xfe\x00a"),
        ("a.csv", b'a,b\n"x'),
        ("a.jsonl", b"{not json}\n"),
        ("a.jsonl", b"[1]\n"),
        ("a.jsonl", b"[" * 5000),
        ("a.csv", ",".join(f"c{i}" for i in range(300)).encode() + b"\n" + b"," * 299 + b"\n"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_by_its_own_name(uploads: Uploads, title: str, content: bytes) -> None:
    upload = take(uploads, content, title)
    with pytest.raises(DataError) as caught:
        sample_of(upload)
    assert str(upload.path.parent) not in str(caught.value)


def test_only_the_latest_uploads_are_kept(uploads: Uploads, tmp_path: Path) -> None:
    made = [take(uploads, CSV) for _ in range(25)]
    assert len(list((tmp_path / "uploads").iterdir())) == 20
    uploads.find(made[-1].id)
    with pytest.raises(NotFound):
        uploads.find(made[0].id)


@pytest.mark.parametrize(
    ("columns", "rows", "target"),
    [
        (("label", "text"), [{"label": "x", "text": "y"}], "label"),
        (("id", "team", "text"), [{"id": str(i), "team": "ab"[i % 2], "text": f"t {i}"} for i in range(9)], "team"),
        (("question", "reply"), [{"question": f"q{i}", "reply": f"r{i}"} for i in range(9)], "reply"),
    ],
)
def test_the_column_of_answers_is_guessed(columns: tuple[str, ...], rows: list[dict[str, str]], target: str) -> None:
    assert guess_target(columns, rows) == target


def test_splits_share_no_input_and_keep_every_row_with_an_answer(uploads: Uploads) -> None:
    rows = [{"text": f"t {i % 40}", "team": "" if i % 10 == 3 else "ab"[i % 2], "n": None} for i in range(100)]
    upload = take(uploads, "".join(json.dumps(row) + "\n" for row in rows).encode(), "a.jsonl")
    splits = make_splits(upload, ["text"], "team")
    train, test = ({row["text"] for row in part} for part in (splits.train, splits.test))
    assert train
    assert test
    assert not train & test
    assert len(splits.train) + len(splits.test) + splits.num_left_out == 100
    assert splits.num_left_out == 10
    assert make_splits(upload, ["text"], "team") == splits


def test_too_few_rows_are_told(uploads: Uploads) -> None:
    with pytest.raises(DataError, match="too few"):
        make_splits(take(uploads, b"a,b\n1,x\n1,y\n2,x\n"), ["a"], "b")


# ---- the form


def test_a_form_and_its_files_say_the_same(uploads: Uploads) -> None:
    from atoll.config.load import load_task_text

    form = read_form([("name", "tickets"), ("inputs", "text"), ("target", "team"), ("r", "8"), ("limit", "")])
    form = with_guesses(form, sample_of(take(uploads, CSV)))
    task = load_task_text(task_yaml(form, ["a", "b"] * 5, 3), "task.yaml")
    assert (task.name, task.input_columns, task.target_column) == ("tickets", ("text",), "team")
    assert task.labels == ("a", "b")
    assert task.metrics == ("accuracy",)
    assert "r: 8" in fleet_yaml(form, "some/base", "/runs/tickets")


def test_a_template_follows_the_columns_until_somebody_writes_one(uploads: Uploads) -> None:
    sample = sample_of(take(uploads, CSV))
    first = with_guesses(RunForm(target="team", inputs=("text", "id")), sample)
    assert "{id}" in first.template
    second = with_guesses(first.model_copy(update={"inputs": ("text",)}), sample)
    assert "{id}" not in second.template
    own = first.model_copy(update={"inputs": ("text",), "template": "Sort this: {text}"})
    assert with_guesses(own, sample).template == "Sort this: {text}"


@pytest.mark.parametrize(
    "fields",
    [
        [("name", "../x")],
        [("name", "")],
        [("name", "A")],
        [("r", "0")],
        [("r", "nan")],
        [("epochs", "1000000")],
        [("learning_rate", "-1")],
        [("learning_rate", "inf")],
        [("limit", "-5")],
        [("seed", "99999999999999999999")],
        [("template", "x" * 10_000)],
    ],
)
def test_fields_out_of_range_are_refused(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(UsageError):
        read_form(fields)


@pytest.mark.parametrize(
    "template", ["{", "{unknown}", "{team}", "no column", "{text", "a: b: {text}\n- x\n&y *z !!python"]
)
def test_no_template_makes_another_file_than_it_says(uploads: Uploads, template: str) -> None:
    from atoll.config.load import load_task_text

    form = RunForm(name="x", inputs=("text",), target="team", template=template)
    try:
        text = task_yaml(form, ["a", "b", "c"], 3)
    except AtollError:
        return
    assert load_task_text(text, "task.yaml").prompt.template == template


@pytest.mark.parametrize("label", ["yes", "null", "1", "a: b", "- x", "#c", "\u2028", "é\n", " ", "'\"", "{x}"])
def test_labels_come_through_yaml_unchanged(label: str) -> None:
    from atoll.config.load import load_task_text

    form = RunForm(name="x", inputs=("text",), target="team", template="{text}")
    task = load_task_text(task_yaml(form, [label, "other"] * 5, 3), "task.yaml")
    assert set(task.labels or ()) == {label, "other"}
