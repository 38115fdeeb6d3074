"""`atoll show`: all that is known of one adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.cli.options import AdapterId, AsJson, Store
from atoll.cli.output import Column, fields_lines, print_json, print_table, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.adapters.contract import AdapterContract
    from atoll.adapters.store import Revision, StoredAdapter

_CONFIG_KEYS = ("r", "lora_alpha", "target_modules", "use_rslora", "base_model_name_or_path")
_MAX_CARD_BYTES = 1 << 20
_MAX_SCORES = 100


def show(adapter: AdapterId, store: Store = None, as_json: AsJson = False) -> None:
    """Show one adapter: its contract, scores, cost, sizes, files and revisions.

    Example: atoll show sentiment@2
    """
    from atoll.cli.loading import open_store

    opened = open_store(store)
    stored = opened.resolve(adapter)
    revisions = opened.revisions(stored.name)
    fields = _fields(stored, revisions)
    if as_json:
        print_json(fields)
        return
    print("\n".join(fields_lines(_texts(stored, fields))))
    if fields["scores"]:
        print()
        columns = (Column("score on"), Column("metric"), *(Column(name, is_number=True) for name in ("value", "95 %")))
        print_table(columns, [_score_cells(score) for score in fields["scores"]])
    print()
    columns = (Column("revision", is_number=True), Column("digest"), Column("stored"))
    print_table(columns, [(str(entry.revision), entry.digest[:12], entry.created) for entry in reversed(revisions)])


def _fields(stored: StoredAdapter, revisions: list[Revision]) -> dict[str, Any]:
    from dataclasses import asdict

    contract = stored.contract
    return {
        "id": stored.id,
        "digest": stored.digest,
        "folder": str(stored.folder),
        "size_bytes": stored.size_bytes,
        "files": {path.name: path.stat().st_size for path in sorted(stored.folder.iterdir()) if path.is_file()},
        "config": _config(stored.folder),
        "contract": contract.model_dump(mode="json") if contract else None,
        "scores": list(_scores(stored.folder)),
        "revisions": [asdict(entry) for entry in revisions],
    }


def _config(folder: Path) -> dict[str, Any]:
    """What PEFT's config says of the adapter's form."""
    from atoll.adapters.peft_config import parse_config
    from atoll.adapters.peft_files import CONFIG_NAME

    path = folder / CONFIG_NAME
    config = parse_config(path.read_bytes(), str(path))
    return {key: config[key] for key in _CONFIG_KEYS if key in config}


def _scores(folder: Path) -> Iterator[dict[str, Any]]:
    """The scores in the card's `model-index`; a card may come from elsewhere, so what is odd in it is left out."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    card = folder / "README.md"
    if not card.is_file() or card.stat().st_size > _MAX_CARD_BYTES:
        return
    begin, fence, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    if begin.strip() or not fence:
        return
    try:
        data = YAML(typ="safe", pure=True).load(rest.partition("\n---")[0])
    except (YAMLError, ValueError, RecursionError):
        return
    found = 0
    for result in _listed(_listed(_value(data, "model-index"))[:1], "results"):
        for metric in _listed(_value(result, "metrics")):
            value, args = _value(metric, "value"), _value(metric, "args")
            if isinstance(value, int | float) and found < _MAX_SCORES:
                found += 1
                dataset = _value(result, "dataset")
                yield {
                    "dataset": str(_value(dataset, "name"))[:80],
                    "split": str(_value(dataset, "split"))[:40],
                    "metric": str(_value(metric, "type"))[:80],
                    "value": float(value),
                    "low": _number(_value(args, "low")),
                    "high": _number(_value(args, "high")),
                    "num_examples": _number(_value(args, "num_examples")),
                }


def _listed(value: Any, key: str | None = None) -> list[Any]:
    """A list; with a key, the lists of that name in each mapping of a list, one after the other."""
    if not isinstance(value, list):
        return []
    return value if key is None else [item for entry in value for item in _listed(_value(entry, key))]


def _value(mapping: Any, key: str) -> Any:
    return mapping.get(key) if isinstance(mapping, dict) else None


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) else None


def _texts(stored: StoredAdapter, fields: dict[str, Any]) -> dict[str, str]:
    config = fields["config"]
    targets = config.get("target_modules")
    files = ", ".join(f"{name} {size_text(size)}" for name, size in fields["files"].items())
    form = f"rank {config['r']}, alpha {config['lora_alpha']:g}" + (", rsLoRA" if config.get("use_rslora") else "")
    head = {"adapter": stored.id, "digest": stored.digest, "folder": str(stored.folder), "files": files}
    form += f" on {', '.join(targets) if isinstance(targets, list) else targets}"
    if stored.contract is None:
        base = str(config.get("base_model_name_or_path") or "not named")
        return head | {"form": form, "base model": base, "contract": "none: requests bring whole prompts"}
    return head | {"form": form} | _contract_texts(stored.contract)


def _contract_texts(contract: AdapterContract) -> dict[str, str]:
    training = contract.training
    bits = f", {contract.base.quantization_bits} bits" if contract.base.quantization_bits else ""
    limits = contract.generation
    texts = {
        "base model": contract.base.name + bits,
        "task": contract.task + (f": {contract.description}" if contract.description else ""),
        "licence": contract.licence,
        "inputs": ", ".join(contract.prompt.columns),
        "answer": contract.target_column + (f": {', '.join(contract.labels)}" if contract.labels else ""),
        "system": contract.prompt.system or "",
        "prompt": contract.prompt.template,
        "generates": f"at most {limits.max_new_tokens} tokens, temperature {limits.temperature:g}"
        + (f", until {json.dumps(limits.stop, ensure_ascii=False)}" if limits.stop else ""),
    }
    if training is None:
        return texts
    loss = "" if training.validation_loss is None else f", validation loss {training.validation_loss:.4f}"
    return texts | {
        "trained": f"{training.num_examples:,} examples, {training.num_steps:,} steps, {training.num_tokens:,} tokens, "
        f"{training.epochs:.2g} epochs, rate {training.learning_rate:g}, seed {training.seed}{loss}",
        "cost": f"${training.cost_usd:.4f} for {training.seconds / 60:.1f} minutes ({training.price})",
        "made": f"{training.created} by atoll {training.atoll_version}",
    }


def _score_cells(score: dict[str, Any]) -> list[str]:
    has_interval = score["low"] is not None and score["high"] is not None
    interval = f"[{score['low']:.3f}, {score['high']:.3f}]" if has_interval else "-"
    return [f"{score['dataset']} {score['split']}", score["metric"], f"{score['value']:.3f}", interval]
