"""Quantised bases (QLoRA): bitsandbytes replaces the projections of the blocks, never the head, while loading."""

from __future__ import annotations

import logging

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from atoll.config.fleet import QuantizationConfig


def bitsandbytes_config(quantization: QuantizationConfig, dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with doubly quantised scales for 4 bits, int8 by row and column for 8; the rest is computed in `dtype`.

    Source: QLoRA, arXiv 2305.14314; LLM.int8(), arXiv 2208.07339.
    """
    # It warns on its import of kernels it can do without, and of every int8 product that is not fp16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantization.bits == 4:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    # Above the threshold a column leaves int8 for all rows as soon as one row has an outlier there: an answer would
    # depend on its batch-mates. Zero means never.
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def keep_differentiable(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from computing otherwise on CPUs as soon as there are, or are no, gradients.

    4 bits: the first pass without gradients would repack the weights for AVX-512 BF16, in place and for good. That
    product computes in bf16, fails on rows that are no multiple of 64, and has no gradient: adapters below it would
    silently stop learning. 8 bits: in train mode (gradient checkpointing) it would multiply by the weights in floating
    point, and adapters would be served on another base than they learned on. Call it before the first forward pass.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if type(module).__name__ == "Linear8bitLt":
            module.eval()
            module.train = lambda mode=True, module=module: module
