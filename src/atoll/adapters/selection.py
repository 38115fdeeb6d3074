"""Which linear layers an adapter's config selects: PEFT's rules for names and patterns.

Source: peft 0.21, `check_target_module_exists` and `get_pattern_key`; tests hold the two together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from atoll.errors import AdapterInvalid, ConfigError

MAX_PATTERN_CHARS = 256
MAX_PATTERN_REPEATS = 4


def select_modules(names: Iterable[str], target_modules: str | Sequence[str]) -> list[str]:
    """The layers that a fleet's `target_modules` selects. Raises ConfigError if one of them selects nothing."""
    names = list(names)
    if target_modules == "all-linear":
        return names
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    for target in targets:
        if not any(ends_with(name, target) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise ConfigError(
                f"target_modules: no linear layer of the base model is called {target!r}",
                mend=f"use all-linear, or some of {', '.join(known)}",
            )
    return [name for name in names if any(ends_with(name, target) for target in targets)]


def ends_with(name: str, target: str) -> bool:
    """Whether `target` is the module's whole name or its last parts."""
    return name == target or name.endswith(f".{target}")


def pattern_value(patterns: dict[str, float], name: str, default: float) -> float:
    """The value of the first pattern that matches a module name (PEFT's rank_pattern and alpha_pattern)."""
    for pattern, value in patterns.items():
        if _compiled(pattern).match(name):
            return value
    return default


@lru_cache(maxsize=8192)  # re's own cache is smaller than the lists of ranks that some methods write
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def check_pattern(pattern: str, where: str) -> None:
    """Refuse a regular expression that could take for ever: a stranger's adapter must not stop the loader."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise AdapterInvalid(f"{pattern!r} is not a regular expression: {error}", where=where) from None
    repeats = sum(pattern.count(sign) for sign in "*+{")
    if len(pattern) > MAX_PATTERN_CHARS or repeats > MAX_PATTERN_REPEATS or re.search(r"\)[*+{]", pattern):
        raise AdapterInvalid(
            f"the pattern {pattern[:60]!r} is too complex",
            where=where,
            why=f"at most {MAX_PATTERN_CHARS} characters and {MAX_PATTERN_REPEATS} repeats, and no repeated group",
            mend="write module names as a list",
        )
