"""What every contender of a member is asked: the same examples, each as the prompt that this contender gets."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import atoll
from atoll.adapters.contract import AdapterContract
from atoll.adapters.store import StoredAdapter
from atoll.config.task import GenerationConfig, TaskConfig
from atoll.engine import Engine, SamplingParams
from atoll.errors import DataError, RequestInvalid
from atoll.evaluation.contenders import MAJORITY, NEAREST, Contender, FewShot, Remote
from atoll.evaluation.journal import Entry, answer_key
from atoll.evaluation.nearest import NearestText, majority
from atoll.evaluation.outputs import ADAPTER, BASE, ContenderKind
from atoll.evaluation.remote_call import RemoteCall
from atoll.evaluation.sampling import Sample, choose_shots
from atoll.tasks.dataset import Example
from atoll.text.prompt import PromptRenderer, RenderedPrompt


@dataclass(frozen=True)
class Member:
    """An adapter to evaluate, with its contract and the task that it is evaluated on."""

    adapter: StoredAdapter
    contract: AdapterContract
    task: TaskConfig
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LocalAsk:
    """A prompt for the engine; adapter None is the bare base."""

    key: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    adapter: StoredAdapter | None


Ask = LocalAsk | RemoteCall | Entry
"""What is to be asked, or the answer of somebody who need not be asked, or why nothing can be."""


@dataclass(frozen=True)
class Line:
    """One contender's part in an evaluation: what it is asked for each example, in their order."""

    kind: ContenderKind
    asks: list[Ask]
    detail: str = ""
    remote: Remote | None = None


@dataclass(frozen=True)
class Asked:
    """One example as its prompt is made of it. row: the columns, the longest cut where the whole does not fit.

    error: why there is no prompt; contenders that are no models answer all the same.
    """

    example: Example
    row: Mapping[str, str]
    prompt: RenderedPrompt | None = None
    sampling: SamplingParams | None = None
    error: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A member with its examples and everybody who answers them."""

    member: Member
    sample: Sample
    asked: list[Asked]
    lines: dict[str, Line] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def prepare(
    engine: Engine,
    member: Member,
    sample: Sample,
    against: Sequence[Contender],
    *,
    seed: int,
    quantization_bits: Literal[4, 8] | None = None,
) -> Prepared:
    """Everything that one member's contenders are asked. A contender that needs train and has none is noted."""
    maker = _Maker(engine, member, sample, seed, quantization_bits)
    lines = {
        BASE: Line("base", maker.local(maker.prompts, None)),
        ADAPTER: Line("adapter", maker.local(maker.prompts, member.adapter)),
    }
    notes = [*member.notes, *_left_out(sample)]
    if sample.train is None:
        names = [MAJORITY, NEAREST, *(item.name for item in against if isinstance(item, FewShot))]
        notes.append(
            f"there is no train split at hand: test was not compared with it, and {', '.join(names)} could not answer"
        )
    else:
        lines[MAJORITY] = maker.majority(sample.train)
        lines[NEAREST] = maker.nearest(sample.train)
    for contender in against:
        if isinstance(contender, Remote):
            lines[contender.name] = maker.remote(contender)
        elif sample.train is not None:
            lines[contender.name] = maker.few_shot(contender, sample.train)
    # Train may be large, and nobody needs it any more.
    return Prepared(member, replace(sample, train=None), maker.asked, lines, tuple(notes))


def _left_out(sample: Sample) -> list[str]:
    if not sample.num_duplicates and not sample.num_leaked:
        return []
    return [
        f"left out of {sample.num_rows} test rows: {sample.num_duplicates} with the inputs of an earlier one, "
        f"{sample.num_leaked} with inputs that train has too"
    ]


