"""An adapter in the store, as Python sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.adapters.store import AdapterStore, StoredAdapter, default_store_root
from atoll.api.fleet import AnyPath
from atoll.api.html import fields, table

if TYPE_CHECKING:
    from atoll.api.model import Model


def open_store(store: AnyPath | None) -> AdapterStore:
    """The store at a path, or the user's own (`ATOLL_STORE`)."""
    return AdapterStore(Path(store) if store is not None else default_store_root())


class AdapterList(list["Adapter"]):
    """Adapters that a notebook shows as one table."""

    def _repr_html_(self) -> str:
        rows = [(a.id, a.task, a.base_model, a.description) for a in self]
        return table(("adapter", "task", "base model", "description"), rows)


@dataclass(frozen=True)
class Adapter:
    """A finished adapter: a plain PEFT folder with a contract beside it."""

    stored: StoredAdapter = field(repr=False)
    store: AdapterStore = field(repr=False, compare=False)
    id: str = ""
    """Name and revision, `tickets@2`."""

    @classmethod
    def find(cls, adapter_id: str, *, store: AnyPath | None = None) -> Adapter:
        """The adapter of that name, or name@revision. Raises AdapterNotFound."""
        opened = open_store(store)
        return cls.of(opened.resolve(adapter_id), opened)

    @classmethod
    def list(cls, *, store: AnyPath | None = None) -> AdapterList:
        """The latest revision of every adapter in the store."""
        opened = open_store(store)
        return AdapterList(cls.of(stored, opened) for stored in opened.list())

    @classmethod
    def of(cls, stored: StoredAdapter, store: AdapterStore) -> Adapter:
        """An adapter that was found in `store`."""
        return cls(stored, store, stored.id)

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def folder(self) -> Path:
        """Its PEFT folder: `PeftModel.from_pretrained` loads it."""
        return self.stored.folder

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that its prompt needs; none for an adapter without a contract."""
        return self.stored.contract.prompt.columns if self.stored.contract else ()

    @property
    def task(self) -> str:
        return self.stored.contract.task if self.stored.contract else ""

    @property
    def base_model(self) -> str:
        return self.stored.contract.base.name if self.stored.contract else ""

    @property
    def description(self) -> str:
        return self.stored.contract.description if self.stored.contract else ""

    def load(self, **options: Any) -> Model:
        """The adapter on its base model, ready to answer: `atoll.load` with the same options."""
        from atoll.api.model import load

        return load(self, **options)

    def _repr_html_(self) -> str:
        contract = self.stored.contract
        training = contract.training if contract else None
        values: dict[str, object] = {
            "base model": self.base_model,
            "task": self.task,
            "description": self.description,
            "columns": ", ".join(self.columns),
            "labels": ", ".join(contract.labels or ()) if contract else "",
            "examples": training and training.num_examples,
            "steps": training and training.num_steps,
            "validation loss": training and training.validation_loss,
            "cost in cents": training and 100 * training.cost_usd,
            "folder": str(self.folder),
        }
        return fields(self.id, values)
