"""A Llama base and its adapters as GGUF files for llama.cpp, from the very weights that the others load.

Source: llama.cpp's convert_hf_to_gguf.py and convert_lora_to_gguf.py. There is no tokenizer: only token ids are
sent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from safetensors.torch import load_file
from torch import Tensor

PREFIX = "base_model.model."


def write_base(folder: Path, target: Path, kind: GGMLQuantizationType) -> Path:
    """The base model with its matrices in `kind` (F32, Q8_0, ...) and its vectors in fp32."""
    config = json.loads((folder / "config.json").read_bytes())
    if config["model_type"] != "llama":
        raise SystemExit(f"only Llama bases can be written for llama.cpp, not {config['model_type']}")
    writer = GGUFWriter(target, "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("none")
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            values = _rotated(name, tensor, config)
            if values.ndim == 1 or kind == GGMLQuantizationType.F32:
                writer.add_tensor(_gguf_name(name, config), values)
            else:
                writer.add_tensor(_gguf_name(name, config), quantize(values, kind), raw_dtype=kind)
    return _written(writer, target)


def write_lora(adapter: Path, base: Path, target: Path) -> Path:
    """A PEFT adapter over the Llama in the folder `base`."""
    config = json.loads((base / "config.json").read_bytes())
    lora = json.loads((adapter / "adapter_config.json").read_bytes())
    writer = GGUFWriter(target, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(lora["lora_alpha"]))
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        layer, side = name.removeprefix(PREFIX).removesuffix(".weight").rsplit(".", 1)
        values = _rotated(f"{layer}.weight", tensor, config) if side == "lora_B" else tensor.float().numpy()
        writer.add_tensor(f"{_gguf_name(f'{layer}.weight', config)}.{side.lower()}", values)
    return _written(writer, target)


def _rotated(name: str, tensor: Tensor, config: dict[str, Any]) -> np.ndarray:
    """fp32, with the rows of q and k in the order of llama.cpp's rotary embedding: pairs, not halves."""
    values: np.ndarray = tensor.float().numpy()
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return values
    halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _gguf_name(name: str, config: dict[str, Any]) -> str:
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    found = names.get_name(name, try_suffixes=(".weight",))
    if found is None:
        raise SystemExit(f"llama.cpp has no name for {name}")
    return found


def _written(writer: GGUFWriter, target: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
