"""Reads the files that Ludwig fine-tunes language models from, as a fleet of one adapter and its task.

A key is translated so that it means the same, or refused by name, or, where it cannot change a result here, told in a
note. Ludwig counts its steps in micro-batches, of which `gradient_accumulation_steps` make one optimiser step; ours are
optimiser steps. Source: Ludwig 0.10, LoRA Land's version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from atoll.config.explain import Loc, explain, place_of
from atoll.config.ludwig_bases import default_modules, full_name
from atoll.config.ludwig_data import sources
from atoll.config.ludwig_prompt import BadTemplate, prompt_template
from atoll.config.ludwig_rules import RULES, SAMPLING_RULES, Note, Refusal
from atoll.config.ludwig_schema import LudwigFile, Prompt, Trainer
from atoll.config.template import template_columns
from atoll.config.yaml_text import Value
from atoll.config.yaml_tree import Node, Problem

# `trainer.learning_rate: auto`, for fine-tuning.
_AUTO_RATE = 0.0001
# No gradient is that long: Ludwig can leave them unclipped, we always name a norm.
_NO_CLIPPING = 1e30
_DEFAULT_NEW_TOKENS = 32
_NEW_TOKENS_WITHOUT_LIMIT = 1024


@dataclass(frozen=True)
class Translation:
    """A fleet and its task as the values of their YAML files, and what the file says that has no effect here."""

    fleet: dict[str, Value]
    task: dict[str, Value]
    notes: tuple[str, ...]


class Untranslatable(Exception):
    """The file cannot be translated; `problems` says where and why."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems[0].what)
        self.problems = list(problems)


def is_ludwig(document: Any) -> bool:
    """Whether a YAML file's values are those of a Ludwig file."""
    return isinstance(document, dict) and (
        "model_type" in document or ("input_features" in document and "output_features" in document)
    )


def translate(root: Node, *, name: str, dataset: str, task: str, columns: Sequence[str] | None = None) -> Translation:
    """The fleet and the task that a Ludwig file means.

    name: of the adapter and the task. dataset: path of the data file, which Ludwig takes from its command line. task:
    what the fleet calls the task. columns: those of the data file, where they are known. Raises Untranslatable.
    """
    reader = _Reader(root)
    file = reader.read()
    translated = _Translator(reader, file, columns)
    fleet, definition = translated.fleet(name, task), translated.task(name, dataset)
    if reader.problems:
        raise Untranslatable(reader.problems)
    return Translation(fleet, definition, tuple(dict.fromkeys(reader.notes)))


