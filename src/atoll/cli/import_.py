"""`atoll import`: a PEFT adapter that was made elsewhere comes into the store."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.completion import task_names
from atoll.cli.options import AsJson, Store
from atoll.cli.output import print_json, size_text

if TYPE_CHECKING:
    from atoll.adapters.peft_io import AdapterWeights
    from atoll.config.task import TaskConfig
    from atoll.model.source import ResolvedBase


def import_(
    folder: Annotated[
        Path, typer.Argument(help="A PEFT adapter's folder, or the .safetensors file in it.", show_default=False)
    ],
    name: Annotated[str, typer.Option("--name", help="What it is called in the store.", show_default=False)],
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Give it a contract: the template, limits and columns of this built-in task or task file.",
            autocompletion=task_names,
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            help="Hold it against this base; with --task the contract's base. The one that its config names otherwise.",
        ),
    ] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Bring a PEFT adapter into the store, after checking that it is whole and that Atoll computes all of it.

    Example: atoll import ./checkpoint-900 --name tickets --task ./tickets.yaml --base-model smollm2-135m-instruct
    """
    from atoll.adapters.store import check_name
    from atoll.cli.loading import open_store
    from atoll.errors import NotFound

    check_name(name)
    source = folder.parent if folder.suffix == ".safetensors" else folder
    if not source.is_dir():
        raise NotFound(f"there is no folder {str(folder)[:200]!r}", mend="name the folder with adapter_config.json")
    with tempfile.TemporaryDirectory(prefix="atoll-import-") as staging:
        missing = _stage(source, Path(staging), name, task, base_model)
        stored = open_store(store).publish(name, Path(staging))
    if as_json:
        print_json({"id": stored.id, "digest": stored.digest, "folder": str(stored.folder), "missing": missing})
        return
    print(f"{stored.id} is in the store ({size_text(stored.size_bytes)}, digest {stored.digest[:12]})")
    for what in missing:
        print(f"note: {what}", file=sys.stderr)


def _stage(source: Path, folder: Path, name: str, task: str | None, base_model: str | None) -> list[str]:
    """Copy what belongs to the adapter, check it, add a contract if asked. Returns what it lacks."""
    from atoll.adapters.contract import CONTRACT_NAME, read_contract
    from atoll.adapters.peft_config import parse_config
    from atoll.adapters.peft_files import CONFIG_NAME
    from atoll.adapters.peft_io import read_adapter
    from atoll.adapters.source import FILES
    from atoll.errors import UsageError
    from atoll.model.source import resolve_base

    weights = read_adapter(source)
    for file in FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    config = parse_config((folder / CONFIG_NAME).read_bytes(), str(source / CONFIG_NAME))
    named = str(config.get("base_model_name_or_path") or "") or None
    has_contract = read_contract(folder) is not None
    if task is not None:
        if has_contract:
            raise UsageError("the adapter has a contract already", where=str(source), mend="leave out --task")
        if base_model is None and named is None:
            raise UsageError("a contract needs a base model, and the config names none", mend="name it: --base-model")
    base = None
    if base_model is not None or task is not None:
        base = resolve_base(str(base_model or named), _tell)
        _check_fit(base, weights)
    if task is not None and base is not None:
        from atoll.tasks.task import find_task

        (folder / CONTRACT_NAME).write_text(_contract(name, find_task(task), base), encoding="utf-8")
        has_contract = True
    return _missing(config, has_contract=has_contract, is_checked=base is not None, source=source)


def _tell(what: str, fraction: float | None) -> None:
    if fraction is None:
        print(what, file=sys.stderr)


def _check_fit(base: ResolvedBase, weights: AdapterWeights) -> None:
    """Hold the shapes against the base's layers, without its weights. Raises AdapterInvalid."""
    import torch
    from transformers import AutoModelForCausalLM

    from atoll.adapters.bank import AdapterBank
    from atoll.model.load import load_config

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(load_config(base.folder), trust_remote_code=False)
    AdapterBank(skeleton, num_slots=1, max_rank=weights.max_rank).check(weights)


def _contract(name: str, task: TaskConfig, base: ResolvedBase) -> str:
    from atoll.adapters.contract import AdapterContract, BaseRef
    from atoll.model.load import load_config, load_tokenizer, max_positions
    from atoll.text.prompt import PromptRenderer

    renderer = PromptRenderer(load_tokenizer(base.folder), task.prompt, task.input_columns, task.target_column)
    contract = AdapterContract(
        name=name,
        base=BaseRef(name=base.name, digest=base.digest),
        task=task.name,
        description=task.description,
        licence=task.licence,
        prompt=task.prompt,
        chat=renderer.uses_chat,
        input_columns=task.input_columns,
        target_column=task.target_column,
        labels=task.labels,
        max_length=max_positions(load_config(base.folder)),
        generation=task.generation,
        metrics=task.metrics,
    )
    return contract.to_json()


def _missing(config: dict[str, Any], *, has_contract: bool, is_checked: bool, source: Path) -> list[str]:
    found = []
    if not has_contract:
        found.append("it has no contract, so requests must bring whole prompts; --task gives it one")
    if not config.get("base_model_name_or_path"):
        found.append("its config names no base model; whoever serves it must know")
    if not is_checked and not has_contract:
        found.append("it was not held against a base model; --base-model does that")
    if not (source / "README.md").is_file():
        found.append("it has no model card (README.md)")
    return found
