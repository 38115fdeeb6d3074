"""A whole small fleet on disk: a tiny base, tasks with their data, a fleet file, and adapters with contracts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from atoll.adapters.contract import CONTRACT_NAME, AdapterContract, BaseRef
from atoll.adapters.store import AdapterStore, StoredAdapter
from atoll.config.fleet import FleetConfig
from atoll.config.load import load_fleet, load_task
from atoll.model.source import resolve_base
from support.adapters import save_random_adapter
from support.tiny import save_tiny_base

TASK = """\
name: {name}
dataset:
  test: {name}.jsonl
input_columns: [text]
target_column: answer
prompt: {{template: "Classify: {{text}}"}}
metrics: [{metrics}]
generation: {{max_new_tokens: 6}}
published: {{metric: {metric}, mistral_7b: 0.9, gpt_4: 0.5, source: a paper}}
"""
FLEET = """\
base_model: {base}
output: {output}
adapters:
  colors: {{task: ./colors.yaml}}
  shapes: {{task: ./shapes.yaml, adapter: {{r: 8}}}}
"""


@dataclass(frozen=True)
class FleetOnDisk:
    """A fleet file with all that it names, below one folder."""

    folder: Path
    store: AdapterStore

    @property
    def path(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def config(self) -> FleetConfig:
        return load_fleet(self.path)

    def publish(self, name: str, *, seed: int = 0, r: int = 4, **contract: Any) -> StoredAdapter:
        """Publish a random adapter for `name`, with a contract whose fields can be overridden."""
        base = resolve_base(str(self.folder / "base"))
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
        source = save_random_adapter(self.folder / f"adapter-{name}-{seed}", model, seed=seed, r=r)
        task = load_task(self.folder / f"{name}.yaml")
        fields: dict[str, Any] = {
            "name": name,
            "base": BaseRef(name=base.name, digest=base.digest),
            "task": task.name,
            "prompt": task.prompt,
            "chat": True,
            "input_columns": task.input_columns,
            "target_column": task.target_column,
            "max_length": 64,
            "generation": task.generation,
            "metrics": task.metrics,
        }
        (source / CONTRACT_NAME).write_text(AdapterContract.model_validate(fields | contract).to_json())
        return self.store.publish(name, source)


def make_fleet(folder: Path, *, num_examples: int = 8) -> FleetOnDisk:
    """Write base, tasks, data and fleet file; publish nothing."""
    save_tiny_base(folder / "base")
    for name, metrics in (("colors", ["accuracy"]), ("shapes", ["rouge_l", "entity_f1"])):
        (folder / f"{name}.yaml").write_text(
            TASK.format(name=name, metrics=", ".join(metrics), metric=metrics[0]), encoding="utf-8"
        )
        rows = [{"text": f"{name} number {i} brown fox", "answer": f"label {i % 3}"} for i in range(num_examples)]
        write_rows(folder / f"{name}.jsonl", rows)
    (folder / "tiny.yaml").write_text(FLEET.format(base=folder / "base", output=folder / "run"), encoding="utf-8")
    return FleetOnDisk(folder, AdapterStore(folder / "store"))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
