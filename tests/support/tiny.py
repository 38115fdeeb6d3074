"""Tiny random models with a real tokenizer: seconds to build, the same code paths as the big ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Sentiment: positive, negative or neutral?",
    "Classify the ticket: billing, technical, shipping. Answer with one word only.",
    '{"PER": ["Anna"], "LOC": ["Zürich", "Kyōto"], "ORG": []} 2024-01-31 SELECT name FROM users WHERE age > 30',
    "user assistant system question answer text label a b c d e 0 1 2 3 4 5 6 7 8 9",
]

# One entry for each architecture family: what differs from the common small shape.
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16},
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {},
    "granite": {"attention_multiplier": 0.25, "residual_multiplier": 0.5, "logits_scaling": 4.0},
    "smollm3": {},
    "olmo2": {},
    "gpt_neox": {"num_key_value_heads": 4},
}


def make_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens over a fixed corpus: any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(architecture: str = "llama", *, seed: int = 0, **overrides: Any) -> torch.nn.Module:
    """A random fp32 model of `architecture` whose logits are spread enough for greedy decoding to be stable."""
    tokenizer = make_tokenizer()
    fields = COMMON | ARCHITECTURES[architecture] | {"vocab_size": len(tokenizer)} | overrides
    config = AutoConfig.for_model(architecture, **fields)
    torch.manual_seed(seed)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.12)
    return model


def save_tiny_base(
    folder: Path, architecture: str = "llama", *, seed: int = 0, chat: bool = True, **overrides: Any
) -> Path:
    """Write a tiny base model with its tokenizer to `folder`, as a user's folder would look."""
    model: Any = make_model(architecture, seed=seed, **overrides)
    model.save_pretrained(folder)
    make_tokenizer(chat=chat).save_pretrained(folder)
    return folder
