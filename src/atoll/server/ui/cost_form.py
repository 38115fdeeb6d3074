"""The calculator of serving costs as a form: what is asked, and what comes out, with its plot."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from atoll.config.prices import TokenPrice, machine_prices, named_machine, token_price
from atoll.errors import NotFound, UsageError
from atoll.evaluation import cost_defaults
from atoll.evaluation.cost import (
    DEFAULT_UTILIZATION,
    THROUGHPUTS,
    BreakEven,
    Hosting,
    Offer,
    Throughput,
    Workload,
    break_even,
    compare,
    costs_at,
    shared_pays_until,
)

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 10, 34
_DECADES = 2
_POINTS_PER_DECADE = 40
_MAX_MODELS = 8

_Amount = Annotated[float, Field(ge=0, le=1e12)]
_Rate = Annotated[float, Field(gt=0, le=1e9)]


class CostForm(BaseModel):
    """What is to be served, on what, and against which models; rates that are None are as measured on the machine."""

    model_config = ConfigDict(frozen=True, extra="ignore", str_max_length=200, allow_inf_nan=False)

    requests: _Amount = cost_defaults.REQUESTS_PER_MONTH
    prompt_tokens: _Amount = cost_defaults.PROMPT_TOKENS
    new_tokens: _Amount = cost_defaults.NEW_TOKENS
    tasks: Annotated[int, Field(ge=1, le=100_000)] = cost_defaults.NUM_TASKS
    machine: str = cost_defaults.MACHINE
    new_tokens_per_second: _Rate | None = None
    prompt_tokens_per_second: _Rate | None = None
    adapters_share: Annotated[float, Field(gt=0, le=1)] | None = None
    utilization: Annotated[float, Field(gt=0, le=1)] = DEFAULT_UTILIZATION
    model: Annotated[tuple[str, ...], Field(max_length=_MAX_MODELS)] = cost_defaults.MODELS

    @field_validator("new_tokens_per_second", "prompt_tokens_per_second", "adapters_share", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value


def read_cost_form(fields: Iterable[tuple[str, str]]) -> CostForm:
    """The form from a query. Raises UsageError, which names the first field that is wrong."""
    values: dict[str, Any] = {}
    for name, value in itertools.islice(fields, 200):
        if name == "model":
            values.setdefault("model", []).append(value)
        else:
            values[name] = value
    try:
        return CostForm.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{str(first['loc'][0]).replace('_', ' ')}: {first['msg']}") from None


@dataclass(frozen=True)
class Payback:
    """From how many requests a month all adapters on one machine cost no more than a model; found None: never."""

    model: str
    found: BreakEven | None


@dataclass(frozen=True)
class Bill:
    """What comes out. shared_until: up to how many requests one shared machine costs less than one for each model."""

    offers: tuple[Offer, ...]
    paybacks: tuple[Payback, ...]
    shared_until: int
    throughput: Throughput
    plot: Plot


@dataclass(frozen=True)
class Line:
    """One way to serve, drawn. number: of its colour. points: as SVG has them."""

    label: str
    number: int
    points: str


@dataclass(frozen=True)
class Plot:
    """Dollars over requests a month, both by powers of ten. x_ticks, y_ticks: (place, text); mark: the workload's x."""

    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    mark: float


def bill(form: CostForm) -> Bill:
    """All offers for a form. Raises UsageError or NotFound."""
    workload = Workload(form.requests, form.prompt_tokens, form.new_tokens, form.tasks)
    price = named_machine(form.machine)
    measured = THROUGHPUTS.get(price.name) or THROUGHPUTS.get(price.gpu or "")
    throughput = _throughput(form, measured)
    hosting = Hosting(price, throughput, form.utilization)
    models = [_model(name) for name in dict.fromkeys(form.model)]
    return Bill(
        offers=tuple(compare(workload, hosting, models)),
        paybacks=tuple(Payback(model.name, break_even(workload, hosting, model)) for model in models),
        shared_until=shared_pays_until(workload, hosting),
        throughput=throughput,
        plot=draw(workload, hosting, models),
    )


def machine_choices() -> list[str]:
    """The machines that are known, those first on which something was measured."""
    prices = machine_prices().values()
    measured = {price.name for price in prices if price.name in THROUGHPUTS or price.gpu in THROUGHPUTS}
    return sorted((price.name for price in prices), key=lambda name: name not in measured)


def _throughput(form: CostForm, measured: Throughput | None) -> Throughput:
    if measured is None:
        if form.new_tokens_per_second is None:
            mend = f"give the tokens per second of answers; there are figures for {', '.join(THROUGHPUTS)}"
            raise UsageError(f"nothing has been measured on {form.machine}", mend=mend)
        share = form.adapters_share or 1.0
        return Throughput(form.new_tokens_per_second, form.prompt_tokens_per_second, share, "own figures", "this form")
    said: dict[str, Any] = {
        "new_tokens_per_second": form.new_tokens_per_second,
        "prompt_tokens_per_second": form.prompt_tokens_per_second,
        "adapters_share": form.adapters_share,
    }
    return replace(measured, **{name: value for name, value in said.items() if value is not None})


def _model(name: str) -> TokenPrice:
    price = token_price(name)
    if price is None:
        raise NotFound(f"no price is known for the model {name[:80]!r}", mend="choose one of the list")
    return price


def draw(workload: Workload, hosting: Hosting, models: Sequence[TokenPrice]) -> Plot:
    """The plot of the decades around the workload's requests."""
    middle = math.log10(max(workload.requests_per_month, 100.0))
    low, high = middle - _DECADES, middle + _DECADES
    steps = 2 * _DECADES * _POINTS_PER_DECADE
    requests = [10 ** (low + (high - low) * step / steps) for step in range(steps + 1)]
    costs = costs_at(workload, hosting, models, requests)
    positive = [math.log10(usd) for line in costs.values() for usd in line if usd > 0]
    bottom, top = (min(positive), max(positive)) if positive else (0.0, 1.0)
    top = max(top, bottom + 1)

    def x(logarithm: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (logarithm - low) / (high - low), 1)

    def y(logarithm: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (top - logarithm) / (top - bottom), 1)

    lines = []
    for number, (label, line) in enumerate(costs.items()):
        known = [(count, usd) for count, usd in zip(requests, line, strict=True) if usd > 0]
        points = " ".join(f"{x(math.log10(count))},{y(math.log10(usd))}" for count, usd in known)
        lines.append(Line(label, number % 10, points))
    return Plot(
        lines=tuple(lines),
        x_ticks=tuple((x(power), _short(10**power)) for power in range(math.ceil(low), math.floor(high) + 1)),
        y_ticks=tuple((y(p), "$" + _short(10**p)) for p in range(math.ceil(bottom), math.floor(top) + 1)),
        mark=x(middle),
    )


def _short(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"
