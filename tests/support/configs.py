"""Random LoRA configs over a model's own layers, in everything that an adapter's config can vary."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

RANKS = (1, 2, 3, 4, 7, 8, 16, 32, 33, 64, 128)
ALPHAS = (1, 4, 8, 16, 33, 64)


def linear_names(model: Any) -> list[str]:
    """The names of all linear layers but the output head: what "all-linear" targets."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if hasattr(module, "in_features") and module is not head]


def random_config(rng: random.Random, names: Sequence[str]) -> dict[str, Any]:
    """Fields of a LoraConfig that selects at least one of the layers `names`."""
    short = sorted({_short(name) for name in names})
    chosen = rng.sample(short, rng.randint(1, len(short)))
    full = rng.sample(list(names), rng.randint(1, len(names)))
    any_of = "|".join(re.escape(name) for name in chosen)
    config: dict[str, Any] = {
        "r": rng.choice(RANKS),
        "lora_alpha": rng.choice(ALPHAS),
        "use_rslora": rng.random() < 0.4,
        "lora_dropout": rng.choice([0.0, 0.1]),
        "target_modules": rng.choice(["all-linear", chosen, chosen, full, rf".*\.1\.(.*\.)?({any_of})"]),
    }
    if config["target_modules"] is chosen and rng.random() < 0.5:
        config["layers_to_transform"] = rng.choice([0, 1, [0], [1], [0, 1]])
    if config["target_modules"] == "all-linear" and rng.random() < 0.5:
        config["exclude_modules"] = [rng.choice(short)]
    for field, values in (("rank_pattern", RANKS), ("alpha_pattern", ALPHAS)):
        if rng.random() < 0.5:
            patterns = rng.sample(_patterns(names), rng.randint(1, 2))
            # The first that matches counts, and PEFT saves them sorted: in another order they would not mean the same.
            config[field] = {pattern: rng.choice(values) for pattern in sorted(patterns)}
    return config


def _patterns(names: Sequence[str]) -> list[str]:
    """Patterns of each kind that PEFT knows: a layer's last name, its whole one, a regular expression."""
    short = sorted({_short(name) for name in names})
    return [*short, *(re.escape(name) for name in names), r"layers\.1\..*"]


def _short(name: str) -> str:
    return name.rpartition(".")[2]
