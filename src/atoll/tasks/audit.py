"""What is wrong, or likely to be, with a task's data and tokens; looks at everything and trains nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll.config.fleet import DataConfig
from atoll.config.task import TaskConfig
from atoll.tasks.dataset import Example, Split
from atoll.text.prompt import PromptRenderer, RenderedExample, length_limit, num_within, percentile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_CLASSES = 20
_NUM_BUCKETS = 12
# A split of which a larger share is cut than this deserves a word.
_MANY_CUT = 0.1


@dataclass(frozen=True)
class SplitAudit:
    """Counts of one split. num_used: the rows that the fleet's limits leave. num_leaked: rows with inputs of train.

    num_contradictory: inputs that occur with more than one target.
    """

    split: Split
    num_rows: int
    num_used: int
    num_duplicates: int
    num_contradictory: int
    num_leaked: int
    num_empty: dict[str, int]


@dataclass(frozen=True)
class TokenAudit:
    """Lengths in tokens of whole training examples before cutting, and what the length limit does to them.

    histogram: (largest length of a bucket, examples in it). num_tokens and num_target_tokens are of the examples as
    they are trained on. num_long_answers: answers that do not fit in the task's max_new_tokens.
    """

    median: int
    p95: int
    p99: int
    longest: int
    histogram: tuple[tuple[int, int], ...]
    max_length: int
    num_cut: int
    num_tokens: int
    num_target_tokens: int
    num_long_answers: int


@dataclass(frozen=True)
class XRay:
    """An example as the model is shown it: the prompt, and the tokens of the answer that carry loss."""

    prompt: str
    trained: tuple[str, ...]
    num_prompt_tokens: int
    num_cut_tokens: int


@dataclass(frozen=True)
class TaskAudit:
    """All findings on one task. `problems` forbid training; `warnings` only ask for a second look."""

    task: str
    splits: tuple[SplitAudit, ...]
    labels: dict[str, int]
    tokens: TokenAudit
    num_validation_tokens: int
    xrays: tuple[XRay, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def audit_task(
    task: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[Split, Sequence[Example]],
    *,
    data: DataConfig,
    end_ids: Iterable[int],
    model_max_length: int,
) -> TaskAudit:
    """Look at a task's whole splits, of which "train" is required, as the fleet's `data` section would use them.

    end_ids: the tokens that stop generation. Raises ConfigError or DataError where training would.
    """

    def renderer(max_length: int | None) -> PromptRenderer:
        return PromptRenderer(tokenizer, task.prompt, task.input_columns, task.target_column, max_length)

    train = [example.row for example in splits["train"][: data.limit]]
    unlimited = renderer(None)
    limit = length_limit(unlimited, train, max_length=data.max_length, model_max_length=model_max_length)
    whole = [unlimited.supervised(row) for row in train]
    limited = renderer(limit)
    rendered = [
        example if len(example.ids) <= limit else limited.supervised(row)
        for example, row in zip(whole, train, strict=True)
    ]
    count = num_within([len(example.ids) for example in rendered], data.max_tokens)
    train, whole, rendered = train[:count], whole[:count], rendered[:count]
    validation = [limited.supervised(e.row) for e in splits.get("validation", [])[: data.validation_limit]]
    tokens = _token_audit(whole, rendered, limit, task.generation.max_new_tokens)
    counted = _split_audits(task, splits, {"train": count, "validation": data.validation_limit})
    targets = Counter(row[task.target_column] for row in train)
    labels = dict(targets.most_common()) if task.labels or len(targets) <= _MAX_CLASSES else {}
    order = sorted(range(len(whole)), key=lambda index: len(whole[index].ids))
    shown = dict.fromkeys([order[0], order[len(order) // 2], order[-1]])
    return TaskAudit(
        task=task.name,
        splits=counted,
        labels=labels,
        tokens=tokens,
        num_validation_tokens=sum(len(example.ids) for example in validation),
        xrays=tuple(x_ray(tokenizer, rendered[index]) for index in shown),
        problems=tuple(mask_problems([*rendered, *validation], end_ids)) + _empty_targets(task, counted),
        warnings=tuple(_warnings(task, counted, tokens, labels)),
    )


def mask_problems(examples: Sequence[RenderedExample], end_ids: Iterable[int]) -> list[str]:
    """What in the loss masks would spoil training: examples that train nothing, or not the token that stops them."""
    ends = frozenset(end_ids)
    num_empty = sum(len(example.ids) <= example.num_prompt_tokens for example in examples)
    num_endless = sum(example.ids[-1] not in ends for example in examples if len(example.ids))
    problems = []
    if num_empty:
        problems.append(f"examples with an empty mask, none of whose tokens is trained: {num_empty}")
    if num_endless:
        problems.append(f"examples that do not train the end, so that answers would not stop: {num_endless}")
    return problems


def x_ray(tokenizer: PreTrainedTokenizerBase, example: RenderedExample) -> XRay:
    """An example's text, special tokens visible; a character of several tokens is shown with the last of them."""
    prompt = str(tokenizer.decode(example.ids[: example.num_prompt_tokens]))
    trained: list[str] = []
    shown = len(prompt)
    for end in range(example.num_prompt_tokens + 1, len(example.ids) + 1):
        text = str(tokenizer.decode(example.ids[:end]))
        is_whole = not text.endswith("\ufffd") or end == len(example.ids)
        trained.append(text[shown:] if is_whole else "")
        shown = len(text) if is_whole else shown
    return XRay(prompt, tuple(trained), example.num_prompt_tokens, example.num_cut_tokens)


