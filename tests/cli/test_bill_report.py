"""The table of quote and bill: its columns stand below one another, whatever the adapters are called."""

from __future__ import annotations

import pytest

from atoll.cli.bill_report import bill_lines
from atoll.training.quote import Bill, MemberBill, MemberQuote, Quote, Span

NAMES = ("a", "an-adapter-with-a-name-of-many-words")
BILL = Bill(
    seconds=90.0, cost_usd=0.02, memory_bytes=2_000_000_000, num_tokens=1000, tokens_per_second=11.1,
    members=tuple(MemberBill(name=name, num_steps=3, num_tokens=500, seconds=45.0, cost_usd=0.01) for name in NAMES),
)  # fmt: skip
SPAN = Span(low=0.01, expected=0.02, high=0.03)
QUOTE = Quote(
    fingerprint="", made_from="probe", num_passes=1, measured_seconds=1.0, tokens_per_second=11.1, seconds=SPAN,
    cost_usd=SPAN, memory_bytes=2_000_000_000, machine="m", usd_per_hour=0.1, price_source="", price_date="",
    members=tuple(
        MemberQuote(name=name, num_steps=4, num_train_tokens=1, num_validation_tokens=0, seconds=1.0, cost_usd=0.01)
        for name in NAMES
    ),
)  # fmt: skip


@pytest.mark.parametrize("quote", [None, QUOTE])
def test_columns_stand_below_one_another(quote: Quote | None) -> None:
    *rows, total = bill_lines(BILL, quote)
    column = rows[0].index("actual")
    assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows)
    assert [row.split()[0] for row in rows[1:]] == ["time", "memory", "cost", *NAMES]
    assert total.endswith("1.00 cents an adapter")
