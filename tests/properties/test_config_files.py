"""No file, however broken, makes the loader fail in another way than by saying what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.config.fleet import FleetConfig
from atoll.config.load import load_fleet, load_task_text
from atoll.config.task import TaskConfig
from atoll.config.template import parse_template
from atoll.errors import ConfigError

SEED = """\
base_model: smollm2-135m-instruct
adapters:
  sentiment: &a {task: glue_sst2, adapter: {r: 8}}
  tickets: *a
trainer: {learning_rate: 1e-3, epochs: 3}
name: "x\\u00e9"
dataset: {train: a.csv}
prompt:
  template: |
    Classify {text}
metrics: [accuracy] # done
"""
# Most random text is no YAML; pieces of it in random order reach further.
PIECES = st.sampled_from(
    [*"{}[]:,-?&*!|>'\"%@`#~ \n\t\\", ": ", "- ", "a", "0", "adapters", "task", "<<", "---\n", "é"]
)
TEXT = st.one_of(st.text(), st.lists(PIECES, max_size=60).map("".join))

KEYS = sorted({*FleetConfig.model_fields, *TaskConfig.model_fields, "a", "task", "r", "train", "path", "template", ""})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(KEYS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8)


def try_task(text: str) -> None:
    """Load a task; on refusal the error must be printable."""
    try:
        load_task_text(text, "t.yaml")
        return
    except ConfigError as error:
        message = str(error)
    assert message.startswith("t.yaml:")
    message.encode()


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text(text: str) -> None:
    try_task(text)


@given(DOCUMENTS)
@settings(max_examples=300, deadline=None)
def test_any_document(document: dict[str, Any]) -> None:
    try_task(json.dumps(document))


@given(st.integers(0, len(SEED)), st.integers(0, 12), TEXT)
@settings(max_examples=300, deadline=None)
def test_any_damage(start: int, length: int, instead: str) -> None:
    try_task(SEED[:start] + instead + SEED[start + length :])


@given(st.one_of(st.binary(), DOCUMENTS.map(lambda document: json.dumps(document).encode())))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_fleet_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_bytes(content)
    try:
        load_fleet(path).members()
        return
    except ConfigError as error:
        message = str(error)
    assert message.startswith(f"{path}:")


@given(st.text(alphabet="{}ab \n", max_size=30))
def test_templates_keep_every_character(template: str) -> None:
    try:
        parts = parse_template(template)
    except ValueError:
        return
    again = "".join(
        f"{{{part.text}}}" if part.is_column else part.text.replace("{", "{{").replace("}", "}}") for part in parts
    )
    assert again == template
    assert all(part.text for part in parts)


@pytest.mark.parametrize("size", [10_000, 1_000_000])
@pytest.mark.parametrize("piece", ["[", "{", "- ", "? ", "&a ", "*", "%", '"', "a: ", "|", "!"])
def test_endless_repetition_is_refused_quickly(piece: str, size: int) -> None:
    with pytest.raises(ConfigError):
        load_task_text(piece * (size // len(piece)), "t.yaml")