def _token_audit(
    whole: Sequence[RenderedExample], rendered: Sequence[RenderedExample], limit: int, max_new_tokens: int
) -> TokenAudit:
    lengths = [len(example.ids) for example in whole]
    targets = [len(example.ids) - example.num_prompt_tokens for example in rendered]
    return TokenAudit(
        median=percentile(lengths, 0.5),
        p95=percentile(lengths, 0.95),
        p99=percentile(lengths, 0.99),
        longest=max(lengths),
        histogram=histogram(lengths),
        max_length=limit,
        num_cut=sum(example.num_cut_tokens > 0 for example in rendered),
        num_tokens=sum(len(example.ids) for example in rendered),
        num_target_tokens=sum(targets),
        # The end token need not be generated for the answer to be whole.
        num_long_answers=sum(num_targets - 1 > max_new_tokens for num_targets in targets),
    )


def histogram(lengths: Sequence[int], num_buckets: int = _NUM_BUCKETS) -> tuple[tuple[int, int], ...]:
    """(largest length, count) of buckets of equal width from the shortest to the longest."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // num_buckets))
    counts = Counter((length - low) // width for length in lengths)
    return tuple((low + (bucket + 1) * width - 1, counts[bucket]) for bucket in range((high - low) // width + 1))


def _split_audits(
    task: TaskConfig, splits: Mapping[Split, Sequence[Example]], limits: Mapping[Split, int | None]
) -> tuple[SplitAudit, ...]:
    key = _input_key(task)
    used = {split: examples[: limits.get(split)] for split, examples in splits.items()}
    trained = {key(example) for example in used["train"]}
    audits = []
    for split, examples in splits.items():
        targets: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for example in examples:
            targets[key(example)].add(example.row[task.target_column])
        columns = (*task.input_columns, task.target_column)
        empty = {column: sum(not example.row[column].strip() for example in examples) for column in columns}
        audits.append(
            SplitAudit(
                split=split,
                num_rows=len(examples),
                num_used=len(used[split]),
                num_duplicates=len(examples) - len({example.example_id for example in examples}),
                num_contradictory=sum(len(values) > 1 for values in targets.values()),
                num_leaked=0 if split == "train" else sum(key(example) in trained for example in used[split]),
                num_empty={column: count for column, count in empty.items() if count},
            )
        )
    return tuple(audits)


def _input_key(task: TaskConfig) -> Callable[[Example], tuple[str, ...]]:
    """Inputs without the differences of case and white space that hide copies."""
    return lambda example: tuple(" ".join(example.row[column].casefold().split()) for column in task.input_columns)


def _empty_targets(task: TaskConfig, splits: Sequence[SplitAudit]) -> tuple[str, ...]:
    return tuple(
        f"empty answers (`{task.target_column}`) in {audit.split}: {audit.num_empty[task.target_column]};"
        " their masks hold nothing but the end"
        for audit in splits
        if audit.split != "test" and task.target_column in audit.num_empty
    )


def _warnings(
    task: TaskConfig, splits: Sequence[SplitAudit], tokens: TokenAudit, labels: Mapping[str, int]
) -> Iterable[str]:
    for audit in splits:
        if audit.num_leaked:
            yield f"{audit.split} examples whose inputs train has too: {audit.num_leaked} of {audit.num_used}"
        if audit.num_contradictory and labels:
            yield f"inputs with contradictory labels in {audit.split}: {audit.num_contradictory}"
        if not audit.num_rows and audit.split == "validation":
            yield "there are no validation examples: training cannot stop early"
        for column, count in audit.num_empty.items():
            yield f"`{column}` is empty in {count} of {audit.num_rows} {audit.split} rows"
    unused = [label for label in task.labels or () if label not in labels]
    if unused:
        yield "no training example has the label " + ", ".join(map(repr, unused))
    if tokens.num_long_answers:
        limit = task.generation.max_new_tokens
        yield f"answers longer than generation.max_new_tokens ({limit}): {tokens.num_long_answers}"
    num_used = next(audit.num_used for audit in splits if audit.split == "train")
    if tokens.num_cut > _MANY_CUT * num_used:
        yield f"training examples cut to {tokens.max_length} tokens: {tokens.num_cut} of {num_used}"