class _Reader:
    """Sorts the keys of a file: those to translate, those to refuse, those to note."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.notes: list[str] = []
        self.problems: list[Problem] = []

    def read(self) -> LudwigFile:
        """The keys to translate, validated. Raises Untranslatable for what is refused, and for what is not valid."""
        kept = self._kept(self.root.value, ())
        generation = kept["generation"] if isinstance(kept.get("generation"), dict) else {}
        sampling = {key: generation.pop(key) for key in SAMPLING_RULES if key in generation}
        try:
            file = LudwigFile.model_validate(kept)
        except ValidationError as error:
            raise Untranslatable(self.problems + explain(error, self.root, LudwigFile)) from None
        for key, value in sampling.items():
            if _is_sampled(file):
                self._apply(SAMPLING_RULES[key], ("generation", key), value)
            else:
                self.note(("generation", key), "a greedy answer takes the likeliest token whatever it is")
        if self.problems:
            raise Untranslatable(self.problems)
        return file

    def note(self, loc: Loc, why: str) -> None:
        self.notes.append(f"`{_dotted(loc)}`: {why}")

    def problem(self, loc: Loc, what: str, mend: str) -> None:
        self.problems.append(Problem(place_of(self.root, loc), f"`{_dotted(loc)}` {what}", mend))

    def _kept(self, value: Any, loc: Loc) -> Any:
        if isinstance(value, list):
            return [self._kept(item, (*loc, index)) for index, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        rules = RULES.get(tuple("*" if isinstance(part, int) else part for part in loc), {})
        kept = {}
        for key, child in value.items():
            here = (*loc, key)
            if key in rules:
                self._apply(rules[key], here, child)
            else:
                kept[key] = self._kept(child, here)
        return kept

    def _apply(self, rule: Note | Refusal, loc: Loc, value: Any) -> None:
        if isinstance(value, dict) and not any(value.values()):
            value = {}  # a section that sets nothing
        # `True == 1` in Python, so a truth and a number are only neutral as themselves.
        if any(type(value) is type(neutral) and value == neutral for neutral in rule.neutral):
            return
        if isinstance(rule, Note):
            self.note(loc, rule.why)
        else:
            self.problem(loc, f"cannot be translated: {rule.why}", rule.mend)


class _Translator:
    """A valid file's sections, one by one; what is found wrong goes to the reader."""

    def __init__(self, reader: _Reader, file: LudwigFile, columns: Sequence[str] | None) -> None:
        self._reader = reader
        self._file = file
        self._columns = columns

    def fleet(self, name: str, task: str) -> dict[str, Value]:
        file = self._file
        fleet: dict[str, Value] = {"base_model": full_name(file.base_model)}
        if file.quantization is not None:
            fleet["quantization"] = {"bits": file.quantization.bits}
        return fleet | {
            "adapters": {name: {"task": task}},
            "adapter": self._adapter(),
            "trainer": self._trainer(file.trainer),
            "data": self._data(),
        }

    def task(self, name: str, dataset: str) -> dict[str, Value]:
        file = self._file
        for section in ("input_features", "output_features"):
            if len(getattr(file, section)) > 1:
                mend = "name further columns in `prompt.template`" if section[0] == "i" else "make a file for each"
                self._reader.problem((section, 1), "is one feature too many: a task has one of them", mend)
        target = file.output_features[0].column_name
        template = self._template()
        if target in template_columns(template):
            loc = ("prompt", "template") if file.prompt and file.prompt.template else ("input_features", 0)
            self._reader.problem(loc, f"shows `{target}`, the right answer", "use other columns in the prompt")
        return {
            "name": name,
            "dataset": sources(dataset, file.preprocessing, self._columns, self._reader),
            "prompt": {"template": template, "chat_template": False},
            "target_column": target,
            "metrics": ["accuracy", "rouge_l"],
            "generation": self._generation(),
        }

    def _adapter(self) -> Value:
        adapter = self._file.adapter
        modules = adapter.target_modules or self._default_modules()
        lora: dict[str, Value] = {"r": adapter.r, "alpha": adapter.alpha or 2 * adapter.r, "dropout": adapter.dropout}
        lora["target_modules"] = modules if isinstance(modules, str) else list(modules)
        return lora | ({"use_rslora": True} if adapter.use_rslora else {})

    def _default_modules(self) -> Sequence[str]:
        base = self._file.base_model
        if (modules := default_modules(base)) is not None:
            return modules
        what = f"names no `target_modules`, and what is adapted by default in {base[:80]} is not known here"
        self._reader.problem(("adapter",), what, "add, for example, `target_modules: [q_proj, v_proj]`")
        return ("q_proj", "v_proj")

    def _trainer(self, trainer: Trainer) -> Value:
        batch = self._batch(trainer)
        optimizer, clipping = trainer.optimizer, trainer.gradient_clipping
        if optimizer.weight_decay and not optimizer.type.endswith("adamw"):
            loc = ("trainer", "optimizer", "weight_decay")
            self._reader.problem(loc, "cannot be translated: Adam adds it to gradients", "use `type: adamw`")
        if optimizer.type.startswith("paged"):
            self._reader.note(("trainer", "optimizer", "type"), "the same optimiser, its state is not paged")
        norm = clipping.clipglobalnorm if clipping else None
        values: dict[str, Value] = {
            "learning_rate": _AUTO_RATE if trainer.learning_rate == "auto" else float(trainer.learning_rate),
            **self._schedule(trainer),
            **self._length(trainer, batch),
            "effective_batch_size": batch.effective,
            "max_grad_norm": _NO_CLIPPING if norm is None else norm,
            "weight_decay": optimizer.weight_decay,
            "early_stop": trainer.early_stop if trainer.early_stop > 0 else None,
            **self._evaluations(trainer, batch),
        }
        return values | ({"gradient_checkpointing": True} if trainer.enable_gradient_checkpointing else {})

    def _schedule(self, trainer: Trainer) -> dict[str, Value]:
        scheduler = trainer.learning_rate_scheduler
        decays = {None: "constant", "linear": "linear", "cosine": "cosine_with_restarts"}
        if scheduler is None:
            return {"learning_rate_scheduler": "constant", "warmup_fraction": 0.0}
        return {
            "learning_rate_scheduler": decays[scheduler.decay],
            "warmup_fraction": scheduler.warmup_fraction,
        }

    def _batch(self, trainer: Trainer) -> _Batch:
        micro, accumulated, effective = (
            None if size == "auto" else size
            for size in (trainer.batch_size, trainer.gradient_accumulation_steps, trainer.effective_batch_size)
        )
        loc = ("trainer", "effective_batch_size")
        if micro is None and effective is None:
            what = "is `auto`: what fits into memory is not known before"
            self._reader.problem(("trainer", "batch_size"), what, "write a number, or `effective_batch_size`")
            return _Batch(1, 1)
        if effective is not None and (part := micro or accumulated) and effective % part:
            self._reader.problem(loc, f"is no multiple of {part}", "make it one, as Ludwig asks for")
        if micro is None:
            micro = max(1, (effective or 1) // (accumulated or 1))
        if accumulated is None:
            accumulated = 1 if effective is None else max(1, effective // micro)
        return _Batch(micro, accumulated)

    def _length(self, trainer: Trainer, batch: _Batch) -> dict[str, Value]:
        steps = trainer.train_steps
        if steps is None:
            if "epochs" not in trainer.model_fields_set:
                self._reader.note(("trainer", "epochs"), f"not given, so Ludwig's default of {trainer.epochs} counts")
            return {"epochs": trainer.epochs}
        count = max(1, steps // batch.accumulated)
        if steps % batch.accumulated:
            why = f"its last {steps % batch.accumulated} micro-batches make no whole step, and are left out"
            self._reader.note(("trainer", "train_steps"), why)
        # An epoch has one step at least, so that many epochs never end before the steps do.
        return {"epochs": count, "max_steps": count}

    def _evaluations(self, trainer: Trainer, batch: _Batch) -> dict[str, Value]:
        every, loc = trainer.steps_per_checkpoint, ("trainer", "steps_per_checkpoint")
        if every and trainer.checkpoints_per_epoch:
            self._reader.problem(loc, "and `checkpoints_per_epoch` exclude each other", "remove one of the two")
        if not every:
            return {"evaluations_per_epoch": trainer.checkpoints_per_epoch or 1}
        if every % batch.accumulated:
            what = f"counts micro-batches, and is no multiple of the {batch.accumulated} that make one step"
            self._reader.problem(loc, what, "make it one: a validation round would cut a step short")
        return {"evaluate_every_steps": max(1, every // batch.accumulated)}

    def _data(self) -> Value:
        trainer, limit = self._file.trainer, self._file.preprocessing.global_max_sequence_length
        num_validation = None
        if trainer.eval_steps is not None:
            batch = trainer.eval_batch_size
            if batch == "auto" or not (batch or isinstance(trainer.batch_size, int)):
                what = "counts batches whose size is not known before"
                self._reader.problem(("trainer", "eval_steps"), what, "write a number for `eval_batch_size`")
            else:
                num_validation = trainer.eval_steps * int(batch or trainer.batch_size)
        values: dict[str, Value] = {"validation_limit": num_validation}
        if limit is None:
            limit = self._feature_limits()
        return values | ({} if limit is None else {"max_length": limit})

    def _feature_limits(self) -> int | None:
        """The limits of prompt and answer together, where the file limits each by itself."""
        shown, answer = (
            features[0].preprocessing.max_sequence_length
            for features in (self._file.input_features, self._file.output_features)
        )
        if shown and answer:
            why = (
                "prompt and answer share one limit, the sum of both, and what is too long is cut in the longest column"
            )
            self._reader.note(("input_features", 0, "preprocessing", "max_sequence_length"), why)
            return shown + answer
        for section, length in (("input_features", shown), ("output_features", answer)):
            if length:
                why = "prompt and answer share one limit: `data.max_length`, else the 95th percentile of the examples"
                self._reader.note((section, 0, "preprocessing", "max_sequence_length"), why)
        if not (shown or answer):
            why = "not given: the limit is the 95th percentile of the examples; `data.max_length` sets another"
            self._reader.note(("preprocessing", "global_max_sequence_length"), why)
        return None

    def _template(self) -> str:
        prompt = self._file.prompt or Prompt()
        sample = self._file.input_features[0].column_name
        try:
            template, takes_sample = prompt_template(prompt.template, prompt.task, sample)
        except BadTemplate as error:
            self._reader.problem(("prompt", error.key), error.what, error.mend)
            return ""
        if takes_sample:
            why = "`{__sample__}` is the column's text as it is, where Ludwig writes it as JSON does (`\\n`, `\\\"`)"
            self._reader.note(("prompt", "template"), why)
        return template

    def _generation(self) -> Value:
        generation = self._file.generation
        samples = _is_sampled(self._file)
        if samples:
            self._reader.note(("generation", "top_k"), "answers are sampled from all tokens, not from the likeliest 50")
        temperature = 1.0 if generation.temperature is None else generation.temperature
        return {"max_new_tokens": self._new_tokens(), "temperature": temperature if samples else 0.0}

    def _new_tokens(self) -> int:
        """Ludwig takes the first of these that is given, and takes its own default for not given."""
        wanted = self._file.generation.max_new_tokens
        if wanted not in (None, _DEFAULT_NEW_TOKENS):
            return int(wanted or 0)
        answer = self._file.output_features[0].preprocessing.max_sequence_length
        limit = answer or self._file.preprocessing.global_max_sequence_length
        if limit is not None:
            return max(limit, _DEFAULT_NEW_TOKENS)
        why = f"not given, and no length either: {_NEW_TOKENS_WITHOUT_LIMIT}; Ludwig takes half of the base's positions"
        self._reader.note(("generation", "max_new_tokens"), why)
        return _NEW_TOKENS_WITHOUT_LIMIT


def _is_sampled(file: LudwigFile) -> bool:
    """Whether answers are drawn, and not the likeliest ones."""
    return file.generation.do_sample and file.generation.temperature != 0


@dataclass(frozen=True)
class _Batch:
    """Examples of a micro-batch, and micro-batches of an optimiser step."""

    micro: int
    accumulated: int

    @property
    def effective(self) -> int:
        return self.micro * self.accumulated


def _dotted(loc: Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
