"""Serving: output tokens per second of requests that are there at once, over 0 to 32 adapters, against other engines.

make bench-serve      or      .venv/bin/python bench/serve.py --rounds 5 --contenders atoll,peft

Every contender has a process of its own and answers the same prompts; one works at a time, and all answer a case before
the next case comes, so that a slow minute of the machine meets all of them. `bench/peers/setup` installs the others.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atoll.model.source import resolve_base
from common import BENCH, gemm_peak, machine, num_threads, parser, print_table, quote, say, work_folder, write_json
from goals import serve_goals
from made import base_config, linear_shapes, make_adapters, matrix_params, num_lora_params
from peers.protocol import Answer, Case, Settings
from workers import Contender, Files, Worker, known_contenders

RANK = 16
NUM_WARM_UP_TOKENS = 3
REST_S = 1.0
ALONE = "alone"


@dataclass(frozen=True)
class Load:
    """The shape of the requests."""

    num_requests: int = 32
    num_prompt: int = 96
    num_new: int = 32
    counts: tuple[int, ...] = (0, 1, 8, 32)

    @property
    def labels(self) -> list[str]:
        """The cases: numbers of adapters, and one request alone without an adapter."""
        return [*map(str, self.counts), ALONE]

    def case(self, label: str, seed: str, vocab_size: int) -> Case:
        """Random prompts that nobody has seen before, so that no prefix cache helps."""
        draw = random.Random(f"{seed} {label}")
        count = 1 if label == ALONE else self.num_requests
        prompts = [[draw.randrange(vocab_size) for _ in range(self.num_prompt)] for _ in range(count)]
        return Case(0 if label == ALONE else int(label), self.num_new, prompts)


QUICK = Load(num_requests=8, num_prompt=32, num_new=8, counts=(0, 1, 4))
Results = dict[str, dict[str, list[Answer]]]
"""Contender -> label -> an answer of each round."""


def main() -> int:
    options = parser(__doc__, rounds=3)
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options.add_argument("--bits", type=int, default=8, choices=[4, 8], help="of Atoll's quantised contender (8)")
    options.add_argument("--contenders", help="first words of their names, with commas: atoll,peft,vllm,llama (all)")
    options.add_argument("--peers", type=Path, default=BENCH / ".peers", help="the --dir of bench/peers/setup")
    given = options.parse_args()
    load = QUICK if given.quick else Load()
    num_rounds = 1 if given.quick else given.rounds
    facts = machine(quick=given.quick)
    print(quote(facts), end="\n\n")
    with work_folder(given.work) as folder, ExitStack() as stack:
        workers = start_workers(given, load, folder, stack)
        results = run_rounds([worker for worker, _ in workers], dict(workers), load, num_rounds, given.base)
    facts["gemm_gflop_s"] = max(facts["gemm_gflop_s"], round(gemm_peak() / 1e9))
    report(results, load, facts, given.base)
    write_json(given.json, {"machine": facts, "load": vars(load), "results": _plain(results)})
    return 0


def start_workers(
    given: argparse.Namespace, load: Load, folder: Path, stack: ExitStack
) -> list[tuple[Contender, Worker]]:
    """Everyone who is asked for and installed, loaded."""
    shapes = linear_shapes(base_config(given.base))
    made = make_adapters(folder / "adapters", shapes, max(load.counts), rank=RANK, base=given.base)
    files = Files(resolve_base(given.base).folder, [adapter.folder for adapter in made], folder)
    workers = []
    for contender in chosen(given, load):
        if not contender.is_installed(given.peers):
            print(f"{contender.name}: not installed: run bench/peers/setup {contender.worker}")
            continue
        say(f"loading {contender.name}")
        base, adapters = files.paths(contender)
        settings = Settings(
            base=base,
            adapters=adapters,
            rank=RANK,
            dtype=given.dtype,
            bits=contender.bits,
            max_num_requests=load.num_requests,
            max_length=load.num_prompt + load.num_new,
            num_threads=num_threads(),
            eager=given.quick,
        )
        log = folder / f"{contender.name}.log"
        try:
            worker = Worker(contender, settings, peers=given.peers, log=log)
        except RuntimeError as error:
            print(f"left out: {error}")
            continue
        stack.callback(worker.close)
        workers.append((contender, worker))
    return workers


def chosen(given: argparse.Namespace, load: Load) -> list[Contender]:
    """Those that --contenders names; --quick leaves out vllm, which takes its minute to load."""
    default = "atoll,peft,llama" if given.quick else ""
    names = tuple(name.strip().lower() for name in (given.contenders or default).split(","))
    known = known_contenders(frozenset(load.counts), given.bits)
    return [contender for contender in known if contender.name.lower().startswith(names)]


def run_rounds(
    contenders: Sequence[Contender], workers: dict[Contender, Worker], load: Load, num_rounds: int, base: str
) -> Results:
    """All cases of all rounds, each answered by one contender after another; a short round before warms up.

    Who waits for minutes while the others work finds its memory cold, so each is asked for a little before it is timed;
    and before that it rests until the threads of the one before, which spin on after its answer, are asleep.
    """
    vocab_size = base_config(base).vocab_size
    results: Results = {contender.name: {} for contender in contenders}
    for index in range(-1, num_rounds):
        for label in load.labels:
            case = load.case(label, str(index), vocab_size)
            for contender in contenders:
                if not (contender.is_asked_alone if label == ALONE else int(label) in contender.counts):
                    continue
                if index < 0:
                    workers[contender].ask(replace(case, num_new=NUM_WARM_UP_TOKENS))
                    continue
                time.sleep(REST_S)
                little = load.case(ALONE, f"before {index} {label}", vocab_size)
                workers[contender].ask(replace(little, num_new=NUM_WARM_UP_TOKENS))
                answer = workers[contender].ask(case)
                results[contender.name].setdefault(label, []).append(answer)
                say(f"round {index + 1}, case {label}, {contender.name}: {_rate(answer):.1f} tokens/s")
    return results


def report(results: Results, load: Load, facts: dict[str, Any], base: str) -> None:
    config = base_config(base)
    shapes = linear_shapes(config)
    flop = {count: 2 * (matrix_params(config) + bool(count) * num_lora_params(shapes, RANK)) for count in load.counts}
    print(
        f"\n{load.num_requests} requests, {load.num_prompt} prompt and {load.num_new} output tokens, rank {RANK} on all"
    )
    print(
        "linear layers; output tokens/s, best of the rounds (median); columns: distinct adapters, one request alone\n"
    )
    rows = []
    for name, answers in results.items():
        cells = [_best_and_median(answers.get(label, [])) for label in load.labels]
        rows.append([name, *cells])
    print_table(["", *load.labels], rows)
    print("atoll's rate over theirs, median of the rounds; in brackets: requests whose first token is the same\n")
    print_table(["", *load.labels], [[name, *_ratios(results, name, load)] for name in results if name != "atoll"])
    print(f"decode step with all {load.num_requests} rows, median of the best round; share of the fp32 GEMM peak\n")
    peak = facts["gemm_gflop_s"] * 1e9
    steps = {name: _steps(answers, load, flop, peak) for name, answers in results.items()}
    head = ["", *(str(count) for count in load.counts)]
    print_table(head, [[name, *(text for text, _ in cells)] for name, cells in steps.items()])
    best = {name: {label: max(map(_rate, got)) for label, got in answers.items()} for name, answers in results.items()}
    shares = {name: dict(zip(load.counts, (share for _, share in cells), strict=True)) for name, cells in steps.items()}
    if load != QUICK:
        print_table(["goal", "wanted", "measured", ""], serve_goals(best, shares))


def _rate(answer: Answer) -> float:
    return sum(map(len, answer.token_ids)) / answer.seconds


def _best_and_median(answers: Sequence[Answer]) -> str:
    rates = [_rate(answer) for answer in answers]
    return f"{max(rates):.1f} ({statistics.median(rates):.1f})" if rates else "-"


def _ratios(results: Results, name: str, load: Load) -> list[str]:
    """Rate and agreement with Atoll, for each case that both answered."""
    cells = []
    for label in load.labels:
        pairs = list(zip(results.get("atoll", {}).get(label, []), results[name].get(label, []), strict=False))
        if not pairs:
            cells.append("-")
            continue
        ratio = statistics.median(_rate(ours) / _rate(theirs) for ours, theirs in pairs)
        firsts = [a[0] == b[0] for ours, theirs in pairs for a, b in zip(ours.token_ids, theirs.token_ids, strict=True)]
        cells.append(f"{ratio:.2f} x ({sum(firsts) / len(firsts):.0%})")
    return cells


def _steps(
    answers: dict[str, list[Answer]], load: Load, flop: dict[int, int], peak: float
) -> list[tuple[str, float | None]]:
    """For each number of adapters: milliseconds and share as text, and the share."""
    cells: list[tuple[str, float | None]] = []
    for count in load.counts:
        times = [answer.step_s for answer in answers.get(str(count), []) if answer.step_s]
        if not times:
            cells.append(("-", None))
            continue
        share = load.num_requests * flop[count] / min(times) / peak
        cells.append((f"{1000 * min(times):.1f} ms, {share:.0%}", share))
    return cells


def _plain(results: Results) -> dict[str, dict[str, list[dict[str, float | None]]]]:
    return {
        name: {
            label: [{"tokens_s": _rate(a), "seconds": a.seconds, "first_s": a.first_s, "step_s": a.step_s} for a in got]
            for label, got in answers.items()
        }
        for name, answers in results.items()
    }


if __name__ == "__main__":
    sys.exit(main())
