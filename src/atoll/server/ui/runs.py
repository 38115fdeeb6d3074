"""Runs: all of them, and each one live, wherever it was started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote as quoted

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from atoll.errors import Forbidden, NotFound
from atoll.server.caller import Caller, caller_of
from atoll.server.ui import words
from atoll.server.ui.pages import HEADERS, NavItem
from atoll.server.ui.runs_folder import FLEET_NAME, Run, RunsFolder
from atoll.server.ui.runs_log import AdapterState, RunState
from atoll.server.ui.runs_start import RunStarter
from atoll.server.ui.site import Site, admin

_POLL_S = 1.0
_MAX_YAML_BYTES = 64 << 10


@dataclass(frozen=True)
class Copy:
    """A text to copy."""

    label: str
    text: str


class RunsPage:
    """The list, one run, and what can be done to it. Reading is for whoever may use all adapters of a run."""

    def __init__(self, site: Site, runs: RunsFolder, starter: RunStarter) -> None:
        self._site = site
        self._runs = runs
        self._starter = starter
        site.pages.nav.append(NavItem("Runs", "/ui/runs"))
        self.router = site.router()
        self.router.get("/ui/runs")(self.list_all)
        self.router.get("/ui/runs/{name}")(self.show)
        self.router.get("/ui/runs/{name}/live")(self.live)
        for verb in ("stop", "resume", "evaluate"):
            self.router.post(f"/ui/admin/runs/{{name}}/{verb}")(getattr(self, verb))

    async def list_all(self, request: Request) -> Response:
        """All runs, those that go on first."""
        caller = caller_of(request)
        runs = [run for run in await anyio.to_thread.run_sync(self._runs.latest) if _may_see(caller, run)]
        copies = [
            Copy("CLI", "atoll tune FLEET"),
            Copy("Python", 'import atoll\n\natoll.tune("fleet.yaml")'),
        ]
        return self._site.pages.page(request, "runs.html", runs=runs, root=self._shown_root(caller), copies=copies)

    async def show(self, request: Request, name: str) -> Response:
        """One run: its figures by now, which the page then keeps up to date."""
        run = await self._find(request, name)
        caller = caller_of(request)
        is_admin = "admin" in caller.scopes
        details = await anyio.to_thread.run_sync(self._details, run)
        return self._site.pages.page(
            request,
            "run.html",
            run=run,
            facts=facts_of(run),
            adapters=[adapter_row(adapter) for adapter in run.state.adapters.values()],
            output=details["output"] if is_admin else "",
            yaml=details["yaml"] if is_admin else "",
            task_yaml=details["task_yaml"] if is_admin else "",
            copies=self._copies(run, request) if is_admin else [],
            poll_ms=int(_POLL_S * 1000),
        )

    async def live(self, request: Request, name: str, after: float = 0.0) -> Response:
        """What has changed since `after` (unix seconds), as JSON: figures as they are to be shown, and new points."""
        run = await self._find(request, name)
        output = ""
        if "admin" in caller_of(request).scopes:
            output = await anyio.to_thread.run_sync(self._runs.processes.output, run.folder)
        content = {
            "status": run.status,
            "share": round(run.state.share_done, 4),
            "facts": {fact["key"]: fact["text"] for fact in facts_of(run)},
            "adapters": [adapter_row(adapter) for adapter in run.state.adapters.values()],
            "points": await anyio.to_thread.run_sync(self._runs.log(name).points_after, after),
            "output": output,
        }
        return JSONResponse(content, headers=HEADERS)

    async def stop(self, request: Request, name: str) -> Response:
        """Ask for a checkpoint and an end."""
        run = await self._find_for_admin(request, name)
        await anyio.to_thread.run_sync(self._runs.processes.stop, run.folder)
        return _to_run(name)

    async def resume(self, request: Request, name: str) -> Response:
        """Go on from the last checkpoint."""
        await anyio.to_thread.run_sync(self._starter.resume, await self._find_for_admin(request, name))
        return _to_run(name)

    async def evaluate(self, request: Request, name: str) -> Response:
        """Score what was trained."""
        await anyio.to_thread.run_sync(self._starter.evaluate, await self._find_for_admin(request, name))
        return _to_run(name)

    async def _find(self, request: Request, name: str) -> Run:
        run = await anyio.to_thread.run_sync(self._runs.find, name)
        if not _may_see(caller_of(request), run):
            raise NotFound(f"there is no run named {name[:80]!r}")
        return run

    async def _find_for_admin(self, request: Request, name: str) -> Run:
        """What changes a run is for admins who may use all that it trains; until it has begun, that is its name's."""
        caller = admin(request)
        run = await self._find(request, name)
        if not all(caller.may_use(adapter) for adapter in run.state.adapters or (run.name,)):
            raise Forbidden("this run trains adapters that are not for this key")
        return run

    def _details(self, run: Run) -> dict[str, Any]:
        """What a page of a run reads beside its events."""
        return {
            "output": self._runs.processes.output(run.folder),
            "yaml": _read_text(run, FLEET_NAME),
            "task_yaml": _read_text(run, "task.yaml"),
        }

    def _copies(self, run: Run, request: Request) -> list[Copy]:
        address = f"{request.url.scheme}://{request.url.netloc}/ui/runs/{quoted(run.name)}/live"
        key = ' -H "x-api-key: $ATOLL_KEY"' if self._site.accounts is not None else ""
        copies = [Copy("curl", f"curl '{address}'{key}")]
        if run.is_ours:
            command = self._starter.command("tune", run.name)
            copies.insert(0, Copy("CLI", f"{command}\n{self._starter.command('eval', run.name)}"))
            fleet = str((run.folder / FLEET_NAME).absolute())
            copies.append(Copy("Python", f"import atoll\n\natoll.tune({fleet!r})"))
        return copies

    def _shown_root(self, caller: Caller) -> str:
        return str(self._runs.root) if "admin" in caller.scopes else ""


