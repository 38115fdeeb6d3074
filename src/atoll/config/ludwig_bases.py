"""Ludwig's short names of base models, and the layers that it adapts in them when a file does not say it."""

from __future__ import annotations

import re

_PRESETS = {
    "codellama-7b": "codellama/CodeLlama-7b-hf",
    "codellama-7b-instruct": "codellama/CodeLlama-7b-Instruct-hf",
    "codellama-13b": "codellama/CodeLlama-13b-hf",
    "codellama-13b-instruct": "codellama/CodeLlama-13b-Instruct-hf",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-2-13b-chat": "meta-llama/Llama-2-13b-chat-hf",
    "llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "llama-2-70b-chat": "meta-llama/Llama-2-70b-chat-hf",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.1",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "mixtral-8x7b-instruct": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "opt-350m": "facebook/opt-350m",
    "opt-1.3b": "facebook/opt-1.3b",
    "opt-6.7b": "facebook/opt-6.7b",
    "phi-1": "microsoft/phi-1",
    "phi-1_5": "microsoft/phi-1_5",
    "phi-2": "microsoft/phi-2",
    "vicuna-7b": "lmsys/vicuna-7b-v1.3",
    "vicuna-13b": "lmsys/vicuna-13b-v1.3",
    "zephyr-7b-alpha": "HuggingFaceH4/zephyr-7b-alpha",
    "zephyr-7b-beta": "HuggingFaceH4/zephyr-7b-beta",
}
# By what the base model is called; the first that fits counts. Some are Ludwig's own, the rest PEFT's.
_DEFAULT_MODULES = (
    (r"phi-?3", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    (r"phi-?(1|1_5|1\.5|2)\b", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    (r"llama|mistral|mixtral|zephyr|vicuna|gemma|qwen-?[23]|opt-|stablelm|smollm", ("q_proj", "v_proj")),
)


def full_name(base_model: str) -> str:
    """The hub id that a short name stands for; other names as they are."""
    return _PRESETS.get(base_model, base_model)


def default_modules(base_model: str) -> tuple[str, ...] | None:
    """The layers that are adapted by default; None where the name does not tell the kind of model."""
    name = full_name(base_model).lower()
    return next((modules for pattern, modules in _DEFAULT_MODULES if re.search(pattern, name)), None)
