"""Cost: what serving costs by several ways of it, and what each key has used."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import anyio
from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from atoll.config.prices import token_prices
from atoll.errors import AtollError
from atoll.evaluation import cost_defaults
from atoll.server.caller import Caller, caller_of
from atoll.server.keys.usage import Sums, UsageRow
from atoll.server.ui.cost_form import HEIGHT, WIDTH, Bill, CostForm, bill, machine_choices, read_cost_form
from atoll.server.ui.pages import NavItem
from atoll.server.ui.runs import Copy
from atoll.server.ui.site import Site

PATH = "/ui/cost"
MAX_USAGE_ROWS = 500


@dataclass(frozen=True)
class Used:
    """What one key has used of one adapter in the time that was asked for."""

    key_id: str
    name: str
    tenant: str
    adapter: str
    sums: Sums


class CostPage:
    """The calculator for everybody; of usage each tenant sees its own, and admins see all."""

    def __init__(self, site: Site) -> None:
        self._site = site
        site.pages.nav.append(NavItem("Cost", PATH))
        self.router = site.router()
        self.router.get(PATH)(self.show)

    async def show(self, request: Request, days: Annotated[int, Query(ge=1, le=366)] = 30) -> Response:
        """All that was asked stands in the address. What is wrong with the form is shown in it."""
        content = await anyio.to_thread.run_sync(self._content, request, days)
        return self._site.pages.page(request, "cost.html", **content)

    def _content(self, request: Request, days: int) -> dict[str, Any]:
        form, found, problem = CostForm(), None, ""
        try:
            form = read_cost_form(request.query_params.multi_items())
            found = bill(form)
        except AtollError as error:
            problem = "; ".join(part for part in (error.what, error.mend) if part)
        return {
            "form": form,
            "bill": found,
            "problem": problem,
            "kinds": cost_defaults.KINDS,
            "machines": machine_choices(),
            "models": sorted(token_prices()),
            "width": WIDTH,
            "height": HEIGHT,
            "days": days,
            "usage": self._usage(caller_of(request), days),
            "has_accounts": self._site.accounts is not None,
            "copies": self._copies(request, form, found),
        }

    def _usage(self, caller: Caller, days: int) -> list[Used]:
        if self._site.accounts is None:
            return []
        since = datetime.now(UTC).date() - timedelta(days=days - 1)
        return used_since(self._site.accounts.usage.report(since), caller)

    def _copies(self, request: Request, form: CostForm, found: Bill | None) -> list[Copy]:
        query = f"?{request.url.query}" if request.url.query else ""
        key = ' -H "x-api-key: $ATOLL_KEY"' if self._site.accounts is not None else ""
        address = f"{request.url.scheme}://{request.url.netloc}{PATH}{query}"
        copies = [Copy("CLI", cost_command(form)), Copy("curl", f"curl '{address}'{key}")]
        if found is not None:
            copies.append(Copy("Python", _PYTHON.format(form=form, throughput=found.throughput)))
        return copies


_PYTHON = """\
from atoll.config.prices import named_machine, token_price
from atoll.evaluation.cost import Hosting, Throughput, Workload, compare

workload = Workload({form.requests:g}, {form.prompt_tokens:g}, {form.new_tokens:g}, {form.tasks})
throughput = {throughput!r}
hosting = Hosting(named_machine({form.machine!r}), throughput, {form.utilization:g})
for offer in compare(workload, hosting, [token_price(name) for name in {form.model!r}]):
    print(offer.name, round(offer.usd_per_month, 2))"""


def used_since(rows: list[UsageRow], caller: Caller) -> list[Used]:
    """Sums over days by key and adapter, the largest first; of the caller's tenant alone unless they are an admin."""
    found: dict[tuple[str, str], Used] = {}
    for row in rows:
        if "admin" not in caller.scopes and (row.tenant != caller.tenant or not row.name):
            continue
        place = row.key_id, row.adapter
        used = found.setdefault(place, Used(row.key_id, row.name, row.tenant, row.adapter, Sums()))
        used.sums.add(row.sums)
    ordered = sorted(found.values(), key=lambda used: (-used.sums.generated_tokens, used.key_id, used.adapter))
    return ordered[:MAX_USAGE_ROWS]


def cost_command(form: CostForm) -> str:
    """The command that computes the same."""
    default = CostForm()
    words = ["atoll", "cost"]
    for name in CostForm.model_fields:
        value = getattr(form, name)
        if value == getattr(default, name):
            continue
        for single in value if isinstance(value, tuple) else (value,):
            words += [f"--{name.replace('_', '-')}", f"{single:g}" if isinstance(single, float) else str(single)]
    return shlex.join(words)
