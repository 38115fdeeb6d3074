"""Training: tokens per second of 1, 4 and 16 adapters together, against PEFT and transformers' Trainer.

make bench-tune      or      .venv/bin/python bench/tune.py --dtype bfloat16

Both train rank 16 on all linear layers, on the same examples: random tokens, 64 to 192 in an example, of which each
begins with the instruction of its adapter, and the last 16 are trained. Atoll trains all adapters in one run; the
Trainer trains one adapter after another, its examples packed side by side into rows of 512, which is what packing does
by default. All cases have the same tokens in all, each runs in a process of its own, and only the training itself is
timed: no loading, no building of adapters.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch

from atoll.config.fleet import LoraConfig, TrainerConfig
from atoll.model.load import load_base
from atoll.model.quiet import quiet
from atoll.model.source import resolve_base
from atoll.training.data import TokenizedExample, TokenizedSplit
from atoll.training.trainer import Trainer, TrainingJob
from common import gemm_peak, machine, parser, print_table, quote, rss_bytes, say, write_json
from goals import goal
from made import base_config, matrix_params

RANK = 16
ROW = 512
PASS_TOKENS = 1024
NUM_TARGETS = 16
LENGTHS = (64, 192)
# Some 2,048 tokens in a step: 16 examples, or 4 rows.
BATCH_SIZE = 16
ROWS_PER_STEP = 4
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Setup:
    """One training: `num_adapters` share `num_tokens` evenly; each gets a multiple of ROW."""

    base: str
    dtype: Literal["float32", "bfloat16"]
    num_adapters: int
    num_tokens: int
    instruction: int

    @property
    def tokens_each(self) -> int:
        return self.num_tokens // self.num_adapters // ROW * ROW


@dataclass(frozen=True)
class Trained:
    num_tokens: int
    seconds: float
    rss_bytes: int

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


def main() -> int:
    options = parser(__doc__, rounds=2)
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options.add_argument("--tokens", type=int, default=16384, help="of all adapters together (16384)")
    options.add_argument("--instruction", type=int, default=40, help="tokens that an adapter's examples share (40)")
    options.add_argument("--adapters", default="1,4,16", help="numbers of adapters, with commas (1,4,16)")
    given = options.parse_args()
    counts = [2] if given.quick else [int(count) for count in given.adapters.split(",")]
    num_tokens = 2 * ROW if given.quick else given.tokens
    facts = machine(quick=given.quick)
    print(quote(facts), end="\n\n")
    peak = gemm_peak(getattr(torch, given.dtype), 0.3 if given.quick else 3.0)
    results: dict[int, list[tuple[Trained, Trained]]] = {count: [] for count in counts}
    for index in range(1 if given.quick else given.rounds):
        for count in counts:
            setup = Setup(given.base, given.dtype, count, num_tokens, given.instruction)
            ours, theirs = in_a_process(train_with_atoll, setup), in_a_process(train_with_trainer, setup)
            say(f"round {index + 1}, {count}: {ours.tokens_per_s:.0f} and {theirs.tokens_per_s:.0f} tokens/s")
            results[count].append((ours, theirs))
    report(results, given.dtype, peak, 4 * matrix_params(base_config(given.base)), quick=given.quick)
    plain = {count: [[vars(item) for item in pair] for pair in pairs] for count, pairs in results.items()}
    write_json(given.json, {"machine": facts, "gemm_flop_s": peak, "results": plain})
    return 0


def in_a_process(train: Callable[[Setup], Trained], setup: Setup) -> Trained:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, setup).result()


def examples(num_tokens: int, instruction: int, seed: int, vocab_size: int) -> list[TokenizedExample]:
    """Random examples with `num_tokens` tokens in all, each of which begins with the same `instruction` tokens."""
    draw = random.Random(seed)
    shared = tuple(draw.randrange(vocab_size) for _ in range(instruction))
    made, left = [], num_tokens
    while left:
        length = min(draw.randint(*LENGTHS), left)
        if 0 < left - length < LENGTHS[0]:
            length = left if left <= LENGTHS[1] else left - LENGTHS[0]
        ids = shared + tuple(draw.randrange(vocab_size) for _ in range(length - instruction))
        made.append(TokenizedExample(ids, length - NUM_TARGETS))
        left -= length
    return made


def train_with_atoll(setup: Setup) -> Trained:
    """All adapters in one run; a short run of other adapters warms up."""

    def run(num_tokens_each: int) -> tuple[int, float]:
        base = load_base(setup.base, dtype=setup.dtype)
        config = TrainerConfig(
            epochs=1, effective_batch_size=BATCH_SIZE, token_budget=PASS_TOKENS, learning_rate_scheduler="constant"
        )
        vocab_size = int(base.model.config.vocab_size)
        jobs = []
        for seed in range(setup.num_adapters):
            split = TokenizedSplit(tuple(examples(num_tokens_each, setup.instruction, seed, vocab_size)))
            jobs.append(TrainingJob(f"a{seed}", LoraConfig(r=RANK), config, LEARNING_RATE, split, None))
        trainer = Trainer(base, jobs, config)
        start = time.perf_counter()
        trainer.train()
        return sum(job.train.num_tokens for job in jobs), time.perf_counter() - start

    run(ROW // setup.num_adapters or LENGTHS[0])
    return Trained(*run(setup.tokens_each), rss_bytes())


def train_with_trainer(setup: Setup) -> Trained:
    """One adapter after another with PEFT and transformers' Trainer; a short training warms up."""
    warnings.simplefilter("ignore")
    from transformers import AutoModelForCausalLM

    folder = resolve_base(setup.base).folder
    with quiet():
        base: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, setup.dtype), local_files_only=True
        )
    vocab_size = int(base.config.vocab_size)
    _train_one(base, rows_of(examples(ROW, setup.instruction, 0, vocab_size)))
    seconds = 0.0
    for seed in range(setup.num_adapters):
        seconds += _train_one(base, rows_of(examples(setup.tokens_each, setup.instruction, seed, vocab_size)))
    return Trained(setup.tokens_each * setup.num_adapters, seconds, rss_bytes())


