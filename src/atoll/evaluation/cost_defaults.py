"""What `atoll cost` and the page compare unless told otherwise. Imports nothing, as every command loads this."""

from __future__ import annotations

MACHINE = "m7i.large"
MODELS = ("gpt-4.1", "gpt-4o-mini", "claude-haiku-4-5", "gemini-2.5-flash", "together-qwen3.5-9b")
REQUESTS_PER_MONTH = 100_000
PROMPT_TOKENS = 300
NEW_TOKENS = 30
NUM_TASKS = 25

KINDS = {
    "shared": "all adapters on one",
    "dedicated": "a machine for each model",
    "hosted": "open model by token",
    "api": "API by token",
}
"""The ways to serve (`evaluation.cost.Offer.kind`), as tables name them."""
