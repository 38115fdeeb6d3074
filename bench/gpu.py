"""Serving on a GPU: a base of Mistral-7B's shape with random weights in bf16, and 1 to 1,000 adapters of rank 16.

make bench-gpu      or      .venv/bin/python bench/gpu.py --adapters 1,100 --targets all

Runs only where CUDA is. The limit is what the memory's bandwidth allows: a decode step must read the base, the adapters
of its rows and their keys and values once. Reference to beat: S-LoRA (arXiv 2311.03285) loses 5 % between 5 and 2,000
adapters of rank 8 on a 7B base. A thousand adapters on the attention's projections take 27 GB of disk.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedTokenizerFast

from atoll.engine import EngineConfig, build_engine
from atoll.model.attention import ATTENTION
from atoll.model.load import BaseModel
from atoll.model.probe import probe
from common import best_seconds, machine, parser, print_table, quote, say, work_folder, write_json
from drive import raise_first_error, run_closed
from made import Shapes, linear_shapes, make_adapters, matrix_params, num_lora_params, only

RANK = 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
MAX_BATCH_TOKENS = 2048
SPARE_BYTES = 4 << 30


@dataclass(frozen=True)
class Load:
    """concurrency: requests at any moment. layers: of the base; Mistral-7B has 32."""

    num_adapters: int
    concurrency: int = 64
    num_prompt: int = 256
    num_new: int = 64
    layers: int = 32
    targets: tuple[str, ...] = TARGETS

    @property
    def config(self) -> MistralConfig:
        """Mistral-7B's shape."""
        return MistralConfig(
            num_hidden_layers=self.layers, max_position_embeddings=4096, sliding_window=None, head_dim=128
        )

    @property
    def shapes(self) -> Shapes:
        shapes = linear_shapes(self.config)
        return only(shapes, self.targets) if self.targets else shapes

    @property
    def num_requests(self) -> int:
        """Enough to ask every adapter once."""
        return max(4 * self.concurrency, self.num_adapters)


@dataclass(frozen=True)
class Served:
    """step_s: the median time of a decode step with all rows; None where it is not known."""

    requests_per_s: float
    tokens_per_s: float
    step_s: float | None
    first_s: float | None
    memory_gb: float


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--adapters", default="1,25,100,1000", help="numbers of adapters, with commas")
    options.add_argument("--targets", default=",".join(TARGETS), help="layers to adapt, with commas, or all")
    options.add_argument("--concurrency", type=int, default=64, help="requests that are there at any moment (64)")
    options.add_argument("--peft-max", type=int, default=25, help="the most adapters that PEFT is asked for (25)")
    given = options.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured")
        return 0
    targets = () if given.targets == "all" else tuple(given.targets.split(","))
    loads = [Load(int(n), given.concurrency, targets=targets) for n in given.adapters.split(",")]
    if given.quick:
        loads = [Load(n, 8, num_prompt=32, num_new=8, layers=2, targets=targets) for n in (1, 12)]
    facts = machine(quick=True) | {"gpu": torch.cuda.get_device_name(), "gpu_bandwidth_gb_s": _bandwidth() / 1e9}
    print(f"{quote(facts)}\n{facts['gpu']}, copies {facts['gpu_bandwidth_gb_s']:.0f} GB/s\n")
    results = []
    for load in loads:
        ours = in_a_process(serve_with_atoll, load, given.work)
        theirs = in_a_process(serve_with_peft, load, given.work) if load.num_adapters <= given.peft_max else None
        say(f"{load.num_adapters} adapters: {ours.tokens_per_s:.0f} tokens/s")
        results.append((load, ours, theirs))
    report(results, facts["gpu_bandwidth_gb_s"] * 1e9)
    plain = [{"load": vars(a), "atoll": vars(b), "peft": c and vars(c)} for a, b, c in results]
    write_json(given.json, {"machine": facts, "results": plain})
    return 0