def rows_of(packed: Sequence[TokenizedExample]) -> list[dict[str, list[int]]]:
    """The examples side by side, cut into rows of ROW tokens."""
    ids: list[int] = []
    labels: list[int] = []
    for example in packed:
        ids += example.ids
        labels += [-100] * example.num_prompt_tokens
        labels += example.ids[example.num_prompt_tokens :]
    return [{"input_ids": ids[at : at + ROW], "labels": labels[at : at + ROW]} for at in range(0, len(ids), ROW)]


def _train_one(base: Any, rows: Any) -> float:
    import tempfile

    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import PrinterCallback, TrainingArguments, default_data_collator
    from transformers import Trainer as TransformersTrainer

    config = PeftConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    rows_per_pass = PASS_TOKENS // ROW
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=rows_per_pass,
            gradient_accumulation_steps=ROWS_PER_STEP // rows_per_pass,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = TransformersTrainer(model, arguments, default_data_collator, rows)
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    model.unload()
    return seconds


def report(
    results: dict[int, list[tuple[Trained, Trained]]], dtype: str, peak: float, flop: int, *, quick: bool
) -> None:
    print(f"rank {RANK} on all linear layers, {dtype}; training tokens/s, best of the rounds (share of the GEMM peak,")
    print(f"{peak / 1e9:.0f} GFLOP/s, at {flop / 1e6:.0f} MFLOP a token); ratio: median of the rounds\n")
    rows, goals = [], []
    for count, pairs in results.items():
        ours, theirs = (max(item.tokens_per_s for item in side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs)
        memory = " / ".join(f"{max(item.rss_bytes for item in side) / 1e9:.1f}" for side in zip(*pairs, strict=True))
        cells = [f"{rate:.0f} ({rate * flop / peak:.0%})" for rate in (ours, theirs)]
        rows.append((count, *cells, f"{ratio:.2f} x", memory))
        goals.append(goal(f"over the Trainer, {count} adapters", 1.3, ratio))
    print_table(["adapters", "atoll", "PEFT + Trainer", "ratio", "RSS, GB"], rows)
    if not quick:
        print_table(["goal", "wanted", "measured", ""], goals)


if __name__ == "__main__":
    sys.exit(main())
