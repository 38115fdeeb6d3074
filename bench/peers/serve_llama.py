"""llama.cpp as a contender of `serve.py`; runs in the environment that `bench/peers/setup llama` makes.

llama.cpp applies its adapters to a whole context, so requests of one adapter make a batch, and adapters are swapped
between the batches: the best that it can do with such a mix. Adapters are loaded once.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import llama_cpp.llama_cpp as llama
import numpy as np
from protocol import Answer, Case, Settings, work

CHUNK = 512


def load(settings: Settings) -> Callable[[Case], Answer]:
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(settings.base.encode(), llama.llama_model_default_params())
    adapters = [llama.llama_adapter_lora_init(model, path.encode()) for path in settings.adapters]
    if model is None or None in adapters:
        raise SystemExit(f"llama.cpp cannot read {settings.base} or its adapters")
    params = llama.llama_context_default_params()
    params.n_ctx = settings.max_num_requests * settings.max_length
    params.n_seq_max = settings.max_num_requests
    params.n_batch = params.n_ubatch = CHUNK
    params.n_threads = params.n_threads_batch = settings.num_threads
    context = Context(llama.llama_init_from_model(model, params), llama.llama_model_get_vocab(model))

    def run(case: Case) -> Answer:
        token_ids: list[list[int]] = [[] for _ in case.prompts]
        firsts, steps = [], list[float]()
        start = time.perf_counter()
        for group in range(max(1, case.num_adapters)):
            members = [i for i in range(len(case.prompts)) if not case.num_adapters or i % case.num_adapters == group]
            if not members:
                continue
            context.use(adapters[group] if case.num_adapters else None)
            answers, times = context.complete([case.prompts[index] for index in members], case.num_new)
            firsts.append(times[0])
            steps += [later - moment for moment, later in pairwise(times)]
            for index, answer in zip(members, answers, strict=True):
                token_ids[index] = answer
        seconds = time.perf_counter() - start
        is_whole = case.num_adapters <= 1
        step_s = statistics.median(steps) if is_whole and steps else None
        return Answer(seconds, token_ids, firsts[-1] - start, step_s)

    return run


class Context:
    """A llama.cpp context that completes several prompts side by side, greedily."""

    def __init__(self, context: object, vocab: object) -> None:
        self._context = context
        self._num_vocab = llama.llama_vocab_n_tokens(vocab)
        self._batch = llama.llama_batch_init(CHUNK, 0, 1)

    def use(self, adapter: object | None) -> None:
        """Apply one adapter, or none, and forget all sequences."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        pointers = (llama.llama_adapter_lora_p_ctypes * 1)(adapter)
        scales = (ctypes.c_float * 1)(1.0)
        llama.llama_set_adapters_lora(self._context, pointers, int(adapter is not None), scales)

    def complete(self, prompts: Sequence[Sequence[int]], num_new: int) -> tuple[list[list[int]], list[float]]:
        """The new tokens of each prompt, and the moments after each token of all."""
        pending = [
            (token, position, index, position == len(prompt) - 1)
            for index, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        answers: list[list[int]] = [[] for _ in prompts]
        times = []
        for step in range(num_new):
            for index, token in self._decode(pending):
                answers[index].append(token)
            times.append(time.perf_counter())
            pending = [
                (answer[-1], len(prompt) + step, index, True)
                for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            ]
        return answers, times

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[tuple[int, int]]:
        """rows: (token, position, sequence, whether its logits are wanted). Returns (sequence, next token)."""
        found = []
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            batch = self._batch
            batch.n_tokens = len(chunk)
            for row, (token, position, sequence, wanted) in enumerate(chunk):
                batch.token[row] = token
                batch.pos[row] = position
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = sequence
                batch.logits[row] = wanted
            if llama.llama_decode(self._context, batch) != 0:
                raise RuntimeError("llama_decode failed")
            for row, (_, _, sequence, wanted) in enumerate(chunk):
                if wanted:
                    logits = llama.llama_get_logits_ith(self._context, row)
                    found.append((sequence, int(np.ctypeslib.as_array(logits, (self._num_vocab,)).argmax())))
        return found


if __name__ == "__main__":
    work(load)
