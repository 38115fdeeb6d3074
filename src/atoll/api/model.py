"""Answers from Python: one adapter, or the bare base, without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from atoll.adapters.store import AdapterStore
from atoll.api.adapter import Adapter, open_store
from atoll.api.fleet import AnyPath
from atoll.api.html import fields
from atoll.errors import UsageError

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.model.load import BaseModel
    from atoll.server.prepare import Preparer

Prompt = str | Mapping[str, str]
_BASE = "base"
_MIN_RANK = 16


class Model:
    """A base model with an adapter on it, or bare; made by `atoll.load`. Close it, or use it in a `with`."""

    def __init__(self, base: BaseModel, adapter: Adapter | None, store: AdapterStore) -> None:
        from atoll.adapters.catalog import AdapterCatalog
        from atoll.adapters.peft_io import read_adapter
        from atoll.engine import build_engine
        from atoll.server.prepare import Preparer
        from atoll.server.settings import ServerSettings

        self.adapter = adapter
        self.base_model = base.name
        rank = max(_MIN_RANK, read_adapter(adapter.folder).max_rank if adapter else 0)
        self._engine: Engine = build_engine(base, num_slots=1, max_rank=rank)
        self._preparer: Preparer = Preparer(
            base, AdapterCatalog(store), ServerSettings(), max_length=self._engine.max_length, max_rank=rank
        )

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self,
        prompt: Prompt,
        *,
        raw: bool = ...,
        max_new_tokens: int | None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        stop: Sequence[str] = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        *,
        raw: bool = ...,
        max_new_tokens: int | None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        stop: Sequence[str] = ...,
    ) -> list[str]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        raw: bool = False,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> str | list[str]:
        """The answer to a prompt, or the answers to several, which are computed together.

        prompt: text, or the columns of the adapter's template. A text fills the template where it has one column, and
        is a message to a bare base that can chat; raw: it is completed as it is. What is left out is as the adapter's
        contract says, else greedy. Raises AtollError for the first that cannot be answered.
        """
        from atoll.server.caller import ANYBODY
        from atoll.server.prepare import Ask

        is_one = isinstance(prompt, str | Mapping)
        prompts: Sequence[Prompt] = [prompt] if isinstance(prompt, str | Mapping) else prompt
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "stop": tuple(stop),
            "adapter_id": self.adapter.id if self.adapter else "",
            "default_temperature": 0.0,
        }
        asks = [Ask(prompt=self._shaped(one, raw=raw), **options) for one in prompts]
        prepared = [self._preparer.prepare(ask, ANYBODY) for ask in asks]
        completions = self._engine.generate([item.request(0, ANYBODY, lambda event: None) for item in prepared])
        if error := next((completion.error for completion in completions if completion.error), None):
            raise error
        answers = [completion.text for completion in completions]
        return answers[0] if is_one else answers

    def _shaped(self, prompt: Prompt, *, raw: bool) -> Any:
        """A prompt as the server's front ends give it."""
        if isinstance(prompt, Mapping):
            if raw:
                raise UsageError("columns fill a template", mend="give text with raw=True, or leave raw out")
            return dict(prompt)
        if raw:
            return prompt
        columns = self.adapter.columns if self.adapter else ()
        if len(columns) > 1:
            wanted = ", ".join(f'"{column}": "..."' for column in columns)
            what = f"{self.adapter.id if self.adapter else ''} has {len(columns)} input columns"
            raise UsageError(what, why="one text cannot fill them all", mend=f"give {{{wanted}}}")
        if columns:
            return {columns[0]: prompt}
        can_chat = self.adapter is None and self._engine.base.tokenizer.chat_template
        return [{"role": "user", "content": prompt}] if can_chat else prompt

    def close(self) -> None:
        """Free what the model holds; a second call changes nothing."""
        self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({self.adapter.id if self.adapter else _BASE!r} on {self.base_model!r})"

    def _repr_html_(self) -> str:
        adapter = self.adapter
        values = {"base model": self.base_model, "task": adapter and adapter.task}
        return fields(
            adapter.id if adapter else _BASE, values | {"columns": ", ".join(adapter.columns if adapter else ())}
        )


def load(
    adapter: str | Adapter | None = None,
    *,
    base: str | None = None,
    store: AnyPath | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
) -> Model:
    """Load an adapter and its base model, or the bare base where no adapter is named.

    adapter: an Adapter, or a name or name@revision in the store. base: hub id, folder, .gguf file or alias; the
    adapter's own unless given. Raises AtollError: nothing of that name, or an adapter of another base.
    """
    from atoll.config.fleet import QuantizationConfig
    from atoll.model.load import load_base
    from atoll.model.source import DEFAULT_BASE

    found = Adapter.find(adapter, store=store) if isinstance(adapter, str) else adapter
    contract = found.stored.contract if found else None
    name = base or (contract.base.name if contract else DEFAULT_BASE)
    bits = contract.base.quantization_bits if contract and name == contract.base.name else None
    loaded = load_base(name, dtype=dtype, quantization=QuantizationConfig(bits=bits) if bits is not None else None)
    if found is not None:
        found.stored.check_base(loaded.digest)
    return Model(loaded, found, found.store if found else open_store(store))
