"""GGUF files: read once by transformers, kept as safetensors and tokenizer."""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import modeling_gguf_pytorch_utils as reader

from atoll.errors import Incompatible
from atoll.model.quiet import quiet

# What transformers' reader raises for files that are cut, damaged or of an unknown architecture.
_READING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    ImportError,
    OverflowError,
    MemoryError,
    struct.error,
)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model of `gguf` to the existing `folder` in fp32, which every quantised value fits exactly.

    Raises Incompatible when transformers cannot read it.
    """
    with quiet(), _no_bar():
        try:
            model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            _mend_digits(tokenizer, gguf)
        except _READING_ERRORS as error:
            raise Incompatible(
                "this GGUF file cannot be converted",
                where=str(gguf),
                why=str(error).strip().partition("\n")[0] or type(error).__name__,
                mend="give the same model as a hub id or as a folder with safetensors",
            ) from error
        _clear_quantisation(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _clear_quantisation(model: PreTrainedModel) -> None:
    """The weights are dequantised now; the mark that says otherwise would make transformers refuse to save them."""
    model.hf_quantizer = None
    model.is_quantized = False
    for mark in ("quantization_config", "_name_or_path"):
        if hasattr(model.config, mark):
            delattr(model.config, mark)
    if hasattr(model, "quantization_method"):
        del model.quantization_method


def _mend_digits(tokenizer: PreTrainedTokenizerBase, gguf: Path) -> None:
    """SmolLM's tokenizer parts every digit before anything else; transformers' GGUF reader leaves that step out.

    Without it "\\n\\n1" becomes three tokens where the model was trained on two. Source: `smollm` in llama.cpp's list
    of pre-tokenizers.
    """
    from gguf import GGUFReader

    kind = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """transformers draws the bar of this one loop whatever its own switch for bars says."""
    original = reader.tqdm
    reader.tqdm = functools.partial(original, disable=True)
    try:
        yield
    finally:
        reader.tqdm = original
