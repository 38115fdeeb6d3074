"""What `adapter_config.json` may say: whatever changes an adapter's answers is implemented or refused by name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from atoll.adapters.selection import check_pattern, ends_with, pattern_value
from atoll.errors import AdapterInvalid

MAX_NUMBER = 1e6
MAX_PATTERNS = 4096
MAX_REPEATS_IN_ALL = 32

# Fields that say how the adapter was made or is described, not what it computes.
DESCRIPTIVE = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
        "ensure_weight_tying",
    ]
)
IMPLEMENTED = frozenset(
    [
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    ]
)
# These initialisations move part of the base weights into the adapter: without the changed base it computes nonsense.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def parse_config(data: bytes, where: str) -> dict[str, Any]:
    """Parse and check the file's content; AdapterInvalid names the field that is wrong or not implemented."""
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AdapterInvalid(f"not valid JSON: {str(error)[:200]}", where=where) from None
    if not isinstance(config, dict):
        raise AdapterInvalid("not a JSON object", where=where)
    if config.get("peft_type") != "LORA":
        raise AdapterInvalid(f"peft_type {config.get('peft_type')!r} is not supported", where=where, mend="use LORA")
    _check_numbers(config, where)
    _check_selection(config, where)
    _check_features(config, where)
    return config


def config_rank(config: Mapping[str, Any], name: str) -> int:
    """The rank of one module."""
    return int(pattern_value(config.get("rank_pattern") or {}, name, config["r"]))


def config_scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The factor of one module: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
    alpha = pattern_value(config.get("alpha_pattern") or {}, name, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def is_selected(config: Mapping[str, Any], name: str) -> bool:
    """Whether the config selects a module, as far as it does so by names and numbers of layers.

    A regular expression is not run: PEFT writes weights for just the layers that it matched, so they tell the same.
    Source: peft 0.21, `check_target_module_exists`.
    """
    excluded, targets = config.get("exclude_modules") or [], config.get("target_modules")
    if isinstance(excluded, list) and any(ends_with(name, target) for target in excluded):
        return False
    if not isinstance(targets, list) or name in targets:
        return True
    return any(ends_with(name, target) for target in targets) and _is_layer_selected(config, name)


def _is_layer_selected(config: Mapping[str, Any], name: str) -> bool:
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    if layers is None or layers == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    expressions = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    found = next((found for expression in expressions if (found := re.match(expression, name))), None)
    return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def _check_numbers(config: dict[str, Any], where: str) -> None:
    for key, pattern_key, kinds in (("r", "rank_pattern", int), ("lora_alpha", "alpha_pattern", (int, float))):
        patterns = config.get(pattern_key) or {}
        if not isinstance(patterns, dict):
            raise AdapterInvalid(f"{pattern_key} must map patterns to numbers", where=where)
        for holder, value in ((key, config.get(key)), *((pattern_key, value) for value in patterns.values())):
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < MAX_NUMBER:
                kind = "a whole number" if kinds is int else "a number"
                raise AdapterInvalid(
                    f"{holder} must be {kind} above 0 and below {MAX_NUMBER:.0f}, not {str(value)[:40]!r}", where=where
                )
        for pattern in patterns:
            check_pattern(pattern, where)
        num_repeats = sum(pattern.count(sign) for pattern in patterns for sign in "*+{")
        if len(patterns) > MAX_PATTERNS or num_repeats > MAX_REPEATS_IN_ALL:
            raise AdapterInvalid(
                f"{pattern_key} has {len(patterns)} patterns with {num_repeats} repeats",
                where=where,
                why=f"at most {MAX_PATTERNS} patterns and {MAX_REPEATS_IN_ALL} repeats are matched against every layer",
                mend="write module names instead of expressions",
            )


def _check_selection(config: dict[str, Any], where: str) -> None:
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = config.get(key)
        names = value if isinstance(value, list) else [value or ""]
        if not all(isinstance(name, str) for name in names):
            raise AdapterInvalid(f"{key} must be a name or a list of names", where=where)
        if key == "layers_pattern":
            for name in names:
                check_pattern(name, where)
    layers = config.get("layers_to_transform")
    if layers is not None and not all(type(n) is int for n in (layers if isinstance(layers, list) else [layers])):
        raise AdapterInvalid("layers_to_transform must be a whole number or a list of them", where=where)


def _check_features(config: dict[str, Any], where: str) -> None:
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        raise AdapterInvalid(
            f"init_lora_weights {init!r} is not supported",
            where=where,
            why="such an adapter belongs to a changed base model",
            mend="convert it with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    if config.get("use_dora"):
        raise AdapterInvalid(
            "use_dora is not supported",
            where=where,
            why="DoRA also rescales what the base model's layers compute, which the requests of a batch share",
            mend="train it without use_dora (use_rslora is served), or merge it into a base model of its own",
        )
    if config.get("bias", "none") != "none":
        raise AdapterInvalid(f"bias {config['bias']!r} is not supported", where=where, mend="train with bias: none")
    for key, value in config.items():
        is_known = (key in IMPLEMENTED and key != "fan_in_fan_out") or key in DESCRIPTIVE
        if not is_known and value not in (None, False, {}, [], ""):
            raise AdapterInvalid(
                f"the field {key[:60]!r} is not supported",
                where=where,
                why="ignoring it would change the answers in silence",
                mend=f"train the adapter without {key[:60]}",
            )
