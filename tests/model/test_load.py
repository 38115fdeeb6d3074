"""Loading: a base comes frozen and ready, or an error says by name why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from atoll.config.fleet import QuantizationConfig
from atoll.errors import AtollError, ConfigError, Incompatible, ModelNotFound
from atoll.kernels.kv import KVShape
from atoll.model.attention import PackedContext, attending
from atoll.model.load import BaseModel, auto_dtype, load_base
from support.packing import spans_between
from support.tiny import ARCHITECTURES, make_model, make_tokenizer, save_tiny_base


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_CACHE", str(tmp_path / "cache"))


def logits(base: BaseModel) -> torch.Tensor:
    ids = torch.arange(3, 60, device=base.device)
    with torch.inference_mode(), attending(PackedContext(spans_between([0, len(ids)]))):
        positions = torch.arange(len(ids), device=base.device)
        out: torch.Tensor = base.model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
        return out


def test_a_base_comes_frozen_and_described(tiny_base_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    base = load_base(str(tiny_base_folder), on_progress=lambda what, fraction: seen.append(what))
    assert seen == [f"loading {tiny_base_folder}"]
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.num_params == sum(parameter.numel() for parameter in base.model.parameters())
    assert base.kv_shapes == (KVShape(2, 16, 16),) * 2
    assert base.max_length == 512
    assert make_tokenizer().convert_tokens_to_ids("<|im_end|>") in base.end_ids
    assert base.dtype == base.model.dtype == auto_dtype(base.device)
    assert logits(base).isfinite().all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_loads_with_equal_logits(tmp_path: Path, architecture: str) -> None:
    base = load_base(str(save_tiny_base(tmp_path / "base", architecture)), dtype="float32", device="cpu")
    model: Any = make_model(architecture)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        reference = model(input_ids=torch.arange(3, 60)[None], use_cache=False).logits[0]
    torch.testing.assert_close(logits(base), reference, rtol=0, atol=1e-5)


def test_dtype_is_as_asked(tiny_base_folder: Path) -> None:
    base = load_base(str(tiny_base_folder), dtype="bfloat16", device="cpu")
    assert base.dtype == base.model.dtype == torch.bfloat16
    reference = logits(load_base(str(tiny_base_folder), dtype="float32", device="cpu"))
    assert (logits(base).float() - reference).abs().mean() < 0.1
    assert auto_dtype(torch.device("cuda")) == torch.bfloat16
    computes_bf16 = any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_tile"))
    assert auto_dtype(torch.device("cpu")) == (torch.bfloat16 if computes_bf16 else torch.float32)


@pytest.mark.parametrize(("bits", "kind", "error"), [(4, "Linear4bit", 0.5), (8, "Linear8bitLt", 0.1)])
def test_quantised_bases(tiny_base_folder: Path, bits: int, kind: str, error: float) -> None:
    plain = load_base(str(tiny_base_folder), dtype="float32", device="cpu")
    base = load_base(
        str(tiny_base_folder),
        dtype="float32",
        device="cpu",
        quantization=QuantizationConfig(bits=bits),  # type: ignore[arg-type]
    )
    kinds = {type(module).__name__ for path, module in base.model.named_modules() if path.endswith("_proj")}
    assert kinds == {kind}
    assert type(base.model.lm_head).__name__ == "Linear"
    assert base.num_params == plain.num_params
    difference = (logits(base) - logits(plain)).std() / logits(plain).std()
    assert 0 < difference < error


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_bases_train_as_they_serve(tiny_base_folder: Path, bits: int) -> None:
    """Logits with and without gradients are the same, and passes without gradients do not end those with."""
    quantization = QuantizationConfig(bits=bits)  # type: ignore[arg-type]
    base = load_base(str(tiny_base_folder), dtype="float32", device="cpu", quantization=quantization)
    served = logits(base)
    embedded = base.model.get_input_embeddings()(torch.arange(3, 60)[None]).requires_grad_()
    with attending(PackedContext(spans_between([0, 57]))):
        out = base.model(inputs_embeds=embedded, position_ids=torch.arange(57)[None], use_cache=False).logits[0]
        out.logsumexp(-1).sum().backward()
    torch.testing.assert_close(out, served, rtol=0, atol=1e-5)
    assert embedded.grad is not None
    assert embedded.grad.abs().sum(-1).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_answers_do_not_depend_on_batch_mates(tiny_base_folder: Path, bits: int) -> None:
    quantization = QuantizationConfig(bits=bits)  # type: ignore[arg-type]
    base = load_base(str(tiny_base_folder), dtype="float32", device="cpu", quantization=quantization)
    layer = base.model.model.layers[0].mlp.down_proj
    rows = torch.randn(4, layer.in_features)
    loud = rows.clone()
    loud[3] *= 1000
    with torch.inference_mode():
        torch.testing.assert_close(layer(rows)[:3], layer(loud)[:3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["tpu9", "cuda:99" if torch.cuda.is_available() else "cuda"])
def test_a_device_that_is_not_there(tiny_base_folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        load_base(str(tiny_base_folder), device=name)
    assert caught.value.mend


def edit_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def drop_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def gpt2(folder: Path) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=512, n_embd=64, n_head=4, n_layer=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def encoder_decoder(folder: Path) -> None:
    config = AutoConfig.for_model("t5", d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=512)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)


def own_attention(folder: Path) -> None:
    config = AutoConfig.for_model(
        "falcon", hidden_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=512, max_position_embeddings=64
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "kind", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), ModelNotFound, "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{not json"), Incompatible, "config.json"),
        (lambda folder: edit_config(folder, model_type="unheard_of"), Incompatible, "unheard_of"),
        (
            lambda folder: edit_config(folder, model_type="own", auto_map={"AutoConfig": "code.Config"}),
            Incompatible,
            "code that comes with a model is never run",
        ),
        (lambda folder: edit_config(folder, hidden_size=128), Incompatible, "weights cannot be loaded"),
        (
            lambda folder: edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
            Incompatible,
            "gptq",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), ModelNotFound, "no safetensors"),
        (pickle_only, ModelNotFound, "never read"),
        (truncate_weights, Incompatible, "weights cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), Incompatible, "cannot be loaded"),
        (drop_a_tensor, Incompatible, "layers.1.mlp.up_proj.weight"),
        (no_tokenizer, Incompatible, "tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), Incompatible, "tokenizer"),
        (gpt2, Incompatible, "nn.Linear"),
        (encoder_decoder, Incompatible, "encoder-decoder"),
        (own_attention, Incompatible, "not open to other implementations"),
    ],
)
def test_folders_that_cannot_be_used(
    tiny_base_folder: Path, tmp_path: Path, spoil: Callable[[Path], object], kind: type[AtollError], says: str
) -> None:
    folder = shutil.copytree(tiny_base_folder, tmp_path / "base")
    spoil(folder)
    with pytest.raises(kind) as caught:
        load_base(str(folder), device="cpu")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("rope", "max_length"),
    [
        ({"rope_type": "default", "rope_theta": 10000.0}, 512),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, 512),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 128,
                "rope_theta": 10000.0,
            },
            128,
        ),
        (
            {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 128},
            128,
        ),
    ],
)
def test_lengths_end_where_rotary_embeddings_would_depend_on_the_batch(
    tmp_path: Path, rope: dict[str, object], max_length: int
) -> None:
    model: Any = make_model("llama", rope_parameters=rope)
    model.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    assert load_base(str(tmp_path / "base"), device="cpu").max_length == max_length


@pytest.mark.slow
def test_the_default_base_answers_as_under_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATOLL_CACHE")
    base = load_base("smollm2-135m-instruct", dtype="float32", device="cpu")
    prompt = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    base.model.set_attn_implementation("sdpa")
    made = base.model.generate(
        prompt, max_new_tokens=16, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    base.model.set_attn_implementation("atoll")
    ids = made.sequences[0]
    assert "Paris" in base.tokenizer.decode(ids[prompt.shape[1] :])
    with torch.inference_mode(), attending(PackedContext(spans_between([0, len(ids) - 1, 2 * len(ids) - 2]))):
        out = base.model(
            input_ids=ids[:-1].repeat(2)[None],
            position_ids=torch.arange(len(ids) - 1).repeat(2)[None],
            use_cache=False,
            logits_to_keep=torch.arange(len(ids) - 2 + prompt.shape[1], 2 * len(ids) - 2),
        ).logits[0]
    torch.testing.assert_close(out, torch.cat(made.logits), rtol=0, atol=1e-3)
