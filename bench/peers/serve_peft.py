"""transformers and PEFT as a contender of `serve.py`: one padded batch, `adapter_names` for its rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from peft import PeftModel
from protocol import Answer, Case, Settings, work
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList


class Clock(StoppingCriteria):  # type: ignore[misc]
    """Never stops; called after every token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def load(settings: Settings) -> Callable[[Case], Answer]:
    def base() -> Any:
        dtype = getattr(torch, settings.dtype)
        return AutoModelForCausalLM.from_pretrained(settings.base, dtype=dtype, local_files_only=True).eval()

    # The wrapped model would pay for its adapters even where no row has one.
    plain, tuned = base(), None
    for index, folder in enumerate(settings.adapters):
        if tuned is None:
            tuned = PeftModel.from_pretrained(base(), folder, adapter_name="a0").eval()
        else:
            tuned.load_adapter(folder, f"a{index}")

    @torch.inference_mode()
    def run(case: Case) -> Answer:
        model, options = plain, {}
        if case.num_adapters:
            assert tuned is not None
            model = tuned
            model.set_adapter("a0")
            if case.num_adapters > 1:
                options["adapter_names"] = [f"a{index % case.num_adapters}" for index in range(len(case.prompts))]
        ids = torch.tensor(case.prompts)
        clock = Clock()
        start = time.perf_counter()
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=case.num_new,
            min_new_tokens=case.num_new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
            **options,
        )
        seconds = time.perf_counter() - start
        steps = [later - moment for moment, later in pairwise(clock.times)]
        step_s = sorted(steps)[len(steps) // 2] if steps else None
        return Answer(seconds, out[:, ids.shape[1] :].tolist(), clock.times[0] - start, step_s)

    return run


if __name__ == "__main__":
    work(load)
