"""What a run costs: machines by the hour and models by the token, dated (prices.yaml), and a user's own over them."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from importlib import resources
from pathlib import Path

from atoll.config.explain import did_you_mean
from atoll.config.load import load_prices, load_prices_text
from atoll.config.prices_file import PriceFile
from atoll.errors import ConfigError

OVERRIDE = "ATOLL_USD_PER_HOUR"
OWN_FILE = "ATOLL_PRICES"
# A dated snapshot of a model costs what the model costs, unless it has an entry of its own.
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}|latest)$")


@dataclass(frozen=True)
class MachinePrice:
    """An hour of a machine, with where the price was read and for which day (ISO 8601). gpu: its GPU's name, if any."""

    name: str
    usd_per_hour: float
    source: str
    date: str
    gpu: str | None = None


@dataclass(frozen=True)
class TokenPrice:
    """A model that is paid for by the token. hosted: an open model that somebody serves, not a commercial one."""

    name: str
    usd_per_million_input: float
    usd_per_million_output: float
    hosted: bool
    source: str
    date: str

    def cost_usd(self, num_input: float, num_output: float) -> float:
        """What that many tokens of prompts and of answers cost, in US dollars."""
        return (num_input * self.usd_per_million_input + num_output * self.usd_per_million_output) / 1e6


@dataclass(frozen=True)
class _PriceTable:
    """cpu: (virtual CPUs, price), the first with enough counts. gpu: (words, price), the first that fits counts."""

    cpu: tuple[tuple[int, MachinePrice], ...]
    gpu: tuple[tuple[str, MachinePrice], ...]
    models: Mapping[str, TokenPrice]
    unlisted_gpu: str

    @property
    def machines(self) -> dict[str, MachinePrice]:
        return {price.name: price for _, price in reversed((*self.cpu, *self.gpu))}


def hourly_price(machine: str | None = None, device: str = "cpu", num_cpus: int | None = None) -> MachinePrice:
    """The price of an hour on `machine`, or else on the machine of the table that is most like this one.

    machine: an entry's name (`m7i.large`) or, on a GPU, its name as the driver gives it (`NVIDIA A100-SXM4-80GB`).
    Without it, or for a GPU not in the table, the price is an assumption and its name says so. Without a GPU, it is
    that of the smallest machine with at least `num_cpus` virtual CPUs (this one's unless given), or the largest one.
    ATOLL_USD_PER_HOUR goes before all of this. Raises ConfigError for a machine or an override that is not valid.
    """
    override = os.environ.get(OVERRIDE)
    if override:
        return _overriding(override)
    table = _table()
    if machine in table.machines:
        return table.machines[machine]
    if device.partition(":")[0] != "cpu":
        return _gpu_price(table, machine)
    if machine is not None:
        return named_machine(machine)
    needed = num_cpus or os.cpu_count() or 1
    enough = (price for capacity, price in table.cpu if capacity >= needed)
    return next(enough, max(table.cpu, key=lambda entry: entry[0])[1])


def named_machine(name: str) -> MachinePrice:
    """The entry of that name. Raises ConfigError with a hint."""
    machines = _table().machines
    if name in machines:
        return machines[name]
    guess = did_you_mean(name, machines)
    mend = f"did you mean {guess}?" if guess else f"set {OVERRIDE} to what an hour costs, or {OWN_FILE} to a price file"
    raise ConfigError(f"no price is known for the machine {name!r}", mend=mend)


def machine_prices() -> dict[str, MachinePrice]:
    """All machines by name, the user's own first."""
    table = _table()
    return {price.name: price for _, price in (*table.cpu, *table.gpu)}


def token_price(model: str) -> TokenPrice | None:
    """The price of a model by its name at its provider; a snapshot (`gpt-4o-2024-08-06`) costs what its model does."""
    models = _table().models
    name = model.strip().casefold()
    return models.get(name) or models.get(_SNAPSHOT.sub("", name))


def token_prices() -> dict[str, TokenPrice]:
    """All models that are paid for by the token, the user's own first."""
    return dict(_table().models)


def cost_usd(seconds: float, price: MachinePrice) -> float:
    """What `seconds` on that machine cost in US dollars, billed by the second."""
    return seconds / 3600 * price.usd_per_hour


def _overriding(text: str) -> MachinePrice:
    mend = f"set {OVERRIDE} to a number of US dollars, such as 0.10, or unset it"
    try:
        usd_per_hour = float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number", where=OVERRIDE, mend=mend) from None
    if not math.isfinite(usd_per_hour) or usd_per_hour < 0:
        raise ConfigError(f"{text!r} is not a price", where=OVERRIDE, mend=mend)
    return MachinePrice("this machine", usd_per_hour, source=OVERRIDE, date=date.today().isoformat())


def _gpu_price(table: _PriceTable, device_name: str | None) -> MachinePrice:
    words = set(re.split(r"[\s-]+", device_name or ""))
    for gpu, price in table.gpu:
        if words.issuperset(gpu.split()):
            return price
    price = next(price for gpu, price in table.gpu if gpu == table.unlisted_gpu)
    return replace(price, name=f"{price.name}, assumed for {device_name or 'a GPU without a name'}")


def _table() -> _PriceTable:
    """The built-in table, under the user's own file if there is one. Raises ConfigError if that is not valid."""
    own = os.environ.get(OWN_FILE)
    if not own:
        return _built_in()
    path = Path(own).expanduser()
    try:
        return _under(path, path.stat().st_mtime_ns)
    except OSError as error:
        mend = f"set {OWN_FILE} to a file of prices, or unset it"
        raise ConfigError(
            f"{OWN_FILE} names a file that cannot be read: {own}", why=error.strerror, mend=mend
        ) from None


@functools.cache
def _built_in() -> _PriceTable:
    text = resources.files("atoll.config").joinpath("prices.yaml").read_text(encoding="utf-8")
    file = load_prices_text(text, "prices.yaml")
    return _as_table(file, here="prices.yaml", today="")


@functools.lru_cache(maxsize=4)
def _under(path: Path, mtime_ns: int) -> _PriceTable:
    """A user's file over the built-in table; read again when the file has changed."""
    file, below = load_prices(path), _built_in()
    day = datetime.fromtimestamp(mtime_ns / 1e9, UTC).date().isoformat()
    own = _as_table(file, here=str(path), today=day)
    return _PriceTable(
        own.cpu + below.cpu,
        own.gpu + below.gpu,
        {**own.models, **{name: price for name, price in below.models.items() if name not in own.models}},
        own.unlisted_gpu or below.unlisted_gpu,
    )


def _as_table(file: PriceFile, *, here: str, today: str) -> _PriceTable:
    """here, today: the source and day of entries that name none."""

    def read_at(source: str | None) -> tuple[str, str]:
        return (here, today) if source is None else (file.sources[source].url, file.sources[source].date)

    return _PriceTable(
        tuple(
            (entry.num_cpus, MachinePrice(entry.name, entry.usd_per_hour, *read_at(entry.source)))
            for entry in sorted(file.cpu, key=lambda entry: entry.num_cpus)
        ),
        tuple(
            (entry.gpu, MachinePrice(entry.name, entry.usd_per_hour, *read_at(entry.source), gpu=entry.gpu))
            for entry in file.gpu
        ),
        {
            entry.name.casefold(): TokenPrice(
                entry.name, entry.usd_per_million_input, entry.usd_per_million_output, entry.hosted,
                *read_at(entry.source),
            )
            for entry in file.models
        },
        file.unlisted_gpu or "",
    )  # fmt: skip
