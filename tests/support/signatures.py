"""Adapters that each know one answer of their own, built by hand: a wrong answer anywhere shows, and needs no oracle.

A signature is NUM_DIGITS digits. Over the base below, an adapter with the digits d0 d1 d2 d3 answers any prompt with
the tokens d0 d1 d2 d3 d0 d1 ..., one token for each pair of place and digit. The base knows only which place comes next
(from the last token); each digit comes from another module of the adapter, and the first two through keys and values:

    d0  v_proj of layer 0, d1  v_proj of layer 1    attention is uniform, so each token's value counts the same
    d2  down_proj of layer 0, d3  o_proj of layer 1

So a module that was not loaded, a slot that was mixed up, or one cached block of another adapter changes a token, or at
least its log-probability: that of each place is the same for all adapters, prompts and lengths. The bare base answers
0 0 0 0; adapters have no digit 0.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from support.tiny import make_model, make_tokenizer

NUM_DIGITS = 4
RADIX = 9
Signature = tuple[int, ...]
BASE_SIGNATURE: Signature = (0,) * NUM_DIGITS

_FIRST_DIGIT_TOKEN = 100
_PROMPT_TOKENS = range(200, 400)
_HEAD_DIM = 16
# The hidden state: a constant, the place of the next digit, the digits found, and what tells the tokens apart.
_CONST, _PLACE, _DIGIT = 0, 1, 8
_REST = _DIGIT + NUM_DIGITS * RADIX
# What the base hands to the adapters' modules: a constant among the values of layer 1 (seen by two heads) and among the
# hidden units of layer 0.
_VALUE_CONST, _HEAD_CONST, _UNIT_CONST = 15, 31, 0


def all_signatures(seed: int = 0) -> Iterator[Signature]:
    """Every signature of an adapter once, in a random order."""
    signatures = list(itertools.product(range(1, RADIX), repeat=NUM_DIGITS))
    random.Random(seed).shuffle(signatures)
    return iter(signatures)


def answer(signature: Signature, num_tokens: int) -> tuple[int, ...]:
    """The tokens with which an adapter of this signature answers any prompt."""
    places = (place % NUM_DIGITS for place in range(num_tokens))
    return tuple(_FIRST_DIGIT_TOKEN + place * RADIX + signature[place] for place in places)


def any_prompt(rng: random.Random, length: int) -> tuple[int, ...]:
    """Random tokens that are no digits."""
    return tuple(rng.choices(_PROMPT_TOKENS, k=length))


def make_signature_model() -> Any:
    """The base: all zeros but for what the module's text describes."""
    model: Any = make_model("llama")
    first, second = model.model.layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1 if "norm" in name else 0)
        model.model.embed_tokens.weight.copy_(_embeddings(model.config.vocab_size))
        for place in range(NUM_DIGITS):
            tokens = slice(_FIRST_DIGIT_TOKEN + place * RADIX, _FIRST_DIGIT_TOKEN + (place + 1) * RADIX)
            model.lm_head.weight[tokens, _digit(place, 0) : _digit(place, RADIX)] = torch.eye(RADIX)
            model.lm_head.weight[tokens, _PLACE + place] = 1
            model.lm_head.weight[tokens.start, _CONST] = 0.25
        for place, layer in enumerate((first, second)):
            layer.self_attn.o_proj.weight[_digit(place, 0) : _digit(place, RADIX), :RADIX] = torch.eye(RADIX)
        second.self_attn.v_proj.weight[_VALUE_CONST, _CONST] = 0.25
        first.mlp.gate_proj.weight[_UNIT_CONST, _CONST] = 1
        first.mlp.up_proj.weight[_UNIT_CONST, _CONST] = 0.0625
    return model


def save_signature_base(folder: Path) -> Path:
    """Write the base with a tokenizer."""
    make_signature_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_signature_adapter(folder: Path, signature: Signature, *, rank: int = 1, alpha: int = 8) -> Path:
    """Write the adapter in PEFT's format. Every column of the rank carries the same share; alpha: a power of 2."""
    layers = "model.layers"
    gain = 1 / alpha
    modules = {
        f"{layers}.0.self_attn.v_proj": _pair(64, _CONST, 32, signature[0], gain / 4, rank),
        f"{layers}.1.self_attn.v_proj": _pair(64, _CONST, 32, signature[1], gain / 4, rank),
        f"{layers}.0.mlp.down_proj": _pair(96, _UNIT_CONST, 64, _digit(2, signature[2]), gain, rank),
        f"{layers}.1.self_attn.o_proj": _pair(64, _HEAD_CONST, 64, _digit(3, signature[3]), gain, rank),
    }
    tensors = {
        f"base_model.model.{name}.lora_{side}.weight": tensor
        for name, pair in modules.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(modules),
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _digit(place: int, digit: int) -> int:
    return _DIGIT + place * RADIX + digit


def _pair(num_inputs: int, source: int, num_outputs: int, target: int, gain: float, rank: int) -> tuple[Tensor, Tensor]:
    """A and B whose scaled product adds alpha * gain times the input `source` to the output `target`."""
    a, b = torch.zeros(rank, num_inputs), torch.zeros(num_outputs, rank)
    a[:, source] = 1
    b[target] = gain
    return a, b


def _embeddings(vocab_size: int) -> Tensor:
    """Each token: the constant, the place that follows it, and a direction of its own, each of length 1."""
    weight = torch.zeros(vocab_size, 64)
    weight[:, _CONST] = 1
    rest = torch.randn(vocab_size, 64 - _REST, generator=torch.Generator().manual_seed(0))
    weight[:, _REST:] = rest / rest.norm(dim=1, keepdim=True)
    for token in range(vocab_size):
        place, is_digit = (token - _FIRST_DIGIT_TOKEN) // RADIX, token >= _FIRST_DIGIT_TOKEN
        follows = (place + 1) % NUM_DIGITS if is_digit and place < NUM_DIGITS else 0
        weight[token, _PLACE + follows] = 1
    return weight
