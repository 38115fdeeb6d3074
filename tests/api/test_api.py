"""The Python API over a tiny base: what it does, what it shows, and which names it has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import atoll
from atoll.api.html import fields, table
from atoll.errors import AdapterInvalid, AdapterNotFound, ConfigError, NotFound, UsageError

NAMES = ["Adapter", "AtollError", "EvalTable", "Fleet", "Model", "Run", "__version__", "evaluate", "load", "tune"]
TASK = """\
name: mood
dataset:
  train: {path: mood.csv, part: {end: 0.6}}
  test: {path: mood.csv, part: {start: 0.6}}
prompt: {template: "Text: {text}"}
target_column: label
metrics: [accuracy, rouge_l]
generation: {max_new_tokens: 3}
description: "<script>alert(1)</script>"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    rows = "".join(f"some text {number},{('good', 'bad')[number % 2]}\n" for number in range(20))
    (folder / "mood.csv").write_text(f"text,label\n{rows}")
    (folder / "mood.yaml").write_text(TASK)
    return folder


@pytest.fixture(scope="module")
def fleet(folder: Path, tiny_base_folder: Path) -> atoll.Fleet:
    values = {
        "base_model": str(tiny_base_folder),
        "adapters": {"mood": {"task": str(folder / "mood.yaml")}},
        "trainer": {"epochs": 1},
        "output": str(folder / "run"),
    }
    return atoll.Fleet.from_dict(values, name="moods")


@pytest.fixture(scope="module")
def run(folder: Path, fleet: atoll.Fleet) -> atoll.Run:
    return atoll.tune(fleet, store=folder / "store")


def test_the_public_names_are_these_and_all_of_them_are_there() -> None:
    assert sorted(atoll.__all__) == NAMES
    assert set(NAMES) <= set(dir(atoll))
    for name in NAMES:
        assert getattr(atoll, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        atoll.nothing  # noqa: B018


def test_the_import_brings_nothing_along() -> None:
    program = "import sys, atoll; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "atoll" in loaded
    assert {"torch", "transformers", "numpy", "pydantic", "pandas", "atoll.api", "atoll.errors"}.isdisjoint(loaded)


def test_a_fleet_grows_without_changing(fleet: atoll.Fleet, folder: Path) -> None:
    more = fleet.add("dates", "dates", adapter={"r": 4})
    assert more.adapters == ("mood", "dates")
    assert fleet.adapters == ("mood",)
    assert [member.adapter.r for member in more.config.members()] == [16, 4]
    assert more.only("dates").adapters == ("dates",)
    assert more.run_folder == folder / "run"
    assert "dates" in more._repr_html_()


def test_a_wrong_fleet_says_what_is_wrong(fleet: atoll.Fleet, folder: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key `adaptors`"):
        atoll.Fleet.from_dict({"adaptors": {}})
    with pytest.raises(ConfigError, match="at most 256"):
        fleet.add("x", "dates", adapter={"r": 999})
    with pytest.raises(ConfigError, match="no task file"):
        fleet.add("x", "./nothing.yaml")
    with pytest.raises(UsageError, match="already"):
        fleet.add("mood", "dates")
    with pytest.raises(ConfigError, match="no such file"):
        atoll.tune(folder / "nothing.yaml")


def test_a_run_tells_what_it_made(run: atoll.Run, folder: Path) -> None:
    assert run.finished
    assert [adapter.id for adapter in run.adapters] == ["mood@1"]
    assert run["mood"].columns == ("text",)
    assert run.folder == folder / "run"
    assert {"data", "progress", "published"} <= {event["event"] for event in run.events}
    assert "mood@1" in run._repr_html_()
    assert (run["mood"].folder / "adapter_config.json").is_file()


def test_an_adapter_is_found_and_shown_without_its_markup(run: atoll.Run, folder: Path) -> None:
    found = atoll.Adapter.find("mood", store=folder / "store")
    assert found == run["mood"]
    assert [adapter.id for adapter in atoll.Adapter.list(store=folder / "store")] == ["mood@1"]
    for shown in (found._repr_html_(), atoll.Adapter.list(store=folder / "store")._repr_html_()):
        assert "<script>" not in shown
        assert "&lt;script&gt;" in shown
    with pytest.raises(AdapterNotFound):
        atoll.Adapter.find("moon", store=folder / "store")


def test_a_model_answers_text_and_columns_alike_alone_and_together(run: atoll.Run) -> None:
    with run["mood"].load() as model:
        one = model.generate("some text 3")
        assert model.generate([{"text": "some text 3"}, "some text 4"])[0] == one
        assert (
            model.generate("some text 3", max_new_tokens=1)
            == one[: len(model.generate("some text 3", max_new_tokens=1))]
        )
        with pytest.raises(UsageError, match="columns fill a template"):
            model.generate({"text": "x"}, raw=True)
        with pytest.raises(atoll.AtollError, match="no input column 'txt'"):
            model.generate({"txt": "x"})
        assert "mood@1" in repr(model)
        assert "Text" not in model._repr_html_()
    model.close()


def test_the_bare_base_answers_too(tiny_base_folder: Path, folder: Path) -> None:
    with atoll.load(base=str(tiny_base_folder), store=folder / "store") as model:
        assert isinstance(model.generate("hello", max_new_tokens=2), str)
        assert isinstance(model.generate("hello", raw=True, max_new_tokens=2, temperature=1.0, seed=1), str)
        assert model.adapter is None


def test_an_adapter_of_another_base_is_refused(run: atoll.Run, tmp_path: Path) -> None:
    from support.tiny import save_tiny_base

    other = save_tiny_base(tmp_path / "other", seed=9)
    with pytest.raises(AdapterInvalid, match="belongs to the base model"):
        atoll.load(run["mood"], base=str(other))


def test_scores_are_rows_a_data_frame_and_a_table(run: atoll.Run, fleet: atoll.Fleet, folder: Path) -> None:
    scores = atoll.evaluate(fleet, store=folder / "store", limit=6, against=["few-shot:1"], forgetting=False)
    assert scores.folder == folder / "run" / "eval"
    assert [row["metric"] for row in scores] == ["accuracy", "rouge_l"]
    frame = scores.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert {"score_majority"} <= set(frame.columns)
    assert any(column.startswith("score_few") for column in frame.columns)
    assert frame.shape[0] == len(scores) == 2
    assert set(frame["adapter"]) == {"mood@1"}
    assert list(frame["lift"]) == pytest.approx(list(frame["score_adapter"] - frame["score_base"]))
    assert "accuracy" in scores._repr_html_()
    again = atoll.EvalTable.from_folder(scores.folder)
    assert again.rows == scores.rows
    with pytest.raises(NotFound, match="there are no results"):
        atoll.EvalTable.from_folder(folder)


def test_what_notebooks_show_is_text() -> None:
    evil = "<img src=x onerror=alert(1)>"
    for shown in (table((evil,), [(evil, 1, 2.5, None)], evil), fields(evil, {evil: evil})):
        assert "<img" not in shown
    assert "2.500" in table(("n",), [(2.5,)])
