"""The first page: choose an adapter, fill its template, and watch it answer beside the base model and others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import anyio
from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import Response

from atoll.config.template import TemplatePart, parse_template
from atoll.engine import FinishEvent
from atoll.errors import AtollError, RequestInvalid
from atoll.server.caller import Caller, caller_of
from atoll.server.errors import error_body
from atoll.server.streaming import EventStreamResponse
from atoll.server.ui import copying
from atoll.server.ui.adapters_facts import AdapterFacts
from atoll.server.ui.adapters_shelf import AdapterShelf, Card
from atoll.server.ui.answering import Column, Race
from atoll.server.ui.door import HOME
from atoll.server.ui.duels import Duels
from atoll.server.ui.pages import HEADERS, NavItem
from atoll.server.ui.site import Site
from atoll.server.ui.try_ask import Question, Questions
from atoll.server.ui.try_state import BASE, MAX_CONTENDERS, TryState, parse_state

# Long prompts are tokenised few at a time: they compete with the steps for cores.
_NUM_TOKENIZING = 2
_MAX_CHIP_CHARS = 60


@dataclass(frozen=True)
class Chip:
    """An example prompt to begin with."""

    label: str
    query: str


class TryPage:
    """The page, the part of it that follows the typing, and the stream of answers."""

    def __init__(self, site: Site, shelf: AdapterShelf, duels: Duels) -> None:
        self._site = site
        self._shelf = shelf
        self._duels = duels
        self._questions = Questions(site.gateway)
        self._limiter = anyio.CapacityLimiter(_NUM_TOKENIZING)
        site.pages.nav.append(NavItem("Try", HOME))
        self.router = site.router()
        self.router.get(HOME)(self.show)
        self.router.post("/ui/preview")(self.preview)
        self.router.post("/ui/answers")(self.answers)

    async def show(self, request: Request) -> Response:
        """The whole page in the state of its address."""
        caller = caller_of(request)
        asked = parse_state(request.query_params.multi_items())
        content = await anyio.to_thread.run_sync(self._content, asked, caller)
        preview = await self._preview(request, content["state"], caller)
        search = {name: request.query_params.get(name, "")[:100] for name in ("q", "category")}
        return self._site.pages.page(request, "try.html", **content, **preview, **search, is_part=False)

    async def preview(self, request: Request) -> Response:
        """What follows from the fields: tokens, the filled prompt, and the same ask as texts to copy."""
        state = await _posted_state(request)
        content = await self._preview(request, state, caller_of(request))
        return self._site.pages.part(request, "_preview.html", **content, is_part=True)

    async def answers(self, request: Request) -> Response:
        """Server-sent events: the answers of all contenders while they come."""
        caller, state = caller_of(request), await _posted_state(request)
        if not state.contenders:
            raise RequestInvalid("nobody is asked", mend=f"choose one to {MAX_CONTENDERS} contenders")
        question = await self._question(state, caller)
        race = self._blind_race(state, question, caller) if state.blind else self._open_race(state, question, caller)
        return EventStreamResponse(race, race.frames(), HEADERS)

    def _open_race(self, state: TryState, question: Question, caller: Caller) -> Race:
        columns = [Column(name, name, self._questions.ask(question, state, name)) for name in state.contenders]
        start = _facts_of(question)
        return Race(self._site.gateway, caller, columns, start=start, on_end=lambda number, end: None)

    def _blind_race(self, state: TryState, question: Question, caller: Caller) -> Race:
        duel_id, duel = self._duels.start(caller, state, question.text)
        columns = [
            Column(name, label, self._questions.ask(question, state, name))
            for name, label in zip(duel.contenders, ("Answer A", "Answer B"), strict=True)
        ]

        def on_end(number: int, end: FinishEvent) -> None:
            duel.ends[number] = end

        start = _facts_of(question) | {"duel": duel_id}
        return Race(self._site.gateway, caller, columns, start=start, on_end=on_end, shows_figures=False)

    async def _question(self, state: TryState, caller: Caller) -> Question:
        make = partial(self._questions.question, state, caller)
        return await anyio.to_thread.run_sync(make, limiter=self._limiter)

    async def _preview(self, request: Request, state: TryState, caller: Caller) -> dict[str, Any]:
        question, problem = None, ""
        try:
            question = await self._question(state, caller)
        except AtollError as error:
            if state.prompt or any(state.inputs.values()):  # an empty form is nobody's mistake
                problem = str(error_body("/ui", error)[1]["error"])
        url, has_keys = copying.address(request), self._site.accounts is not None
        copies = self._questions.copies(state, url, has_keys=has_keys)
        return {"question": question, "problem": problem, "copies": copies}

    def _content(self, asked: TryState, caller: Caller) -> dict[str, Any]:
        shelf = self._shelf.all(caller)
        name = asked.adapter or _first(shelf)
        card = None if name == BASE else self._shelf.card(name, caller)
        state = _settled(asked, name, card)
        ordered = sorted(shelf, key=lambda facts: (facts.category, facts.name))
        return {
            "state": state,
            "card": card,
            "template": _template(card),
            "chips": _chips(state, card),
            "groups": [
                (category, list(group)) for category, group in groupby(ordered, key=lambda facts: facts.category)
            ],
            "others": [facts.name for facts in shelf if facts.name != name],
            "extras": _extras(state),
            "max_contenders": MAX_CONTENDERS,
        }


def _first(shelf: list[AdapterFacts]) -> str:
    """Whom a newcomer meets: an adapter with an example, the one that gains most by tuning."""

    def key(facts: AdapterFacts) -> tuple[bool, bool, float]:
        lift = facts.scores.lift if facts.scores and facts.scores.lift is not None else -1.0
        return bool(facts.examples), bool(facts.columns), lift

    return max(shelf, key=key).name if shelf else BASE


def _settled(asked: TryState, name: str, card: Card | None) -> TryState:
    """What is not said is filled in: the first example, and the adapter beside its base."""
    columns = card.facts.columns if card else ()
    given = {column: asked.inputs.get(column, "") for column in columns}
    if card and card.facts.examples and not asked.inputs:
        given = dict(card.facts.examples[0])
    contenders = asked.contenders or ((BASE,) if card is None else (name, BASE))
    return replace(asked, adapter=name, inputs=given, contenders=contenders)


def _template(card: Card | None) -> tuple[TemplatePart, ...]:
    contract = card.facts.adapter.contract if card else None
    return parse_template(contract.prompt.template) if contract else ()


def _chips(state: TryState, card: Card | None) -> list[Chip]:
    examples = card.facts.examples if card else ()
    return [
        Chip(_short(next(iter(inputs.values()))), replace(state, inputs=inputs, blind=state.blind).query)
        for inputs in examples
    ]


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHIP_CHARS else text[: _MAX_CHIP_CHARS - 1] + "…"


def _extras(state: TryState) -> list[str]:
    """The contenders that are neither the page's adapter nor the base, with room for as many as may be."""
    extras = [name for name in state.contenders if name not in (state.adapter, BASE)]
    return (extras + [""] * MAX_CONTENDERS)[: MAX_CONTENDERS - 2]


def _facts_of(question: Question) -> dict[str, Any]:
    return {"num_prompt_tokens": len(question.ids.ids), "num_cut_tokens": question.ids.num_cut_tokens}


async def _posted_state(request: Request) -> TryState:
    form: FormData | QueryParams = await request.form(max_files=0, max_fields=200)
    return parse_state((name, value) for name, value in form.multi_items() if isinstance(value, str))
