"""A fleet in Python: what a fleet file says, from a file or made up on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from atoll.api.html import table
from atoll.config.fleet import FleetConfig
from atoll.config.load import check_fleet, load_fleet
from atoll.errors import UsageError

AnyPath = str | PathLike[str]


class Fleet:
    """The adapters that are tuned together over one base model. It never changes: `add` and `only` return new ones.

    name: of the run's folder, `runs/<name>`.
    """

    def __init__(self, config: FleetConfig, *, name: str = "fleet") -> None:
        self.config = config
        self.name = name

    @classmethod
    def from_yaml(cls, path: AnyPath) -> Fleet:
        """Read a fleet file, or a Ludwig file as one. Raises ConfigError."""
        return cls(load_fleet(Path(path)), name=Path(path).stem)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, name: str = "fleet") -> Fleet:
        """The keys of a fleet file as a mapping; paths in it are relative to the current folder. Raises ConfigError."""
        return cls(check_fleet(values, name=name), name=name)

    def add(self, name: str, task: AnyPath, /, **sections: Mapping[str, Any]) -> Fleet:
        """The same fleet with one adapter more.

        task: the name of a built-in task, or the path of a task file. sections: `adapter`, `trainer` and `data`, which
        go before the fleet's own. Raises ConfigError for what is not valid, UsageError for a name that is taken.
        """
        if name in self.config.adapters:
            mend = "take another name, or make the fleet anew"
            raise UsageError(f"the fleet has an adapter {name!r} already", mend=mend)
        values = self.config.model_dump(exclude_unset=True, mode="json")
        values["adapters"][name] = {"task": str(task), **sections}
        return Fleet(check_fleet(values, name=self.name), name=self.name)

    def only(self, *adapters: str) -> Fleet:
        """The same fleet with these adapters only. Raises UsageError for a wrong name."""
        return Fleet(self.config.only(adapters), name=self.name)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of its adapters."""
        return tuple(self.config.adapters)

    @property
    def run_folder(self) -> Path:
        """Where its runs lie."""
        return Path(self.config.output or Path("runs", self.name))

    def __repr__(self) -> str:
        return f"Fleet({self.name!r}, base_model={self.config.base_model!r}, adapters={list(self.adapters)})"

    def _repr_html_(self) -> str:
        rows = [
            (member.name, member.task_ref, member.adapter.r, member.trainer.epochs, str(member.trainer.learning_rate))
            for member in self.config.members()
        ]
        caption = f"{self.name}: {len(rows)} adapters on {self.config.base_model}"
        return table(("adapter", "task", "rank", "epochs", "rate"), rows, caption)


AnyFleet = Fleet | AnyPath | Mapping[str, Any]


def as_fleet(fleet: AnyFleet, adapters: Sequence[str] = ()) -> Fleet:
    """A fleet from what a caller has, with these adapters only if some are named. Raises ConfigError or UsageError."""
    if not isinstance(fleet, Fleet):
        fleet = Fleet.from_dict(fleet) if isinstance(fleet, Mapping) else Fleet.from_yaml(fleet)
    return fleet.only(*adapters) if adapters else fleet