def facts_of(run: Run) -> list[dict[str, str]]:
    """A run's figures as they are shown, each under a key that stays."""
    state = run.state
    speed, remaining_s = state.tokens_per_s, state.remaining_s
    is_training = run.status in ("running", "stopping")
    facts = [
        ("status", "Status", run.status),
        ("done", "Done", f"{100 * state.share_done:.0f} %"),
        ("remaining", "Remaining", words.duration(remaining_s) if remaining_s is not None and is_training else "–"),
        ("seconds", "Training time", words.duration(state.seconds)),
        ("speed", "Tokens/s", f"{speed:,.0f}" if speed is not None else "–"),
        ("tokens", "Tokens", words.count(state.num_tokens)),
        ("cost", "Cost so far", words.dollars(state.cost_usd)),
        ("quote", "Quote", _quote_text(state)),
    ]
    return [{"key": key, "label": label, "text": text} for key, label, text in facts]


def _quote_text(state: RunState) -> str:
    if state.quoted_usd is None or state.quoted_seconds is None:
        return "–"
    return f"{words.dollars(state.quoted_usd)}, {words.duration(state.quoted_seconds)}"


def adapter_row(adapter: AdapterState) -> dict[str, Any]:
    """An adapter's figures as they are shown."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return {
        "name": adapter.name,
        "task": adapter.task or "–",
        "examples": words.count(adapter.num_examples),
        "step": f"{adapter.step:,} / {adapter.total_steps:,}" if adapter.total_steps else "–",
        "share": round(adapter.share_done, 4),
        "loss": number(adapter.loss, ".4f"),
        "validation": number(adapter.validation_loss, ".4f"),
        "best": number(adapter.best_loss, ".4f"),
        "rate": number(adapter.learning_rate or None, ".2g"),
        "norm": number(adapter.grad_norm or None, ".3f"),
        "tokens": words.count(adapter.num_tokens),
        "cost": words.dollars(adapter.cost_usd),
        "adapter_id": adapter.adapter_id,
    }


def _may_see(caller: Caller, run: Run) -> bool:
    """Admins see all runs, others those whose adapters are all theirs to use."""
    names = run.state.adapters
    return "admin" in caller.scopes or (bool(names) and all(caller.may_use(name) for name in names))


def _read_text(run: Run, name: str) -> str:
    try:
        with (run.folder / name).open("rb") as file:
            return file.read(_MAX_YAML_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _to_run(name: str) -> Response:
    return RedirectResponse(f"/ui/runs/{quoted(name)}", status_code=303)
