"""Load a base model as everything else uses it: frozen, in eval mode, with Atoll's attention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from atoll.config.fleet import QuantizationConfig
from atoll.errors import ConfigError, Incompatible
from atoll.kernels.kv import KVShape
from atoll.kernels.openmp import in_passing_thread
from atoll.model.attention import ATTENTION
from atoll.model.cache import OnProgress
from atoll.model.probe import probe
from atoll.model.quantize import bitsandbytes_config, keep_differentiable
from atoll.model.quiet import quiet
from atoll.model.source import resolve_base
from atoll.text.tokenizer import end_ids

DType = Literal["auto", "float32", "bfloat16"]

# What transformers and safetensors raise for files that are damaged or not what their names say.
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)


@dataclass(frozen=True)
class BaseModel:
    """A frozen base model and what others need to know of it.

    end_ids: tokens that end an answer. max_length: tokens that a sequence can have. kv_shapes: what each layer keeps
    of a token.
    """

    name: str
    digest: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    num_params: int
    end_ids: frozenset[int]
    max_length: int
    kv_shapes: tuple[KVShape, ...]


@in_passing_thread
def load_base(
    spec: str,
    *,
    dtype: DType = "auto",
    device: str = "auto",
    quantization: QuantizationConfig | None = None,
    on_progress: OnProgress | None = None,
) -> BaseModel:
    """Resolve, check and load a base model. `device` is "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".

    Raises ModelNotFound, or Incompatible for an architecture or files that cannot be used.
    """
    base = resolve_base(spec, on_progress)
    if on_progress:
        on_progress(f"loading {base.name}", None)
    place = _device(device)
    config = load_config(base.folder)
    tokenizer = load_tokenizer(base.folder)
    number_type = auto_dtype(place) if dtype == "auto" else getattr(torch, dtype)
    model = _load_model(base.folder, dtype=number_type, device=place, quantization=quantization)
    return BaseModel(
        name=base.name,
        digest=base.digest,
        folder=base.folder,
        model=model,
        tokenizer=tokenizer,
        device=place,
        dtype=number_type,
        num_params=model.num_parameters(),
        end_ids=end_ids(tokenizer, model.generation_config),
        max_length=max_positions(config),
        kv_shapes=probe(model),
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model's folder. Raises Incompatible when there is none that can be read."""
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _LOADING_ERRORS as error:
        raise Incompatible(
            "the base model's tokenizer cannot be read",
            where=str(folder),
            why=_first_line(error),
            mend="put the model's own tokenizer.json and tokenizer_config.json into the folder",
        ) from error


def auto_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the machine computes with it, else float32.

    On CUDA that is always; on a CPU with AVX512-BF16 or AMX, where its products were measured 3 to 4 times as fast.
    Other CPUs emulate bf16 and are slower with it. `float32` is the choice for bit-stable comparisons.
    """
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.float32


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"no device {name!r}", mend='use "auto", "cpu", "cuda" or "cuda:N"') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"no device {name!r}",
            why="this PyTorch sees no CUDA device",
            mend='use "auto" or "cpu", or install the CUDA build of PyTorch',
        )
    return device


def load_config(folder: Path) -> PreTrainedConfig:
    """The model's configuration, if it is one of a decoder that transformers itself defines."""
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _LOADING_ERRORS as error:
        raise Incompatible(
            "the base model's config.json names no architecture that transformers defines",
            where=str(folder),
            why=_first_line(error),
            mend="use another base model; code that comes with a model is never run",
        ) from error
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "an encoder-decoder" if config.is_encoder_decoder else "not a causal language model"
        raise Incompatible(f"{config.model_type} is {kind}", where=str(folder), mend="use a decoder-only base model")
    if mark := getattr(config, "quantization_config", None):
        method = mark.get("quant_method") if isinstance(mark, dict) else mark.quant_method
        raise Incompatible(
            f"this model is stored quantised ({method})",
            where=str(folder),
            mend="use the unquantised model; `quantization: {bits: 4}` quantises it while loading",
        )
    return config


def _load_model(
    folder: Path, *, dtype: torch.dtype, device: torch.device, quantization: QuantizationConfig | None
) -> PreTrainedModel:
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=ATTENTION,
                quantization_config=quantization and bitsandbytes_config(quantization, dtype),
                device_map={"": device},
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except _LOADING_ERRORS as error:
        # Classes that choose their attention from a table of their own fail with the name that they do not know.
        foreign = isinstance(error, KeyError) and error.args == (ATTENTION,)
        raise Incompatible(
            "the base model's weights cannot be loaded",
            where=str(folder),
            why="its attention is not open to other implementations" if foreign else _first_line(error),
            mend="use another base model" if foreign else "download the model again, or use another one",
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise Incompatible(
            "the base model's weights are incomplete",
            where=str(folder),
            why=f"{len(missing)} tensors are missing, {missing[0]} is the first",
            mend="download the model again",
        )
    keep_differentiable(model)
    return model.eval().requires_grad_(False)


def max_positions(config: PreTrainedConfig) -> int:
    """Positions of the model; short of where a rotary embedding would change for all tokens of a batch at once.

    LongRoPE and dynamic NTK pick their frequencies by the longest sequence of the batch: beyond the original length an
    answer would depend on what else is being served.
    """
    text = config.get_text_config()
    positions: int | None = getattr(text, "max_position_embeddings", None)
    if positions is None:
        raise Incompatible(
            f"{text.model_type} does not say how many positions it has", why="no max_position_embeddings"
        )
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    originals: list[int] = [
        kind.get("original_max_position_embeddings", positions)
        for kind in kinds
        if kind.get("rope_type") in ("longrope", "dynamic")
    ]
    return min([positions, *originals])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
