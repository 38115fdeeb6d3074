"""Puts the pages together."""

from __future__ import annotations

from fastapi import APIRouter

from atoll.server.gateway import Gateway, RequestEngine
from atoll.server.keys.accounts import Accounts
from atoll.server.metrics import ServerMetrics
from atoll.server.ui.adapters_page import AdaptersPage
from atoll.server.ui.adapters_shelf import AdapterShelf
from atoll.server.ui.boards import board_pages
from atoll.server.ui.csrf import CsrfTokens
from atoll.server.ui.door import Door
from atoll.server.ui.duels import Duels
from atoll.server.ui.leaderboard_table import ResultsFiles
from atoll.server.ui.login import LoginPage
from atoll.server.ui.missing import MissingPage
from atoll.server.ui.pages import Pages
from atoll.server.ui.runs_folder import RunsFolder
from atoll.server.ui.runs_process import RunProcesses
from atoll.server.ui.site import Page, Site, UiSettings
from atoll.server.ui.static_files import StaticFiles
from atoll.server.ui.try_page import TryPage
from atoll.server.ui.votes_page import VotesPage


def ui_routers(
    settings: UiSettings,
    door: Door,
    gateway: Gateway,
    engine: RequestEngine,
    metrics: ServerMetrics,
    accounts: Accounts | None,
) -> list[APIRouter]:
    """The routers of all pages, in the order in which the navigation shows them."""
    static, csrf = StaticFiles(), CsrfTokens()
    site = Site(
        settings=settings,
        gateway=gateway,
        engine=engine,
        base=gateway.base,
        metrics=metrics,
        accounts=accounts,
        door=door,
        csrf=csrf,
        pages=Pages(static, csrf, _shown_name(gateway.base.name), has_keys=accounts is not None),
    )
    door.show_error = site.pages.error
    runs = RunsFolder(settings.runs.absolute(), RunProcesses())
    results = ResultsFiles(runs)
    shelf = AdapterShelf(gateway.catalog, engine, gateway.use, results, gateway.base.digest)
    duels = Duels()
    pages: list[Page] = [
        LoginPage(site),
        TryPage(site, shelf, duels),
        VotesPage(site, duels),
        AdaptersPage(site, shelf),
        *board_pages(site, runs, results),
        MissingPage(site),
    ]
    return [static.router, *(page.router for page in pages)]


def _shown_name(base_name: str) -> str:
    """A base that was given as a folder is known by its last name: where it lies is nobody's business."""
    return base_name.rstrip("/").rpartition("/")[2] if base_name.startswith("/") else base_name
