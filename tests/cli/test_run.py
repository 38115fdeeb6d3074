"""`atoll run` and `atoll ls` over a tiny base and real adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from atoll.adapters.peft_files import WEIGHTS_NAME
from atoll.cli.ls import ls
from atoll.cli.run import run
from atoll.errors import AdapterInvalid, AdapterNotFound, AtollError, RequestInvalid, UsageError
from support.engines import World
from support.servers import MAX_NEW_TOKENS

app = typer.Typer()
app.command()(run)
app.command()(ls)


def invoke(world: World, *arguments: str, text: str | None = None) -> Result:
    command = [arguments[0], "--store", str(world.base_folder.parent / "store"), *arguments[1:]]
    return CliRunner().invoke(app, command, input=text)


def answer(world: World, *arguments: str) -> dict[str, Any]:
    """The answer as JSON; the base model is given, as adapters without a contract do not know theirs."""
    result = invoke(world, "run", *arguments, "--base-model", str(world.base_folder), "--json")
    assert result.exit_code == 0, result.output + str(result.exception)
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def error(world: World, *arguments: str) -> AtollError:
    result = invoke(world, "run", *arguments)
    assert isinstance(result.exception, AtollError), result.output
    return result.exception


def test_the_text_fills_the_adapters_only_column(world: World) -> None:
    result = invoke(world, "run", "sentiment", "a fine film")  # the base model is the contract's
    assert result.exit_code == 0, result.output + str(result.exception)
    by_column = answer(world, "sentiment", "--input", "text=a fine film")
    assert result.stdout == by_column["text"] + "\n"
    assert by_column["adapter"] == "sentiment@1"
    assert by_column["num_new_tokens"] <= MAX_NEW_TOKENS
    raw = answer(world, "sentiment", "a fine film", "--raw")
    assert raw["num_prompt_tokens"] < by_column["num_prompt_tokens"]


def test_text_may_be_piped(world: World) -> None:
    piped = invoke(world, "run", "sentiment", text="a fine film")
    assert piped.stdout == invoke(world, "run", "sentiment", "a fine film").stdout


def test_several_columns_are_asked_for(world: World) -> None:
    refused = error(world, "compare", "x")
    assert isinstance(refused, UsageError)
    assert refused.what == "compare has 2 input columns: left, right"
    assert refused.mend == 'atoll run compare --input left="..." --input right="..."'
    assert answer(world, "compare", "--input", "left=a", "--input", "right=b=c")["text"]


def test_the_bare_base_and_adapters_without_a_contract(world: World) -> None:
    limit = ("--max-new-tokens", "8")
    base, raw = answer(world, "base", "hello", *limit), answer(world, "base", "hello", "--raw", *limit)
    assert base["adapter"] == "base"
    assert base["num_prompt_tokens"] > raw["num_prompt_tokens"]  # the chat template
    stored = answer(world, "alpha", "hello", *limit)
    by_path = answer(world, str(world.base_folder.parent / "alpha"), "hello", *limit)
    assert stored["text"] == by_path["text"] != raw["text"]


def test_the_dtype_is_a_choice(world: World) -> None:
    command = ("run", "base", "x", "--base-model", str(world.base_folder), "--max-new-tokens", "1", "--dtype")
    assert invoke(world, *command, "float32").exit_code == 0
    refused = invoke(world, *command, "float8")
    assert refused.exit_code == 2
    assert "'bfloat16'" in refused.output


def test_a_seed_repeats_a_sampled_answer(world: World) -> None:
    sampled = ("sentiment", "x", "--temperature", "2")
    assert answer(world, *sampled, "--seed", "5")["text"] == answer(world, *sampled, "--seed", "5")["text"]
    assert answer(world, *sampled, "--seed", "5")["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["nobody", "x"], AdapterNotFound, "no adapter 'nobody'"),
        (["sentimnet", "x"], AdapterNotFound, "did you mean 'sentiment'"),
        (["sentiment", "x", "--input", "text=y"], UsageError, "fills the adapter's template"),
        (["sentiment", "--input", "text"], UsageError, "no column's name"),
        (["sentiment", "--input", "txt=x"], RequestInvalid, "no input column 'txt'"),
        (["compare", "--input", "left=x"], RequestInvalid, "'right' is missing"),
        (["sentiment", "x", "--max-new-tokens", "5000"], RequestInvalid, "do not fit"),
        (["sentiment", "--raw", "word " * 3000], RequestInvalid, "do not fit"),
    ],
)
def test_wrong_use(world: World, arguments: list[str], kind: type[AtollError], message: str) -> None:
    refused = error(world, *arguments)
    assert isinstance(refused, kind)
    assert message in str(refused)


def test_a_damaged_adapter(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in world.adapters["sentiment"].folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / WEIGHTS_NAME).write_bytes(b"nothing")
    assert isinstance(error(world, str(folder), "x"), AdapterInvalid)


def test_ls_lists_the_store(world: World, tmp_path: Path) -> None:
    table = invoke(world, "ls").stdout
    assert all(adapter.id in table for adapter in world.adapters.values())
    listed = [json.loads(line) for line in invoke(world, "ls", "--json").stdout.splitlines()]
    assert [entry["id"] for entry in listed] == sorted(adapter.id for adapter in world.adapters.values())
    sentiment = next(entry for entry in listed if entry["id"] == "sentiment@1")
    assert (sentiment["columns"], sentiment["base_model"]) == (["text"], str(world.base_folder))
    empty = CliRunner().invoke(app, ["ls", "--store", str(tmp_path / "none")])
    assert "atoll tune" in empty.stdout
