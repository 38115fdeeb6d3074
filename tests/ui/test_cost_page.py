"""The calculator's page agrees with the calculator, its copies compute the same, and usage is each tenant's own."""

from __future__ import annotations

import contextlib
import html
import io
import json
import re
from collections.abc import Callable
from datetime import date
from typing import Any
from urllib.parse import urlencode

import httpx2 as httpx
import pytest
from typer.testing import CliRunner

from atoll.cli.main import app
from atoll.server.caller import Caller
from atoll.server.keys.usage import Sums, UsageRow
from atoll.server.ui.cost import MAX_USAGE_ROWS, cost_command, used_since
from atoll.server.ui.cost_form import CostForm, bill, read_cost_form
from support.browsing import Watched, overflowing, serious_findings
from support.pages import ShownSite

ASKED = {"requests": "2000000", "prompt_tokens": "500", "new_tokens": "20", "tasks": "7", "model": "gpt-4o"}


def get(site: ShownSite, fields: dict[str, str]) -> str:
    answer = httpx.get(f"{site.url}/ui/cost?{urlencode(fields)}", headers={"accept": "text/html"})
    assert answer.status_code == 200
    return answer.text


def copied(page: str, label: str) -> str:
    return html.unescape(re.findall(rf'<pre [^>]*aria-label="{label}">([^<]*)</pre>', page)[0])


def test_the_table_has_every_offer_of_the_calculator(site: ShownSite) -> None:
    page = get(site, ASKED)
    offers = bill(read_cost_form(list(ASKED.items()))).offers
    assert {offer.kind for offer in offers} == {"shared", "dedicated", "api"}
    for offer in offers:
        assert f"{offer.usd_per_month:,.2f}" in page


def test_the_copied_command_and_the_copied_program_compute_the_same(site: ShownSite) -> None:
    page = get(site, ASKED)
    offers = bill(read_cost_form(list(ASKED.items()))).offers
    command = copied(page, "CLI").split()
    assert command[:2] == ["atoll", "cost"]
    result = CliRunner().invoke(app, [*command[1:], "--json"])
    assert result.exit_code == 0, result.output
    told = {offer["kind"]: offer["usd_per_month"] for offer in json.loads(result.stdout)["offers"]}
    assert told == {offer.kind: pytest.approx(offer.usd_per_month) for offer in offers}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(copied(page, "Python"), {})
    lines = [line.rsplit(" ", 1)[1] for line in printed.getvalue().splitlines()]
    assert [float(line) for line in lines] == [round(offer.usd_per_month, 2) for offer in offers]


def test_a_form_of_defaults_is_the_plain_command() -> None:
    assert cost_command(CostForm()) == "atoll cost"


@pytest.mark.parametrize(
    "fields",
    [
        {"requests": "nan"},
        {"requests": "-1"},
        {"requests": "1e300"},
        {"tasks": "0"},
        {"utilization": "2"},
        {"machine": "<script>"},
        {"model": "nobody's"},
        {"prompt_tokens": "0", "new_tokens": "0"},
        {"machine": "g4dn.xlarge"},
    ],
)
def test_what_is_wrong_is_told_in_the_page(site: ShownSite, fields: dict[str, str]) -> None:
    page = get(site, fields)
    assert 'class="problem"' in page
    assert "<script>" not in page.partition("<main")[2]


@pytest.mark.parametrize("requests", ["0", "1", "99", "1000000000000"])
def test_every_number_of_requests_can_be_drawn(requests: str) -> None:
    plot = bill(read_cost_form([("requests", requests)])).plot
    places = [float(number) for line in plot.lines for point in line.points.split() for number in point.split(",")]
    assert plot.lines
    assert all(0 <= place <= 720 for place in places)


def row(key: str, tenant: str, *, adapter: str = "a", requests: int = 1) -> UsageRow:
    sums = Sums(requests=requests, generated_tokens=requests)
    return UsageRow(day=date(2026, 11, 1), key_id=key, name=f"key {key}", tenant=tenant, adapter=adapter, sums=sums)


def test_usage_is_added_up_and_only_the_tenants_own_unless_for_an_admin() -> None:
    rows = [row("1", "x"), row("1", "x", requests=4), row("2", "y"), row("1", "x", adapter="b")]
    user = Caller(tenant="x", scopes=frozenset({"use"}))
    own = used_since(rows, user)
    assert [(used.key_id, used.adapter, used.sums.requests) for used in own] == [("1", "a", 5), ("1", "b", 1)]
    assert {used.tenant for used in used_since(rows, Caller())} == {"x", "y"}


def test_usage_of_a_key_that_is_gone_is_no_tenants() -> None:
    gone = UsageRow(day=date(2026, 11, 1), key_id="9", name="", tenant="", adapter="", sums=Sums(requests=1))
    assert used_since([gone], Caller(tenant="", scopes=frozenset({"use"}))) == []
    assert len(used_since([gone], Caller())) == 1


def test_a_long_list_of_usage_is_cut() -> None:
    assert len(used_since([row(str(number), "x") for number in range(2000)], Caller())) == MAX_USAGE_ROWS


def test_the_address_follows_the_form(tab: Watched) -> None:
    page = tab.goto("/ui/cost")
    assert serious_findings(page) == []
    page.locator("#requests").fill("5000000")
    page.wait_for_url("**requests=5000000**")
    page.reload()
    assert page.locator("#requests").input_value() == "5000000"


def test_the_page_fits_a_phone_in_the_dark(open_tab: Callable[..., Any]) -> None:
    with open_tab(viewport={"width": 360, "height": 740}, color_scheme="dark") as watched:
        page = watched.goto("/ui/cost")
        assert overflowing(page) <= 0
        assert serious_findings(page) == []
