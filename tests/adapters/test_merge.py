"""Mixes of adapters: the products B A are mixed, as PEFT's own code and a dense reference mix them."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft.utils.merge_utils as peft_merges
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor

from atoll.adapters.bank import AdapterBank
from atoll.adapters.cache import AdapterCache
from atoll.adapters.contract import read_contract
from atoll.adapters.merge import MAX_SOURCES, Recipe, combine, factor, merge
from atoll.adapters.merger import Merger
from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME
from atoll.adapters.peft_io import AdapterWeights, read_adapter
from atoll.adapters.store import StoredAdapter, adapter_digest
from atoll.errors import AdapterInvalid, AtollError, Overloaded, RequestInvalid
from atoll.kernels.lora import LoraWeights
from support.adapters import save_random_adapter
from support.servers import write_contract
from support.tiny import make_model, save_tiny_base

MODEL = make_model()
# Mixed ranks, rsLoRA, patterns, and modules that not every adapter has.
CONFIGS: list[dict[str, Any]] = [
    {"r": 4},
    {"r": 3, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 2, "target_modules": ["q_proj", "o_proj"], "rank_pattern": {"o_proj": 5}, "alpha_pattern": {"q_proj": 3}},
]
SEED = b"seed"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("sources")
    return [save_random_adapter(root / str(seed), MODEL, seed=seed, **config) for seed, config in enumerate(CONFIGS)]


@pytest.fixture(scope="module")
def sources(folders: list[Path]) -> list[AdapterWeights]:
    return [read_adapter(folder) for folder in folders]


def product(lora: LoraWeights) -> Tensor:
    return lora.b.float() @ lora.a.float() * lora.scaling


def products(sources: list[AdapterWeights], name: str) -> Tensor:
    """[adapters, out, in]; zeros where an adapter lacks the module."""
    known = [product(source.modules[name]) if name in source.modules else None for source in sources]
    shape = next(dense for dense in known if dense is not None).shape
    return torch.stack([torch.zeros(shape) if dense is None else dense for dense in known])


def names(sources: list[AdapterWeights]) -> set[str]:
    return {name for source in sources for name in source.modules}


def test_linear_is_the_exact_weighted_sum_of_the_products(sources: list[AdapterWeights]) -> None:
    merged = merge(sources, Recipe(weights=(0.7, -1.5, 2.0)), max_rank=64, seed=SEED)
    assert merged.relative_error == 0
    assert merged.modules.keys() == names(sources)
    for name, lora in merged.modules.items():
        expected = (products(sources, name) * torch.tensor([0.7, -1.5, 2.0]).view(-1, 1, 1)).sum(dim=0)
        torch.testing.assert_close(product(lora), expected)


def test_what_exceeds_the_largest_rank_is_cut_at_the_least_cost(sources: list[AdapterWeights]) -> None:
    merged = merge(sources, Recipe(weights=(1.0, 1.0, 1.0)), max_rank=3, seed=SEED)
    lost, norm = 0.0, 0.0
    for name, lora in merged.modules.items():
        exact = products(sources, name).sum(dim=0)
        values = torch.linalg.svdvals(exact)
        missing = float((product(lora) - exact).square().sum())
        assert lora.a.shape[0] <= 3
        assert missing == pytest.approx(float(values[3:].square().sum()), rel=1e-3, abs=1e-6)
        lost, norm = lost + missing, norm + float(exact.square().sum())
    assert merged.relative_error == pytest.approx(math.sqrt(lost / norm), rel=1e-3)


@pytest.mark.parametrize("sign_method", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_ties_is_peft_s_own(sources: list[AdapterWeights], density: float, sign_method: Any) -> None:
    weights = (1.0, 0.5, -2.0)
    recipe = Recipe(weights=weights, strategy="ties", density=density, sign_method=sign_method)
    name = "model.layers.0.self_attn.q_proj"
    dense = products(sources, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of density 1
        expected = peft_merges.ties(list(dense), torch.tensor(weights), density, sign_method)
    torch.testing.assert_close(combine(dense, recipe, torch.Generator()), expected)


@pytest.mark.parametrize("strategy", ["dare_linear", "dare_ties"])
def test_dare_is_peft_s_own_where_the_same_values_are_kept(
    sources: list[AdapterWeights], strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, density = (1.0, 0.5, 2.0), 0.4
    dense = products(sources, "model.layers.1.self_attn.q_proj")
    kept = iter((torch.rand(dense.shape, generator=torch.Generator().manual_seed(5)) < density).float())
    monkeypatch.setattr(peft_merges.torch, "bernoulli", lambda probabilities: next(kept))
    expected = getattr(peft_merges, strategy)(list(dense), torch.tensor(weights), density)
    recipe = Recipe(weights=weights, strategy=strategy, density=density)
    torch.testing.assert_close(combine(dense, recipe, torch.Generator().manual_seed(5)), expected)


def test_dare_keeps_the_expected_value() -> None:
    dense = torch.ones(1, 300, 300)
    mixed = combine(dense, Recipe(weights=(1.0,), strategy="dare_linear", density=0.25), torch.Generator())
    assert set(mixed.unique().tolist()) == {0.0, 4.0}
    assert float(mixed.mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("strategy", "combination"), [("linear", "svd"), ("ties", "ties_svd"), ("dare_ties", "dare_ties_svd")]
)
def test_a_mix_answers_as_peft_s_weighted_adapter(
    folders: list[Path], sources: list[AdapterWeights], strategy: Any, combination: str
) -> None:
    """At full rank, where PEFT cuts nothing either; density 1, where dare chooses nothing."""
    weights = [0.6, 0.8, -0.5]
    model = PeftModel.from_pretrained(make_model(), folders[0], adapter_name="0")
    for number in (1, 2):
        model.load_adapter(folders[number], adapter_name=str(number))
    density = 0.5 if strategy == "ties" else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of density 1
        model.add_weighted_adapter(
            ["0", "1", "2"], weights, "mix", combination, svd_rank=64, density=density, svd_full_matrices=False
        )
    merged = merge(sources, Recipe(weights=tuple(weights), strategy=strategy, density=density), max_rank=64, seed=SEED)
    for name, lora in merged.modules.items():
        target = model.get_submodule(f"base_model.model.{name}")
        delta = target.lora_B["mix"].weight @ target.lora_A["mix"].weight * target.scaling["mix"]
        exact = products(sources, name)
        rank = min(64, sum(s.modules[name].a.shape[0] for s in sources if name in s.modules))
        if rank == min(exact.shape[1:]) or strategy == "linear":
            torch.testing.assert_close(product(lora), delta.detach(), rtol=1e-3, atol=1e-4)
        else:  # fewer ranks here than PEFT was given: as good as so many can be
            values = torch.linalg.svdvals(delta.detach())
            missing = float((product(lora) - delta.detach()).square().sum())
            assert missing == pytest.approx(float(values[rank:].square().sum()), rel=1e-2, abs=1e-5)


@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 90),
    rank=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_factors_are_nearly_the_best_of_their_rank(rows: int, columns: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, columns, generator=generator)
    factors = factor(dense, rank, torch.Generator().manual_seed(seed))
    best = float(torch.linalg.svdvals(dense)[rank:].square().sum())
    assert factors.a.shape[0] == factors.b.shape[1] <= rank
    assert factors.lost <= best * 1.02 + 1e-6 * factors.norm
    assert factors.lost == pytest.approx(float((dense - factors.b @ factors.a).square().sum()), rel=1e-3, abs=1e-6)


def test_an_adapter_mixed_with_itself_by_halves_is_itself(sources: list[AdapterWeights]) -> None:
    merged = merge([sources[0]] * 2, Recipe(weights=(0.5, 0.5)), max_rank=8, seed=SEED)
    for name, lora in sources[0].modules.items():
        torch.testing.assert_close(product(merged.modules[name]), product(lora))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"weights": ()}, "0 adapters"),
        ({"weights": (1.0,) * (MAX_SOURCES + 1)}, "9 adapters"),
        ({"weights": (math.nan,)}, "out of range"),
        ({"weights": (1e9,)}, "out of range"),
        ({"weights": (0.0, 0.0)}, "all weights are 0"),
        ({"weights": (1.0,), "strategy": "ties", "density": 0.0}, "density is 0"),
        ({"weights": (1.0,), "strategy": "dare_ties", "density": 1.5}, "density is 1.5"),
        ({"weights": (1.0,), "strategy": "dare_linear", "density": math.nan}, "density is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(fields: Any, what: str) -> None:
    with pytest.raises(RequestInvalid, match=what):
        Recipe(**fields)


def test_what_cannot_be_mixed_is_refused_by_name(sources: list[AdapterWeights]) -> None:
    two, ties = Recipe(weights=(1.0, 1.0)), Recipe(weights=(1.0, 1.0), strategy="ties", density=0.5)
    name, lora = next(iter(sources[0].modules.items()))
    wide = AdapterWeights({name: replace_a(lora, torch.zeros(4, 7))}, "wide")
    with pytest.raises(RequestInvalid, match=f"differ in the shape of {name}"):
        merge([sources[0], wide], two, max_rank=8, seed=SEED)
    with pytest.raises(RequestInvalid, match="too long"):
        merge(sources[:2], ties, max_rank=8, seed=SEED, deadline_s=0)
    large = AdapterWeights({name: replace_a(lora, torch.full_like(lora.a, 3e38))}, "large")
    with pytest.raises(RequestInvalid, match="overflows"):
        merge([large, large], Recipe(weights=(100.0, 100.0), strategy="ties"), max_rank=8, seed=SEED)


def replace_a(lora: LoraWeights, a: Tensor) -> LoraWeights:
    return LoraWeights(a, lora.b, lora.scaling)


@pytest.fixture
def stored(folders: list[Path]) -> list[StoredAdapter]:
    return [StoredAdapter(folder.name, 0, adapter_digest(folder), folder, None) for folder in folders]


def make_merger(root: Path, max_bytes: int = 1 << 30) -> Merger:
    return Merger(AdapterCache(root, max_bytes), max_rank=16, max_seconds=60, base_model="base", base_digest="sha256:0")


def test_a_mix_is_a_peft_folder_that_the_bank_and_peft_load(stored: list[StoredAdapter], tmp_path: Path) -> None:
    mixed = make_merger(tmp_path).merge(stored, Recipe(weights=(1.0, 0.5, 2.0), strategy="ties", density=0.6))
    AdapterBank(make_model(), num_slots=1, max_rank=16).check(read_adapter(mixed.folder, verify=mixed.verify))
    model = PeftModel.from_pretrained(make_model(), mixed.folder)
    for name, lora in read_adapter(mixed.folder).modules.items():
        torch.testing.assert_close(
            model.get_submodule(f"base_model.model.{name}").get_delta_weight("default"), product(lora)
        )
    card = (mixed.folder / "README.md").read_text()
    assert all(adapter.digest in card for adapter in stored)
    assert "Relative error of the factors against the exact mix: 0." in card


def test_the_same_mix_is_made_once_and_another_one_is_another(stored: list[StoredAdapter], tmp_path: Path) -> None:
    recipe = Recipe(weights=(1.0, 1.0, 1.0), strategy="dare_linear", density=0.5)
    one = make_merger(tmp_path / "one").merge(stored, recipe)
    written = (one.folder / WEIGHTS_NAME).stat().st_mtime_ns
    again = make_merger(tmp_path / "one").merge(stored, recipe)
    assert again == one
    assert (again.folder / WEIGHTS_NAME).stat().st_mtime_ns == written
    assert make_merger(tmp_path / "two").merge(stored, recipe).digest == one.digest, "dare's choice is repeatable"
    others = [
        replace(recipe, density=0.6),
        replace(recipe, weights=(1.0, 1.0, 2.0)),
        replace(recipe, strategy="linear"),
    ]
    mixes = [make_merger(tmp_path / "one").merge(stored, other) for other in others]
    assert len({one.digest, *(mix.digest for mix in mixes)}) == 4


def test_an_adapter_of_another_base_is_not_mixed(
    stored: list[StoredAdapter], folders: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[0], tmp_path / "foreign")
    base = save_tiny_base(tmp_path / "base")
    write_contract(tmp_path / "foreign", base, "foreign", "{text}")
    foreign = replace(stored[0], folder=tmp_path / "foreign", contract=read_contract(tmp_path / "foreign"))
    with pytest.raises(AdapterInvalid, match="belongs to the base model"):
        make_merger(tmp_path / "cache").merge([stored[1], foreign], Recipe(weights=(1.0, 1.0)))


def test_a_damaged_mix_is_made_again(stored: list[StoredAdapter], tmp_path: Path) -> None:
    merger, recipe = make_merger(tmp_path), Recipe(weights=(1.0, 1.0, 1.0))
    mixed = merger.merge(stored, recipe)
    config = json.loads((mixed.folder / CONFIG_NAME).read_text())
    (mixed.folder / CONFIG_NAME).write_text(json.dumps(config | {"lora_alpha": 99}))
    assert merger.merge(stored, recipe).digest == mixed.digest == adapter_digest(mixed.folder)


def test_the_cache_stays_within_its_bytes_and_drops_the_longest_unused(
    stored: list[StoredAdapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [Recipe(weights=(1.0, weight, 1.0)) for weight in (1.0, 2.0, 3.0)]
    size = sum(p.stat().st_size for p in make_merger(tmp_path / "size").merge(stored, recipes[0]).folder.iterdir())
    merger = make_merger(tmp_path / "small", max_bytes=2 * size + 200)
    first, second = merger.merge(stored, recipes[0]), merger.merge(stored, recipes[1])
    with pytest.raises(Overloaded, match="adapters in use"):
        merger.merge(stored, recipes[2])
    monkeypatch.setattr("atoll.adapters.cache.KEEP_S", -1.0)
    assert merger.merge(stored, recipes[0]) == first  # used last
    third = merger.merge(stored, recipes[2])
    assert first.folder.is_dir()
    assert third.folder.is_dir()
    assert not second.folder.exists()
    with pytest.raises(AtollError, match="the cache of adapters 100"):
        make_merger(tmp_path / "tiny", max_bytes=100).merge(stored, recipes[0])
    assert list((tmp_path / "tiny").glob(".new-*")) == []
