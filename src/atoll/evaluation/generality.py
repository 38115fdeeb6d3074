"""Measuring what `forgetting.py` scores: the base's answers to general prompts, and their bits under every adapter.

What is measured belongs to base and adapter alone, so later runs of the same ones take it over.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from ruamel.yaml import YAML

from atoll.adapters.store import StoredAdapter
from atoll.config.fleet import QuantizationConfig
from atoll.config.task import PromptConfig
from atoll.engine import Completion, Engine, Request, SamplingParams
from atoll.errors import DataError
from atoll.evaluation.forgetting import AdapterBits, GeneralAnswer, GeneralityRecord, generality_path, read_generality
from atoll.files import write_atomic
from atoll.model.cache import OnProgress
from atoll.text.prompt import PromptRenderer

MAX_NEW_TOKENS = 64
_PROMPT = PromptConfig(template="{text}")


def general_prompts() -> list[str]:
    """The fixed list."""
    text = resources.files("atoll.evaluation").joinpath("general_prompts.yaml").read_text(encoding="utf-8")
    prompts: list[str] = YAML(typ="safe", pure=True).load(text)
    return prompts


def measure_generality(
    engine: Engine,
    adapters: Sequence[StoredAdapter],
    folder: Path,
    *,
    quantization: QuantizationConfig | None = None,
    prompts: Sequence[str] | None = None,
    on_progress: OnProgress = lambda what, fraction: None,
) -> GeneralityRecord:
    """Measure these adapters and write the record to `folder`.

    Adapters that an earlier record of the same base and prompts has are not measured again.
    """
    texts = general_prompts() if prompts is None else list(prompts)
    blank = GeneralityRecord(
        base_digest=engine.base.digest,
        dtype=str(engine.base.dtype).removeprefix("torch."),
        quantization_bits=quantization.bits if quantization else None,
        prompts_digest=_digest(texts),
        num_failed=0,
        answers=(),
        adapters={},
    )
    known = _known(folder, blank)
    kept = {
        adapter.name: known.adapters[adapter.name]
        for adapter in adapters
        if adapter.name in known.adapters and _is_done(known.adapters[adapter.name], adapter)
    }
    missing = {adapter.name: adapter for adapter in adapters if adapter.name not in kept}
    if not missing:
        return known
    record = known if known.answers else _answered(engine, texts, blank, on_progress)
    bits = _bits(engine, record.answers, missing, on_progress)
    record = record.model_copy(update={"adapters": kept | bits})
    write_atomic(generality_path(folder), record.model_dump_json(indent=2) + "\n")
    return record


def _is_done(found: AdapterBits, adapter: StoredAdapter) -> bool:
    return found.digest == adapter.digest and found.error is None


def _known(folder: Path, blank: GeneralityRecord) -> GeneralityRecord:
    """An earlier record of the same base and prompts, or the blank one."""
    record = read_generality(folder)
    same = {"base_digest", "dtype", "quantization_bits", "prompts_digest"}
    is_same = record is not None and record.model_dump(include=same) == blank.model_dump(include=same)
    return record if record is not None and is_same else blank


def _answered(
    engine: Engine, texts: Sequence[str], blank: GeneralityRecord, on_progress: OnProgress
) -> GeneralityRecord:
    """The record with the base's answers and their bits. Raises DataError where these cannot be had."""
    sampling = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    prompts = [_prompt_ids(engine, text) for text in texts]
    requests = [Request(prompt_ids=prompt, sampling=sampling) for prompt in prompts]
    completions = engine.generate(requests, lambda done, total: on_progress("general answers", done / total))
    # Scoring an answer generates one more token than it has.
    fitting = [
        GeneralAnswer(prompt=text, answer=completion.text, token_ids=completion.token_ids, bits=0.0)
        for text, prompt, completion in zip(texts, prompts, completions, strict=True)
        if completion.error is None and 0 < len(completion.token_ids) < engine.max_length - len(prompt)
    ]
    own = _bits(engine, fitting, {"": None}, on_progress)[""]
    if own.error is not None:
        raise DataError("the base's answers to the general prompts could not be scored", why=own.error)
    answers = [answer.model_copy(update={"bits": bits}) for answer, bits in zip(fitting, own.bits, strict=True)]
    return blank.model_copy(update={"num_failed": len(texts) - len(answers), "answers": tuple(answers)})


def _bits(
    engine: Engine,
    answers: Sequence[GeneralAnswer],
    adapters: Mapping[str, StoredAdapter | None],
    on_progress: OnProgress,
) -> dict[str, AdapterBits]:
    """The bits of every answer under each adapter, in mixed batches of the engine."""
    prompts = [_prompt_ids(engine, answer.prompt) for answer in answers]
    # The last token needs no successor; the engine generates at least one, which is not looked at.
    sampling = SamplingParams(max_new_tokens=1)
    requests = [
        Request(prompt_ids=prompt + answer.token_ids, sampling=sampling, adapter=adapter, prompt_logprobs=0)
        for prompt, answer in zip(prompts, answers, strict=True)
        for adapter in adapters.values()
    ]
    completions = engine.generate(requests, lambda done, total: on_progress("forgetting", done / total))
    return {
        name: _adapter_bits(
            adapter.digest if adapter else engine.base.digest,
            completions[place :: len(adapters)],
            [len(prompt) for prompt in prompts],
        )
        for place, (name, adapter) in enumerate(adapters.items())
    }


def _adapter_bits(digest: str, completions: Sequence[Completion], num_prompt_tokens: Sequence[int]) -> AdapterBits:
    if failed := next((completion.error for completion in completions if completion.error), None):
        return AdapterBits(digest=digest, bits=(), error=failed.what)
    bits = tuple(map(_answer_bits, completions, num_prompt_tokens))
    if not all(map(math.isfinite, bits)):
        return AdapterBits(digest=digest, bits=(), error="its probabilities are not numbers")
    return AdapterBits(digest=digest, bits=bits)


def _answer_bits(completion: Completion, num_prompt_tokens: int) -> float:
    if completion.finish is None or len(completion.finish.prompt_tokens) <= num_prompt_tokens:
        raise DataError("a request of the measure of forgetting was aborted", mend="run `atoll eval` again")
    tokens = completion.finish.prompt_tokens[num_prompt_tokens:]
    return -math.fsum(token.logprob for token in tokens if token.logprob is not None) / math.log(2)


def _prompt_ids(engine: Engine, text: str) -> tuple[int, ...]:
    return tuple(PromptRenderer(engine.base.tokenizer, _PROMPT, ("text",), "answer").prompt({"text": text}).ids)


def _digest(texts: Sequence[str]) -> str:
    return "sha256:" + hashlib.sha256("\n".join([*texts, str(MAX_NEW_TOKENS)]).encode()).hexdigest()
