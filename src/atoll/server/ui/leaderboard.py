"""The leaderboard's pages: tasks by contenders, then the single examples behind a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import anyio
from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from atoll.evaluation.outputs import ADAPTER, BASE
from atoll.server.caller import caller_of
from atoll.server.ui.leaderboard_examples import FILTERS, ExampleFiles, Filter
from atoll.server.ui.leaderboard_table import ALL, ResultsFiles, Row, contender_title, shown_rows
from atoll.server.ui.pages import NavItem
from atoll.server.ui.runs import Copy
from atoll.server.ui.site import Site

PATH = "/ui/leaderboard"
Order = Literal["down", "up"]
_MAX_QUERY = 200
_PLOT_WIDTH = 180


class LeaderboardPage:
    """Scores of all evaluations below the folder of runs; each caller sees those of adapters that they may use."""

    def __init__(self, site: Site, results: ResultsFiles) -> None:
        self._site = site
        self._results = results
        self._examples = ExampleFiles()
        site.pages.nav.append(NavItem("Leaderboard", PATH))
        self.router = site.router()
        self.router.get(PATH)(self.show)
        self.router.get(f"{PATH}/{{run}}/{{member}}")(self.examples)

    async def show(
        self,
        request: Request,
        run: str = ALL,
        sort: str = "task",
        order: Order = "down",
        q: Annotated[str, Query(max_length=_MAX_QUERY)] = "",
    ) -> Response:
        """The table. All of its state stands in the address."""
        board = await anyio.to_thread.run_sync(self._results.board, caller_of(request), run)
        rows = shown_rows(board.rows, sort, reverse=order == "up", query=q)

        def link(column: str) -> str:
            turned: Order = "up" if column == sort and order == "down" else "down"
            return _address({"run": run, "sort": column, "order": turned, "q": q})

        return self._site.pages.page(
            request,
            "leaderboard.html",
            rows=[{"row": row, "plot": plot(row, board.contenders), "best": _best(row)} for row in rows],
            board=board,
            titles={name: contender_title(name) for name in board.contenders},
            colors={name: number % 10 for number, name in enumerate(board.contenders)},
            run=run, sort=sort, order=order, q=q, link=link,
            copies=self._copies(request, run),
        )  # fmt: skip

    async def examples(
        self,
        request: Request,
        run: str,
        member: str,
        filter: Filter = "all",
        shown: Annotated[list[str] | None, Query(alias="with", max_length=12)] = None,
        page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    ) -> Response:
        """The answers behind one adapter's score."""
        caller = caller_of(request)
        results, found = await anyio.to_thread.run_sync(self._results.member, caller, run, member)
        contenders = list(found.primary.scores)
        chosen = [name for name in shown or (ADAPTER, BASE) if name in contenders] or [ADAPTER]
        record = next(record for record in results.run.members if record.name == found.name)
        folder = self._results.folder(run)
        examples = await anyio.to_thread.run_sync(self._examples.page, folder, record, chosen, filter, page)

        # Where the runs lie is for admins to know.
        command = f"jq . {folder}/raw/{found.name}/{ADAPTER}.jsonl"
        answers = [Copy("CLI", command)] if "admin" in caller.scopes else []

        def link(**changed: Any) -> str:
            return _query({"filter": filter, "with": chosen, "page": 1} | changed)

        return self._site.pages.page(
            request,
            "examples.html",
            run=run, member=found, contenders=contenders, chosen=chosen, filter=filter, filters=FILTERS,
            titles={name: contender_title(name) for name in contenders},
            examples=examples, link=link,
            copies=[*answers, *self._copies(request, run)[1:]],
        )  # fmt: skip

    def _copies(self, request: Request, run: str) -> list[Copy]:
        address = f"{request.url.scheme}://{request.url.netloc}{request.url.path}"
        query = f"?{request.url.query}" if request.url.query else ""
        key = ' -H "x-api-key: $ATOLL_KEY"' if self._site.accounts is not None else ""
        return [
            Copy("CLI", f"atoll report {run or 'RUN'}"),
            Copy("curl", f"curl '{address}{query}'{key}"),
            Copy("Python", _PYTHON.format(run=run or "RUN")),
        ]


_PYTHON = """\
from pathlib import Path

from atoll.evaluation.results import Results

results = Results.model_validate_json(Path("runs/{run}/eval/results.json").read_bytes())
for member in results.members:
    print(member.name, member.primary.scores["adapter"].value)"""


def plot(row: Row, contenders: Sequence[str]) -> list[dict[str, Any]]:
    """Where each contender's score and interval stand in the page's SVG of 180 by 34 units; scores are 0 to 1."""

    def x(value: float) -> float:
        return round(4 + (_PLOT_WIDTH - 8) * min(1.0, max(0.0, value)), 1)

    marks = []
    for number, name in enumerate(contenders):
        if (cell := row.cells.get(name)) is not None:
            has_interval = cell.low is not None and cell.high is not None
            marks.append(
                {
                    "name": name,
                    "color": number % 10,
                    "x": x(cell.value),
                    "y": round(6 + 22 * (number + 0.5) / len(contenders), 1),
                    "low": x(cell.low) if has_interval and cell.low is not None else None,
                    "high": x(cell.high) if has_interval and cell.high is not None else None,
                }
            )
    return marks[::-1]  # the adapter is drawn last, over the others


def _best(row: Row) -> set[str]:
    top = max((round(cell.value, 4) for cell in row.cells.values()), default=0.0)
    return {name for name, cell in row.cells.items() if round(cell.value, 4) == top}


def _address(values: dict[str, str]) -> str:
    defaults = {"run": ALL, "sort": "task", "order": "down", "q": ""}
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    return f"{PATH}?{urlencode(changed)}" if changed else PATH


def _query(values: dict[str, Any]) -> str:
    return "?" + urlencode({name: value for name, value in values.items() if value != ""}, doseq=True)
