"""Whether a probe of training passes can be made on this machine at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll.tasks.estimate import FleetEstimate

# The estimate is rough, so only what it puts well above the time of a probe is too long.
_TOO_LONG = 3


def obstacle(estimate: FleetEstimate, token_budget: int, budget_s: float) -> str | None:
    """What speaks against probing the fleet; None if nothing does. token_budget: tokens of a pass."""
    import torch

    from atoll.memory import main_memory

    num_tokens = sum(member.num_train_tokens + member.num_validation_tokens for member in estimate.members)
    pass_s = estimate.seconds * token_budget / max(num_tokens, 1)
    if pass_s > _TOO_LONG * budget_s:
        return f"a single pass of {token_budget:,} tokens would take about {pass_s:.0f} s on this machine"
    if torch.cuda.is_available():
        return None  # what a device lacks, PyTorch says at once, and nothing else suffers
    available = main_memory().available
    if estimate.memory_bytes > available:
        needed, free = estimate.memory_bytes / 1e9, available / 1e9
        return f"training would take about {needed:.1f} GB of memory, and {free:.1f} GB are free; lower `token_budget`"
    return None
