"""Quotes and bills of runs, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.training.quote import Bill, Quote


def duration(seconds: float) -> str:
    """A time in the unit that suits it, to two digits or more."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def cents(usd: float) -> str:
    """Money in cents, or in dollars from ten of them on."""
    return f"{100 * usd:.2f} cents" if usd < 10 else f"${usd:,.2f}"


def gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def quote_line(quote: dict[str, Any]) -> str:
    """A quote as `atoll tune` tells it, from its event."""
    seconds, source = quote["seconds"], quote["made_from"]
    return (
        f"quote from {'a probe' if source == 'probe' else 'the first passes'}: {duration(seconds['expected'])} "
        f"({duration(seconds['low'])} to {duration(seconds['high'])}), {gigabytes(quote['memory_bytes'])}, "
        f"{cents(quote['cost_usd']['expected'])}"
    )


def quote_lines(quote: Quote) -> Iterator[str]:
    """A quote as `atoll check` shows it, adapter by adapter."""
    for member in quote.members:
        yield (
            f"{member.name}: {member.num_steps:,} steps, {member.num_train_tokens:,} training tokens: "
            f"{duration(member.seconds)}, {cents(member.cost_usd)}"
        )
    yield (
        f"quote, without early stopping: {duration(quote.seconds.expected)} ({duration(quote.seconds.low)} to "
        f"{duration(quote.seconds.high)}), {gigabytes(quote.memory_bytes)} of memory, {cents(quote.cost_usd.expected)} "
        f"({cents(quote.cost_usd.low)} to {cents(quote.cost_usd.high)})"
    )
    passes = "a training pass" if quote.num_passes == 1 else f"{quote.num_passes} training passes"
    yield (
        f"  from {passes} in {duration(quote.measured_seconds)}, "
        f"{quote.tokens_per_second:,.0f} tokens/s with validation; {quote.machine}: ${quote.usd_per_hour} an hour"
    )
    yield f"  ({quote.price_source}, {quote.price_date})"


def bill_lines(bill: Bill, quote: Quote | None) -> Iterator[str]:
    """What a run took, against what was quoted for it if anything was."""
    rows: list[tuple[str, ...]]
    if quote is not None:
        rows = list(_compared(bill, quote))
    else:
        rows = [
            ("", "actual"),
            ("time", duration(bill.seconds)),
            ("memory", gigabytes(bill.memory_bytes)),
            ("cost", cents(bill.cost_usd)),
            *((f"  {member.name}", cents(member.cost_usd)) for member in bill.members),
        ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    yield (
        f"{bill.num_tokens:,} tokens at {bill.tokens_per_second:,.0f} tokens/s; "
        f"{cents(bill.cost_usd / len(bill.members))} an adapter"
    )


def _compared(bill: Bill, quote: Quote) -> Iterator[tuple[str, ...]]:
    yield "", f"quote ({quote.made_from})", "actual"
    yield (
        "time",
        f"{duration(quote.seconds.expected)} ({duration(quote.seconds.low)} to {duration(quote.seconds.high)})",
        f"{duration(bill.seconds)}{_difference(quote.seconds.expected, bill.seconds)}",
    )
    yield (
        "memory",
        gigabytes(quote.memory_bytes),
        f"{gigabytes(bill.memory_bytes)}{_difference(quote.memory_bytes, bill.memory_bytes)}",
    )
    yield (
        "cost",
        f"{cents(quote.cost_usd.expected)} ({100 * quote.cost_usd.low:.2f} to {100 * quote.cost_usd.high:.2f})",
        f"{cents(bill.cost_usd)}{_difference(quote.cost_usd.expected, bill.cost_usd)}",
    )
    for quoted, taken in zip(quote.members, bill.members, strict=True):
        ended = "" if taken.num_steps == quoted.num_steps else f", stopped at step {taken.num_steps:,}"
        yield (
            f"  {quoted.name}",
            f"{cents(quoted.cost_usd)}, {quoted.num_steps:,} steps",
            f"{cents(taken.cost_usd)}{ended}",
        )


def _difference(quoted: float, taken: float) -> str:
    return f" ({100 * (taken / quoted - 1):+.0f} %)" if quoted else ""
