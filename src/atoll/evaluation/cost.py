"""What serving costs a month: a machine for each model, all adapters on one, or a model that is paid for by the token.

Pure functions, for the command line and for the page. Own machines cost more in steps, tokens on a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from atoll.config.prices import MachinePrice, TokenPrice
from atoll.errors import UsageError

HOURS_PER_MONTH = 730
DEFAULT_UTILIZATION = 0.5
"""The part of a month's seconds that requests may fill: they come by day more than by night, and must not queue."""

Kind = Literal["shared", "dedicated", "hosted", "api"]


@dataclass(frozen=True)
class Workload:
    """A month's requests over all tasks, spread evenly. Tokens are of one request. Raises UsageError."""

    requests_per_month: float
    prompt_tokens: float
    new_tokens: float
    num_tasks: int

    def __post_init__(self) -> None:
        checked = {
            "requests": self.requests_per_month,
            "prompt tokens": self.prompt_tokens,
            "new tokens": self.new_tokens,
            "tasks": self.num_tasks,
        }
        for name, value in checked.items():
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"the number of {name} is {value}", mend="give a number of at least 0")
        if self.num_tasks < 1 or self.prompt_tokens + self.new_tokens == 0:
            raise UsageError("there is nothing to serve", mend="give at least one task and one token a request")


@dataclass(frozen=True)
class Throughput:
    """How fast a machine answers when it has enough to do. Raises UsageError.

    prompt_tokens_per_second: None where the other figure has the prompts in it. adapters_share: what many adapters in
    one batch leave of a base model's rate.
    """

    new_tokens_per_second: float
    prompt_tokens_per_second: float | None
    adapters_share: float
    base: str
    source: str

    def __post_init__(self) -> None:
        for name in ("new_tokens_per_second", "prompt_tokens_per_second"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}", mend="give a number above 0")
        if not 0 < self.adapters_share <= 1:
            raise UsageError(f"adapters_share is {self.adapters_share}", mend="give a number above 0, and 1 at most")

    def seconds(self, workload: Workload) -> float:
        """Of a machine without adapters, for one request."""
        prompt = self.prompt_tokens_per_second
        return workload.new_tokens / self.new_tokens_per_second + (workload.prompt_tokens / prompt if prompt else 0.0)


THROUGHPUTS: dict[str, Throughput] = {
    # 32 requests at once with 96 prompt and 32 new tokens: 252 new tokens/s, and 47 ms for a step of 32 rows. So of
    # 4.06 s 1.5 s went into 1,024 new tokens and 2.56 s into 3,072 prompt tokens; 204 tokens/s with 32 adapters.
    "m7i.large": Throughput(680, 1200, 0.81, "SmolLM2-135M, float32", "docs/LOG.md, 2026-11-21"),
    # 1,053 new tokens/s with another adapter in each request, 1,140 of a backbone without any; ShareGPT's prompts are
    # in both.
    "A100 80GB": Throughput(1140, None, 0.92, "Llama-2-7B, rank 16", "Punica, arXiv 2310.18547, figure 11"),
}
"""What has been measured, by the name of a machine or of its GPU."""


@dataclass(frozen=True)
class Hosting:
    """Machines of one kind, as many as are needed. Raises UsageError."""

    price: MachinePrice
    throughput: Throughput
    utilization: float = DEFAULT_UTILIZATION

    def __post_init__(self) -> None:
        if not 0 < self.utilization <= 1:
            raise UsageError(f"the utilization is {self.utilization}", mend="give a number above 0, and 1 at most")

    @property
    def usd_per_month(self) -> float:
        """Of one machine."""
        return self.price.usd_per_hour * HOURS_PER_MONTH

    def capacity(self, workload: Workload, *, with_adapters: bool) -> int:
        """Whole requests a month that one machine answers, one at least."""
        seconds = self.throughput.seconds(workload) / (self.throughput.adapters_share if with_adapters else 1)
        if seconds == 0:
            raise UsageError("the throughput says nothing of prompts", mend="give new tokens, or a rate for prompts")
        return max(1, int(HOURS_PER_MONTH * 3600 * self.utilization / seconds))

    def shared(self, workload: Workload) -> Steps:
        """All adapters on one machine, or on as many as the requests need."""
        return Steps(self.usd_per_month, self.capacity(workload, with_adapters=True), 1)

    def dedicated(self, workload: Workload) -> Steps:
        """A machine for each task's own model, all of them always on."""
        capacity = self.capacity(workload, with_adapters=False)
        return Steps(self.usd_per_month * workload.num_tasks, capacity * workload.num_tasks, workload.num_tasks)


