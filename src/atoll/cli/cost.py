"""`atoll cost`: what serving costs a month, by several ways of it, and from where on which of them pays."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.options import AsJson
from atoll.cli.output import Column, print_json, print_table
from atoll.evaluation.cost_defaults import (
    KINDS,
    MACHINE,
    MODELS,
    NEW_TOKENS,
    NUM_TASKS,
    PROMPT_TOKENS,
    REQUESTS_PER_MONTH,
)

if TYPE_CHECKING:
    from atoll.config.prices import MachinePrice, TokenPrice
    from atoll.evaluation.cost import Hosting, Offer, Throughput, Workload


def cost(
    requests: Annotated[float, typer.Option(min=0, help="Requests a month, over all tasks.")] = REQUESTS_PER_MONTH,
    prompt_tokens: Annotated[float, typer.Option(min=0, help="Tokens of a request's prompt.")] = PROMPT_TOKENS,
    new_tokens: Annotated[float, typer.Option(min=0, help="Tokens of an answer.")] = NEW_TOKENS,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks, each with an adapter or a model of its own.")] = NUM_TASKS,
    machine: Annotated[str, typer.Option(help="The machine to host on; --list shows them.")] = MACHINE,
    new_tokens_per_second: Annotated[
        float | None, typer.Option(help="Its rate in answers, of many requests at once.", show_default="as measured")
    ] = None,
    prompt_tokens_per_second: Annotated[
        float | None, typer.Option(help="Its rate in prompts.", show_default="as measured")
    ] = None,
    adapters_share: Annotated[
        float | None, typer.Option(help="What many adapters at once leave of those.", show_default="as measured")
    ] = None,
    utilization: Annotated[float, typer.Option(help="The part of a month that requests may fill.")] = 0.5,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model by the token; may be repeated.", show_default=", ".join(MODELS)),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot over requests a month to this SVG file.")] = None,
    list_prices: Annotated[bool, typer.Option("--list", help="List the prices that are known, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare what serving costs a month, on own machines and by the token, and from where on which of them pays.

    Prices and rates have their sources in docs/costs.md; ATOLL_PRICES names a file with prices of your own.

    Example: atoll cost --requests 1000000 --prompt-tokens 300 --new-tokens 30 --tasks 25
    """
    if list_prices:
        _list_prices(as_json)
        return
    from atoll.config.prices import named_machine
    from atoll.evaluation.cost import Hosting, Workload

    workload = Workload(requests, prompt_tokens, new_tokens, tasks)
    price = named_machine(machine)
    throughput = _throughput(price, new_tokens_per_second, prompt_tokens_per_second, adapters_share)
    hosting = Hosting(price, throughput, utilization)
    models = [_token_price(name) for name in model or MODELS]
    if plot is not None:
        _write_plot(plot, workload, hosting, models)
    if as_json:
        print_json(_as_json(workload, hosting, models))
    else:
        _print_report(workload, hosting, models)


def _write_plot(path: Path, workload: Workload, hosting: Hosting, models: Sequence[TokenPrice]) -> None:
    from atoll.evaluation.cost_plot import cost_svg
    from atoll.files import write_atomic

    write_atomic(path, cost_svg(workload, hosting, models))
    print(f"plot: {path}", file=sys.stderr)


def _throughput(
    price: MachinePrice, new: float | None, prompt: float | None, adapters_share: float | None
) -> Throughput:
    """What was measured on the machine, with what the user says over it. Raises UsageError where neither says it."""
    from atoll.errors import UsageError
    from atoll.evaluation.cost import THROUGHPUTS, Throughput

    measured = THROUGHPUTS.get(price.name) or THROUGHPUTS.get(price.gpu or "")
    if measured is None:
        if new is None:
            raise UsageError(
                f"nothing has been measured on {price.name}",
                where="--machine",
                why=f"there are figures for {', '.join(THROUGHPUTS)}",
                mend="give --new-tokens-per-second, and --prompt-tokens-per-second if that does not include prompts",
            )
        return Throughput(new, prompt, adapters_share or 1.0, "a base of your own", "the command line")
    said: dict[str, Any] = {
        "new_tokens_per_second": new,
        "prompt_tokens_per_second": prompt,
        "adapters_share": adapters_share,
    }
    return replace(measured, **{name: value for name, value in said.items() if value is not None})


