"""The HTTP application: LoRAX's and OpenAI's dialect over one engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.responses import JSONResponse, PlainTextResponse, Response

from atoll import __version__
from atoll.adapters.catalog import AdapterCatalog
from atoll.server.access import Access, Lifecycle
from atoll.server.body_limit import BodyLimit
from atoll.server.body_routes import BodyRoutes
from atoll.server.docs_page import docs_router
from atoll.server.errors import install_error_handlers
from atoll.server.gateway import Gateway, RequestEngine
from atoll.server.keys.accounts import Accounts
from atoll.server.keys.guard import Guard
from atoll.server.keys.hosts import HostRule
from atoll.server.lorax import Lorax
from atoll.server.metrics import ServerMetrics
from atoll.server.openai import OpenAI
from atoll.server.openai_adapters import AdapterLoading
from atoll.server.openai_responses import Responses
from atoll.server.operations import Operations
from atoll.server.settings import ServerSettings
from atoll.server.tracing import TraceRequests, Tracing
from atoll.server.ui.door import Door
from atoll.server.ui.site import UiSettings
from atoll.server.ui.wiring import ui_routers

if TYPE_CHECKING:
    from atoll.model.load import BaseModel

_UNWELL: dict[int | str, dict[str, Any]] = {503: {"description": "It does not run, or is stopping."}}
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(
    engine: RequestEngine,
    base: BaseModel,
    catalog: AdapterCatalog,
    *,
    settings: ServerSettings | None = None,
    accounts: Accounts | None = None,
    hosts: HostRule | None = None,
    lifecycle: Lifecycle | None = None,
    tracing: Tracing | None = None,
    ui: UiSettings | None = None,
) -> FastAPI:
    """The application over a started engine, which the caller starts and closes, as it does `accounts` and `tracing`.

    Without accounts nobody needs a key, and only the names in `hosts` are answered to: this machine's, unless given.
    ui: of the web page, which is not there unless given.
    """
    settings = settings or ServerSettings()
    lifecycle = lifecycle or Lifecycle()
    metrics = ServerMetrics(engine.stats, settings.max_metric_adapters)
    gateway = Gateway(engine, base, catalog, settings, metrics, accounts)
    # FastAPI's own pages would load their code from elsewhere, and its telemetry tells what bodies hold.
    own: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
    app = FastAPI(title="Atoll", version=__version__, docs_url=None, redoc_url=None, telemetry=own)
    dialects = [dialect(gateway).router for dialect in (Lorax, OpenAI, Responses, AdapterLoading)]
    for router in dialects:
        app.include_router(router)
    app.include_router(_operation(engine, metrics, lifecycle))
    app.include_router(Operations(engine, base).router)
    app.include_router(docs_router())
    door = None if ui is None else Door()
    if ui is not None and door is not None:
        for router in ui_routers(ui, door, gateway, engine, metrics, accounts):
            app.include_router(router)
    install_error_handlers(app)
    # The last one added is the first that a request meets.
    app.add_middleware(BodyRoutes, routers=dialects)
    app.add_middleware(BodyLimit, settings=settings)
    if tracing is not None:
        app.add_middleware(TraceRequests, tracing=tracing)
    app.add_middleware(
        Guard, accounts=accounts, hosts=hosts or HostRule(), settings=settings, on_refused=metrics.refused, door=door
    )
    app.add_middleware(Access, lifecycle=lifecycle)
    return app


def _operation(engine: RequestEngine, metrics: ServerMetrics, lifecycle: Lifecycle) -> APIRouter:
    """What those ask who run the server."""
    router = APIRouter(tags=["Operation"])

    @router.get("/health", responses=_UNWELL, summary="Whether the engine runs")
    async def health() -> Response:
        return _health(engine.is_alive)

    @router.get("/health/live", summary="Whether the process answers; if not, start it again")
    async def live() -> Response:
        return _health(True)

    @router.get(
        "/health/ready",
        responses=_UNWELL,
        summary="Whether to send requests: the engine runs, and the server is not stopping",
    )
    async def ready() -> Response:
        return _health(engine.is_alive and not lifecycle.is_draining)

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        return Response(metrics.render(), media_type=METRICS_TYPE)

    return router


def _health(is_well: bool) -> Response:
    if is_well:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"error": "unhealthy", "error_type": "healthcheck"}, status_code=503)