@dataclass(frozen=True)
class Steps:
    """A cost that goes up by `usd` for every `requests` a month; the first step is always paid."""

    usd: float
    requests: int
    num_machines: int

    def num_steps(self, requests: float) -> int:
        return max(1, math.ceil(requests / self.requests))

    def at(self, requests: float) -> float:
        return self.usd * self.num_steps(requests)


@dataclass(frozen=True)
class Offer:
    """One way to serve a workload. num_machines: None where somebody else owns them."""

    kind: Kind
    name: str
    usd_per_month: float
    usd_per_thousand_requests: float | None
    num_machines: int | None
    source: str
    date: str


@dataclass(frozen=True)
class BreakEven:
    """From how many requests a month on own machines cost no more than paying by the token.

    first: the fewest of which that is true. always: from there on it stays true, though steps go up; None where every
    full machine is followed by one that does not pay yet.
    """

    kind: Kind
    model: str
    first: int
    always: int | None


def compare(workload: Workload, hosting: Hosting, models: Sequence[TokenPrice]) -> list[Offer]:
    """Every way to serve the workload, the cheapest first."""
    requests = workload.requests_per_month
    machine = hosting.price

    def own(kind: Kind, steps: Steps) -> Offer:
        count, usd = steps.num_steps(requests) * steps.num_machines, steps.at(requests)
        return Offer(kind, machine.name, usd, _per_thousand(usd, requests), count, machine.source, machine.date)

    def by_token(model: TokenPrice) -> Offer:
        usd = requests * usd_per_request(workload, model)
        kind: Kind = "hosted" if model.hosted else "api"
        return Offer(kind, model.name, usd, _per_thousand(usd, requests), None, model.source, model.date)

    offers = [own("shared", hosting.shared(workload)), own("dedicated", hosting.dedicated(workload))]
    return sorted([*offers, *map(by_token, models)], key=lambda offer: offer.usd_per_month)


def usd_per_request(workload: Workload, model: TokenPrice) -> float:
    """What one request costs by the token."""
    return model.cost_usd(workload.prompt_tokens, workload.new_tokens)


def break_even(workload: Workload, hosting: Hosting, model: TokenPrice, kind: Kind = "shared") -> BreakEven | None:
    """When own machines (`shared` or `dedicated`) pay against a model by the token; None where they never do.

    A step of `usd` dollars for `capacity` requests meets a line of `line` dollars a request where line x requests =
    usd. If that lies beyond the capacity, no number of machines pays, as every one of them costs more than the requests
    it answers. The k-th step pays from its first request on as soon as line x (k x capacity + 1) >= (k + 1) x usd.
    """
    steps = hosting.dedicated(workload) if kind == "dedicated" else hosting.shared(workload)
    line = usd_per_request(workload, model)
    if line <= 0 or steps.usd / line > steps.requests:
        return None
    first = max(1, math.ceil(steps.usd / line))
    gain = line * steps.requests - steps.usd
    if line >= steps.usd:
        return BreakEven(kind, model.name, first, first)
    if gain <= 0:
        return BreakEven(kind, model.name, first, None)
    num_full = math.ceil((steps.usd - line) / gain)
    return BreakEven(kind, model.name, first, max(first, math.ceil(num_full * steps.usd / line)))


def shared_pays_until(workload: Workload, hosting: Hosting) -> int:
    """Up to how many requests a month all adapters on shared machines cost less than a machine for each model.

    Until the shared ones are as many: adapters take some of each machine's speed. 0 with one task.
    """
    return (workload.num_tasks - 1) * hosting.shared(workload).requests


def costs_at(
    workload: Workload, hosting: Hosting, models: Sequence[TokenPrice], requests: Sequence[float]
) -> dict[str, list[float]]:
    """US dollars a month of every offer at each number of requests, by the offer's label: what a plot shows."""
    shared, dedicated = hosting.shared(workload), hosting.dedicated(workload)
    lines = {model.name: usd_per_request(workload, model) for model in models}
    return {
        "all adapters on one": [shared.at(count) for count in requests],
        f"{workload.num_tasks} dedicated": [dedicated.at(count) for count in requests],
        **{name: [usd * count for count in requests] for name, usd in lines.items()},
    }


def _per_thousand(usd: float, requests: float) -> float | None:
    return 1000 * usd / requests if requests else None
