"""A new run: upload a file, say what its columns are, see the prompts as the model will, and start."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atoll.errors import AtollError, Forbidden, UsageError
from atoll.server.caller import Caller
from atoll.server.errors import SlowBodyError
from atoll.server.ui.pages import HEADERS
from atoll.server.ui.runs import Copy
from atoll.server.ui.runs_form import RANKS, RunForm, builtin_task, read_form, with_guesses
from atoll.server.ui.runs_preview import Preview, preview_task, preview_upload, tasks_at_hand
from atoll.server.ui.runs_start import RunStarter
from atoll.server.ui.runs_upload import Sample, Upload, Uploads, sample_of
from atoll.server.ui.site import Site, admin

PATH = "/ui/admin/new-run"
UPLOADS_PATH = "/ui/admin/uploads"
_UPLOAD_TIMEOUT_S = 600.0
_NUM_SAMPLE_ROWS = 5


class NewRunPage:
    """The form, for admins alone: training takes the machine's time, and its adapter comes to everybody's list."""

    def __init__(self, site: Site, starter: RunStarter, uploads: Uploads) -> None:
        self._site = site
        self._starter = starter
        self._uploads = uploads
        self._ranks = tuple(r for r in RANKS if r <= site.engine.stats().max_rank) or RANKS[:1]
        self.router = site.router()
        self.router.get(PATH)(self.form)
        self.router.post(UPLOADS_PATH)(self.upload)
        self.router.post(PATH)(self.start)

    async def form(self, request: Request) -> Response:
        """Everything that was chosen stands in the address."""
        admin(request)
        content = await anyio.to_thread.run_sync(self._content, list(request.query_params.multi_items()))
        return self._site.pages.page(request, "new_run.html", **content)

    async def upload(self, request: Request, title: str) -> Response:
        """Takes a file as the body, to disk as it comes; answers where to go on."""
        admin(request)
        try:
            async with asyncio.timeout(_UPLOAD_TIMEOUT_S):
                upload = await self._uploads.take(title, request.stream())
        except TimeoutError:
            raise SlowBodyError(f"the file did not come within {_UPLOAD_TIMEOUT_S:g} seconds") from None
        await anyio.to_thread.run_sync(sample_of, upload)
        query = urlencode({"upload": upload.id, "name": _name_from(upload.title)})
        return JSONResponse({"id": upload.id, "next": f"{PATH}?{query}"}, headers=HEADERS)

    async def start(self, request: Request) -> Response:
        """Start the run, and send the browser to it."""
        caller = admin(request)
        fields = await request.form(max_files=0, max_fields=500)
        form = self._read((name, value) for name, value in fields.multi_items() if isinstance(value, str))
        await anyio.to_thread.run_sync(self._start, form, caller)
        address = f"/ui/runs/{form.name}"
        return JSONResponse({"next": address}, headers=HEADERS | {"hx-redirect": address})

    def _read(self, fields: Iterable[tuple[str, str]]) -> RunForm:
        """The form, with a rank that this server can serve."""
        form = read_form([("r", str(min(RunForm().r, self._ranks[-1]))), *fields])
        if form.r > self._ranks[-1]:
            mend = "choose a smaller one, or start the server with a larger --max-rank"
            raise UsageError(f"this server cannot serve adapters of rank {form.r}", where="r", mend=mend)
        return form

    def _start(self, form: RunForm, caller: Caller) -> None:
        if not caller.may_use(form.name):  # asked first, so that nobody learns which adapters others have
            what = f"your key may not use an adapter named {form.name}, as the run's would be"
            raise Forbidden(what, where="name", mend="choose another name")
        if form.task == "":
            form = with_guesses(form, sample_of(self._uploads.find(form.upload)))
        self._starter.start(form)

    def _content(self, query: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """What the form's page shows. What is wrong with the form is shown in it."""
        content: dict[str, Any] = {
            "form": RunForm(), "upload": None, "sample": None, "preview": None, "problem": "", "copies": [],
            "yaml": "", "ranks": self._ranks, "tasks": [], "max_mib": self._uploads.max_bytes >> 20, "num_rows": 0,
        }  # fmt: skip
        try:
            form = content["form"] = self._read(query)
            preview: Preview | None = None
            if form.upload:
                upload, sample, form = self._with_upload(form)
                content |= {"upload": upload, "sample": sample, "form": form}
                preview = preview_upload(form, sample, self._site.base)
            elif form.task:
                preview = preview_task(builtin_task(form.task), self._site.base)
            else:
                content["tasks"] = tasks_at_hand()
            if preview is not None:
                content |= {"preview": preview, "yaml": self._starter.fleet_yaml(form), "copies": self._copies(form)}
        except AtollError as error:
            content["problem"] = ": ".join(part for part in (error.what, error.why or error.mend) if part)
        return content

    def _with_upload(self, form: RunForm) -> tuple[Upload, Sample, RunForm]:
        upload = self._uploads.find(form.upload)
        sample = sample_of(upload)
        return upload, sample, with_guesses(form, sample)

    def _copies(self, form: RunForm) -> list[Copy]:
        fleet = self._starter.command("tune", form.name).split()[2]
        return [
            Copy("CLI", self._starter.command("tune", form.name)),
            Copy("Python", f"import atoll\n\natoll.tune({fleet!r})"),
        ]


def _name_from(title: str) -> str:
    """A name for a run on a file of that title."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(title).stem.lower()).strip("-")[:40]
    if not name:
        return RunForm().name
    return name
