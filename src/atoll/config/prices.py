"""What a run costs: a small dated table of hourly machine prices (prices.yaml)."""

from __future__ import annotations

import functools
import math
import os
import re
from dataclasses import dataclass, replace
from datetime import date
from importlib import resources

from ruamel.yaml import YAML

from atoll.config.explain import did_you_mean
from atoll.errors import ConfigError

OVERRIDE = "ATOLL_USD_PER_HOUR"


@dataclass(frozen=True)
class MachinePrice:
    """An hour of a machine, with where the price was read and on which day (ISO 8601)."""

    name: str
    usd_per_hour: float
    source: str
    date: str


@dataclass(frozen=True)
class _PriceTable:
    cpu: tuple[tuple[int, MachinePrice], ...]
    gpu: tuple[tuple[str, MachinePrice], ...]
    unlisted_gpu: str

    @property
    def machines(self) -> dict[str, MachinePrice]:
        return {price.name: price for _, price in (*self.cpu, *self.gpu)}


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
        guess = did_you_mean(machine, table.machines)
        mend = f"did you mean {guess}?" if guess else f"set {OVERRIDE} to what an hour costs"
        raise ConfigError(f"no price is known for the machine {machine!r}", mend=mend)
    needed = num_cpus or os.cpu_count() or 1
    enough = (price for capacity, price in table.cpu if capacity >= needed)
    return next(enough, table.cpu[-1][1])


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
    price = dict(table.gpu)[table.unlisted_gpu]
    return replace(price, name=f"{price.name}, assumed for {device_name or 'a GPU without a name'}")


@functools.cache
def _table() -> _PriceTable:
    text = resources.files("atoll.config").joinpath("prices.yaml").read_text(encoding="utf-8")
    data = YAML(typ="safe", pure=True).load(text)

    def price(entry: dict[str, object]) -> MachinePrice:
        source = data["sources"][entry["source"]]
        return MachinePrice(str(entry["name"]), float(str(entry["usd_per_hour"])), source["url"], source["date"])

    return _PriceTable(
        cpu=tuple((entry["num_cpus"], price(entry)) for entry in data["cpu"]),
        gpu=tuple((entry["gpu"], price(entry)) for entry in data["gpu"]),
        unlisted_gpu=data["unlisted_gpu"],
    )