def in_a_process(serve: Callable[[Load, Path], Served], load: Load, work: Path) -> Served:
    """Each measurement begins with an empty device."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(serve, load, work).result()


def random_model(config: MistralConfig, attention: str) -> Any:
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    return model.eval().requires_grad_(False)


def random_base(config: MistralConfig) -> BaseModel:
    """What `load_base` makes of a folder, without the folder; each token of its tokenizer is a word."""
    model = random_model(config, ATTENTION)
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(config.vocab_size)}, unk_token="w0"))
    return BaseModel(
        name="random Mistral-7B",
        digest="random",
        folder=Path(),
        model=model,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words),
        device=model.device,
        dtype=torch.bfloat16,
        num_params=model.num_parameters(),
        end_ids=frozenset({2}),
        max_length=config.max_position_embeddings,
        kv_shapes=probe(model),
    )


def serve_with_atoll(load: Load, work: Path) -> Served:
    """A closed loop over all adapters in turn, after two waves; the second one tells the time of a decode step."""
    with work_folder(work) as folder:
        _check_disk(load, folder)
        adapters = make_adapters(folder, load.shapes, load.num_adapters, rank=RANK, dtype=torch.bfloat16)
        config = EngineConfig(
            max_num_requests=load.concurrency,
            max_batch_tokens=MAX_BATCH_TOKENS,
            max_length=load.num_prompt + load.num_new,
        )
        base, num_slots = random_base(load.config), min(load.num_adapters, 2 * load.concurrency)
        with build_engine(base, num_slots=num_slots, max_rank=RANK, config=config) as engine:
            orders = [(adapters[i % len(adapters)], load.num_prompt, load.num_new) for i in range(load.num_requests)]
            for seed in (0, 1):
                wave = run_closed(engine, orders[: load.concurrency], concurrency=load.concurrency, seed=seed)
                raise_first_error(wave)
            trace = run_closed(engine, orders, concurrency=load.concurrency, seed=2)
            raise_first_error(trace)
    return Served(
        load.num_requests / trace.seconds,
        trace.tokens_per_s,
        wave.decode_step_s(),
        trace.first_s(0.5),
        torch.cuda.max_memory_allocated() / 1e9,
    )


def serve_with_peft(load: Load, work: Path) -> Served:
    """One padded batch of `concurrency` rows with `adapter_names`, twice; the second counts."""
    from peft import PeftModel

    with work_folder(work) as folder:
        adapters = make_adapters(folder, load.shapes, load.num_adapters, rank=RANK, dtype=torch.bfloat16)
        base = random_model(load.config, "sdpa")
        model: Any = PeftModel.from_pretrained(base, adapters[0].folder, adapter_name="a0").eval()
        for index, adapter in enumerate(adapters[1:], 1):
            model.load_adapter(adapter.folder, f"a{index}")
    draw = random.Random(0)
    shape = range(load.concurrency), range(load.num_prompt)
    seconds = 0.0
    for _ in range(2):
        ids = torch.tensor([[draw.randrange(3, load.config.vocab_size) for _ in shape[1]] for _ in shape[0]]).cuda()
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=load.num_new,
                min_new_tokens=load.num_new,
                do_sample=False,
                pad_token_id=0,
                adapter_names=[f"a{row % load.num_adapters}" for row in range(load.concurrency)],
            )
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    num_tokens = load.concurrency * load.num_new
    memory = torch.cuda.max_memory_allocated() / 1e9
    return Served(load.concurrency / seconds, num_tokens / seconds, None, None, memory)


def step_limit_s(load: Load, bandwidth: float) -> float:
    """The least time of a decode step with all rows: everything that it must read, over the bandwidth. bf16."""
    config = load.config
    adapters = min(load.concurrency, load.num_adapters) * num_lora_params(load.shapes, RANK)
    keys_and_values: int = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    length = load.num_prompt + load.num_new / 2
    return 2 * (matrix_params(config) + adapters + load.concurrency * length * keys_and_values) / bandwidth


def report(results: Sequence[tuple[Load, Served, Served | None]], bandwidth: float) -> None:
    first = results[0][0]
    print(
        f"rank {RANK} on {', '.join(first.targets) or 'all linear layers'}, bf16; {first.concurrency} requests at any"
    )
    print(f"moment, {first.num_prompt} prompt and {first.num_new} output tokens; the limit: decode steps alone\n")
    fewest = results[0][1].tokens_per_s
    rows = []
    for load, ours, theirs in results:
        limit_s = step_limit_s(load, bandwidth)
        step_s = ours.step_s or float("nan")
        row = [load.num_adapters, f"{ours.requests_per_s:.1f}", f"{ours.tokens_per_s:.0f}"]
        row += [f"{ours.tokens_per_s / fewest:.2f}", f"{1000 * step_s:.1f}", f"{1000 * limit_s:.1f}"]
        row += [f"{limit_s / step_s:.0%}", f"{ours.memory_gb:.1f}"]
        row += [f"{theirs.tokens_per_s:.0f}", f"{ours.tokens_per_s / theirs.tokens_per_s:.1f} x"] if theirs else "--"
        rows.append(row)
    head = [
        "adapters",
        "requests/s",
        "tokens/s",
        "to the fewest",
        "step, ms",
        "limit, ms",
        "share",
        "GPU, GB",
        "PEFT",
        "",
    ]
    print_table(head, rows)


def _bandwidth() -> float:
    """Bytes per second that a copy on the device reads and writes."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)

    def copy() -> None:
        y.copy_(x)
        torch.cuda.synchronize()

    return 2 * x.numel() / best_seconds(copy, 1.0)


def _check_disk(load: Load, folder: Path) -> None:
    needed = 2 * num_lora_params(load.shapes, RANK) * load.num_adapters + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(
            f"{load.num_adapters} adapters take {needed / 1e9:.0f} GB and {folder} has {free / 1e9:.0f} GB free: "
            "name another folder with --work, or fewer layers with --targets q_proj,v_proj"
        )


if __name__ == "__main__":
    sys.exit(main())
