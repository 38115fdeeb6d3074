"""The model card (README.md) of an adapter, with the metadata that model hubs read."""

from __future__ import annotations

import json
from typing import Any

from atoll.adapters.contract import AdapterContract


def model_card(contract: AdapterContract, lora: dict[str, Any]) -> str:
    """Markdown with YAML front matter, from the contract and the adapter's shape; `atoll eval` adds the scores."""
    record = contract.training
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {json.dumps(contract.base.name)}",
        "pipeline_tag: text-generation",
        "tags: [atoll, lora]",
        "---",
        "",
        f"# {contract.name}",
        "",
        contract.description or f"A LoRA adapter for the task `{contract.task}`.",
        "",
        f"- Base model: `{contract.base.name}` (`{contract.base.digest[:19]}`)",
        f"- Shape: rank {lora['r']}, alpha {lora['lora_alpha']}, layers {', '.join(lora['target_modules'])}",
        f"- Prompt: {'as a chat message' if contract.chat else 'as plain text'}, at most {contract.max_length} tokens",
    ]
    if contract.licence:
        lines.append(f"- Licence of the data: {contract.licence}")
    if record is not None:
        loss = "none" if record.validation_loss is None else f"{record.validation_loss:.4f}"
        lines += [
            f"- Training: {record.num_examples} examples, {record.num_steps} steps, {record.num_tokens} tokens, "
            f"peak rate {record.learning_rate:.2g}, seed {record.seed}, validation loss {loss}",
            f"- Cost: {record.seconds:.0f} s, ${record.cost_usd:.4f} ({record.price})",
        ]
    lines += ["", "## Prompt", "", "```text", contract.prompt.template.rstrip(), "```", ""]
    return "\n".join(lines)
