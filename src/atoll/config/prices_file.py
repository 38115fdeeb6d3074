"""A file of prices, Atoll's own or one that is laid over it: machines by the hour, models by the token."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from atoll.config.base import ConfigModel, Text, problem, problem_at

Usd = Annotated[float, Field(ge=0)]


def _check_date(text: str) -> str:
    try:
        date.fromisoformat(text)
    except ValueError:
        raise problem(f"is not a day: {text!r}", 'write it in quotes as "2026-11-21"') from None
    return text


Day = Annotated[str, AfterValidator(_check_date)]


class PriceSource(ConfigModel):
    """Where prices were read."""

    url: Text
    """The page or file."""
    date: Day
    """The day for which it gives its figures, in quotes (ISO 8601)."""


class _Entry(ConfigModel):
    name: Text
    """What the entry is called; one of the same name goes before the built-in one."""
    source: Text | None = None
    """A key of `sources`; this file itself unless given."""


class CpuEntry(_Entry):
    """A machine without a GPU."""

    num_cpus: int = Field(gt=0)
    """Its virtual CPUs."""
    usd_per_hour: Usd
    """US dollars an hour."""


class GpuEntry(_Entry):
    """A machine with one GPU, or the part of a larger one that has one."""

    gpu: Text
    """Words that all stand in the name that the driver gives the GPU."""
    usd_per_hour: Usd
    """US dollars an hour."""


class ModelEntry(_Entry):
    """A model that is paid for by the token."""

    usd_per_million_input: Usd
    """US dollars a million tokens of prompts."""
    usd_per_million_output: Usd
    """US dollars a million tokens of answers."""
    hosted: bool = False
    """An open model that somebody serves, rather than a commercial one."""


class PriceFile(ConfigModel):
    """Prices in US dollars."""

    sources: dict[Text, PriceSource] = Field(default_factory=dict)
    """Where prices were read, by a short name."""
    cpu: Annotated[tuple[CpuEntry, ...], Field(strict=False)] = ()
    """Machines without a GPU."""
    gpu: Annotated[tuple[GpuEntry, ...], Field(strict=False)] = ()
    """Machines by their GPU; the first that fits counts."""
    unlisted_gpu: Text | None = None
    """The `gpu` of the entry that a GPU counts as when none fits."""
    models: Annotated[tuple[ModelEntry, ...], Field(strict=False)] = ()
    """Models by the token."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("cpu", "gpu", "models"):
            names: list[str] = []
            entries: tuple[_Entry, ...] = getattr(self, key)
            for index, entry in enumerate(entries):
                if entry.source is not None and entry.source not in self.sources:
                    mend = "add it to `sources`, or leave `source` out"
                    raise problem_at(
                        key,
                        index,
                        "source",
                        value=entry.source,
                        what=f"{entry.source!r} is not in `sources`",
                        mend=mend,
                    )
                if entry.name in names:
                    what = f"{entry.name!r} has a price already"
                    raise problem_at(key, index, "name", value=entry.name, what=what, mend="remove one of the two")
                names.append(entry.name)
        if self.unlisted_gpu is not None and self.gpu and self.unlisted_gpu not in {entry.gpu for entry in self.gpu}:
            what, mend = f"no entry of `gpu` is {self.unlisted_gpu!r}", "name the `gpu` of one of the entries"
            raise problem_at("unlisted_gpu", value=self.unlisted_gpu, what=what, mend=mend)
        return self