def _token_price(name: str) -> TokenPrice:
    from atoll.config.explain import did_you_mean
    from atoll.config.prices import OWN_FILE, token_price, token_prices
    from atoll.errors import NotFound

    if price := token_price(name):
        return price
    guess = did_you_mean(name, token_prices())
    mend = f"did you mean {guess}?" if guess else f"`atoll cost --list` shows them; {OWN_FILE} names a file with others"
    raise NotFound(f"no price is known for the model {name!r}", where="--model", mend=mend)


def _as_json(workload: Workload, hosting: Hosting, models: Sequence[TokenPrice]) -> dict[str, Any]:
    from atoll.evaluation.cost import break_even, compare, shared_pays_until

    pairs = [break_even(workload, hosting, model, kind) for kind in ("shared", "dedicated") for model in models]
    return {
        "workload": asdict(workload),
        "hosting": asdict(hosting),
        "offers": [asdict(offer) for offer in compare(workload, hosting, models)],
        "break_even": [asdict(found) for found in pairs if found is not None],
        "shared_pays_until": shared_pays_until(workload, hosting),
    }


def _print_report(workload: Workload, hosting: Hosting, models: Sequence[TokenPrice]) -> None:
    from atoll.evaluation.cost import compare

    offers = compare(workload, hosting, models)
    numbers = (Column(name, is_number=True) for name in ("$ a month", "$ a 1,000 requests", "machines"))
    print_table([Column("way"), Column("with"), *numbers], map(_cells, offers))
    print("\n".join([*_break_even_lines(workload, hosting, models), *_assumptions(hosting), *_sources(offers)]))


def _cells(offer: Offer) -> tuple[str, str, str, str, str]:
    per_thousand = "-" if offer.usd_per_thousand_requests is None else f"{offer.usd_per_thousand_requests:,.4f}"
    machines = "" if offer.num_machines is None else f"{offer.num_machines:,}"
    return KINDS[offer.kind], offer.name, f"{offer.usd_per_month:,.2f}", per_thousand, machines


def _break_even_lines(workload: Workload, hosting: Hosting, models: Sequence[TokenPrice]) -> Iterator[str]:
    from atoll.evaluation.cost import break_even, shared_pays_until

    yield "all adapters on one cost less ..."
    if workload.num_tasks > 1:
        until = shared_pays_until(workload, hosting)
        yield f"  than a machine for each model: up to {until:,} requests a month"
    for model in models:
        found = break_even(workload, hosting, model)
        if found is None:
            yield f"  than {model.name}: never, as a machine's requests cost less by the token than the machine"
            continue
        text = f"  than {model.name}: from {found.first:,} requests a month"
        if found.always is None:
            text += ", but for those that a machine more has just been added for"
        elif found.always > found.first:
            text += f", and whatever a machine more adds from {found.always:,}"
        yield text


def _assumptions(hosting: Hosting) -> Iterator[str]:
    speed = hosting.throughput
    prompt = speed.prompt_tokens_per_second
    prompts = f"{prompt:,.0f} prompt tokens/s" if prompt else "prompts of usual length in it and not counted again"
    rates = f"{speed.new_tokens_per_second:,.0f} new tokens/s, {prompts}, x {speed.adapters_share:g} with adapters"
    busy = f"busy {100 * hosting.utilization:.0f} % of 730 hours a month"
    yield f"assumed: {speed.base}: {rates} ({speed.source}); {busy}"


def _sources(offers: Sequence[Offer]) -> Iterator[str]:
    for source, date in dict.fromkeys((offer.source, offer.date) for offer in offers):
        yield f"prices: {source}, {date}"


def _list_prices(as_json: bool) -> None:
    from atoll.config.prices import machine_prices, token_prices

    machines, models = machine_prices().values(), token_prices().values()
    if as_json:
        print_json({"machines": [asdict(one) for one in machines], "models": [asdict(one) for one in models]})
        return
    rows = [(one.name, f"{one.usd_per_hour:g} an hour", one.date, one.source) for one in machines]
    for one in models:
        per_million = f"{one.usd_per_million_input:g} / {one.usd_per_million_output:g} a million tokens"
        rows.append((one.name, per_million, one.date, one.source))
    print_table([Column("name"), Column("US dollars"), Column("date"), Column("source")], rows)