class _Maker:
    """Makes the lines of one member's contenders."""

    def __init__(
        self, engine: Engine, member: Member, sample: Sample, seed: int, quantization_bits: Literal[4, 8] | None
    ) -> None:
        self._member = member
        self._task = member.task
        self._seed = seed
        self._max_length = engine.max_length
        self._renderer = member.contract.renderer(engine.base.tokenizer)
        # Everything that an answer of the engine depends on beside prompt and sampling.
        self._place = {
            "atoll": atoll.__version__,
            "base": engine.base.digest,
            "dtype": str(engine.base.dtype),
            "device": engine.base.device.type,
            "bits": quantization_bits,
        }
        self.asked = [_ask(example, self._task, self._renderer, self._max_length) for example in sample.examples]

        # As the adapter was trained with them; empty where there is no prompt.
        self.prompts = [tuple(asked.prompt.ids) if asked.prompt else () for asked in self.asked]

    def local(self, prompts: Sequence[tuple[int, ...]], adapter: StoredAdapter | None) -> list[Ask]:
        """The engine's part, with these prompts."""
        return [self._local(asked, ids, adapter) for asked, ids in zip(self.asked, prompts, strict=True)]

    def majority(self, train: Sequence[Example]) -> Line:
        answer = majority([example.row[self._task.target_column] for example in train])
        entry = Entry(key="", prediction=answer, finish_reason="stop")
        return Line("majority", [entry] * len(self.asked), detail=f"of {len(train)} training examples")

    def nearest(self, train: Sequence[Example]) -> Line:
        index = NearestText([self._text(example) for example in train])
        found = [train[index.find(self._text(asked.example))] for asked in self.asked]
        entries: list[Ask] = [
            Entry(key="", prediction=example.row[self._task.target_column], finish_reason="stop") for example in found
        ]
        return Line("nearest", entries, detail=f"of {len(train)} training examples")

    def few_shot(self, contender: FewShot, train: Sequence[Example]) -> Line:
        shots = [example.row for example in choose_shots(self._task, train, contender.num_shots, self._seed)]
        shown = [self._with_shots(asked, shots) for asked in self.asked]
        num_fewer = sum(num_shown < contender.num_shots for _, num_shown in shown)
        detail = f"{contender.num_shots} examples of train before each prompt"
        detail += (
            f"; fewer in {num_fewer} of {len(shown)} prompts, for want of room or of examples" if num_fewer else ""
        )
        return Line("few_shot", self.local([ids for ids, _ in shown], None), detail)

    def remote(self, contender: Remote) -> Line:
        asks: list[Ask] = [self._remote(asked, contender) for asked in self.asked]
        return Line("remote", asks, contender.detail, contender)

    def _with_shots(self, asked: Asked, shots: Sequence[Mapping[str, str]]) -> tuple[tuple[int, ...], int]:
        """The prompt after as many of `shots` as leave room for the answer, and how many these are."""
        if asked.prompt is None or asked.sampling is None:
            return (), len(shots)
        room = self._max_length - asked.sampling.max_new_tokens

        def num_tokens(num_shown: int) -> int:
            return len(self._renderer.prompt_after(asked.row, shots[:num_shown]))

        num_fitting = len(shots)
        if num_tokens(num_fitting) > room:
            num_fitting = max(0, bisect.bisect(range(len(shots)), room, key=num_tokens) - 1)
        if not num_fitting:
            return tuple(asked.prompt.ids), 0
        return tuple(self._renderer.prompt_after(asked.row, shots[:num_fitting])), num_fitting

    def _local(self, asked: Asked, ids: tuple[int, ...], adapter: StoredAdapter | None) -> LocalAsk | Entry:
        if asked.sampling is None:
            return Entry(key="", error=asked.error)
        key = self._key(asked.sampling, **self._place, adapter=adapter.digest if adapter else None, prompt=ids)
        return LocalAsk(key, ids, asked.sampling, adapter)

    def _remote(self, asked: Asked, contender: Remote) -> RemoteCall | Entry:
        if asked.prompt is None:
            return Entry(key="", error=asked.error)
        # OpenAI's own models have no other interface than chat.
        is_chat = self._renderer.uses_chat or contender.url is None
        prompt = tuple(self._renderer.messages(asked.row)) if is_chat else self._renderer.plain_text(asked.row)
        generation = self._task.generation
        return RemoteCall(
            key=self._key(generation, url=contender.url, remote=contender.model, prompt=prompt),
            prompt=prompt,
            max_new_tokens=generation.max_new_tokens,
            stop=generation.stop,
            num_prompt_tokens=len(asked.prompt.ids),
        )

    def _key(self, sampling: SamplingParams | GenerationConfig, **parts: Any) -> str:
        return answer_key(max_new_tokens=sampling.max_new_tokens, stop=sampling.stop, temperature=0, **parts)

    def _text(self, example: Example) -> str:
        return "\n".join(example.row[column] for column in self._task.input_columns)


def _ask(example: Example, task: TaskConfig, renderer: PromptRenderer, max_length: int) -> Asked:
    try:
        row = renderer.fitted(example.row)
        prompt = renderer.prompt(example.row)
        sampling = _sampling(task.generation, room=max_length - len(prompt.ids))
    except (DataError, RequestInvalid) as error:
        return Asked(example, example.row, error=error.what)
    return Asked(example, row, prompt, sampling)


def _sampling(generation: GenerationConfig, room: int) -> SamplingParams:
    """Greedy; a long prompt leaves fewer tokens for the answer, as when it is served."""
    if room < 1:
        raise RequestInvalid("the prompt is longer than the base model's positions")
    return SamplingParams(max_new_tokens=min(generation.max_new_tokens, room), stop=generation.stop)
