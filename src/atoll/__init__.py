"""Atoll: many small LoRA specialists on one base model, tuned, evaluated and served together.

From Python: `atoll.tune`, `atoll.evaluate` and `atoll.load`, over a fleet file or an `atoll.Fleet` (docs/python.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Adapter",
    "AtollError",
    "EvalTable",
    "Fleet",
    "Model",
    "Run",
    "__version__",
    "evaluate",
    "load",
    "tune",
]

if TYPE_CHECKING:
    from atoll.api.adapter import Adapter as Adapter
    from atoll.api.fleet import Fleet as Fleet
    from atoll.api.model import Model as Model
    from atoll.api.model import load as load
    from atoll.api.run import Run as Run
    from atoll.api.run import tune as tune
    from atoll.api.table import EvalTable as EvalTable
    from atoll.api.table import evaluate as evaluate
    from atoll.errors import AtollError as AtollError

# Each name is imported when it is first asked for: `import atoll` is part of every command, and must cost nothing.
_HOMES = {
    "Adapter": "atoll.api.adapter",
    "AtollError": "atoll.errors",
    "EvalTable": "atoll.api.table",
    "Fleet": "atoll.api.fleet",
    "Model": "atoll.api.model",
    "Run": "atoll.api.run",
    "evaluate": "atoll.api.table",
    "load": "atoll.api.model",
    "tune": "atoll.api.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'atoll' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
