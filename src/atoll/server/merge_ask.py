"""What a request says about a mix of adapters, in any dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MergeStrategy = Literal["linear", "ties", "dare_linear", "dare_ties"]
MajoritySignMethod = Literal["total", "frequency"]


@dataclass(frozen=True, kw_only=True)
class MergeAsk:
    """Adapters to be mixed into one, each with its weight; without weights each counts 1.

    density: the share of each adapter's values that ties and dare keep; linear keeps them all. majority_sign_method:
    whether ties counts the values or their number to find the sign that the adapters agree on.
    """

    ids: tuple[str, ...]
    weights: tuple[float, ...]
    strategy: MergeStrategy = "linear"
    density: float = 1.0
    majority_sign_method: MajoritySignMethod = "total"
