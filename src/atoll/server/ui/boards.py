"""The pages of runs and scores, and what they share."""

from __future__ import annotations

from atoll.server.ui.cost import CostPage
from atoll.server.ui.leaderboard import LeaderboardPage
from atoll.server.ui.leaderboard_table import ResultsFiles
from atoll.server.ui.operations import OperationsPage
from atoll.server.ui.runs import RunsPage
from atoll.server.ui.runs_folder import RunsFolder
from atoll.server.ui.runs_new import NewRunPage
from atoll.server.ui.runs_start import RunStarter
from atoll.server.ui.runs_upload import Uploads
from atoll.server.ui.site import Page, Site


def board_pages(site: Site, runs: RunsFolder, results: ResultsFiles) -> list[Page]:
    """Leaderboard, runs, operations and cost, in the order of the navigation."""
    uploads = Uploads(runs.root / ".uploads")
    starter = RunStarter(runs, uploads, site.base, site.gateway.catalog.store)
    return [
        LeaderboardPage(site, results),
        RunsPage(site, runs, starter),
        NewRunPage(site, starter, uploads),
        OperationsPage(site),
        CostPage(site),
    ]
