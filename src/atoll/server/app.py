"""The HTTP application: LoRAX's and OpenAI's dialect over one engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from atoll import __version__
from atoll.adapters.catalog import AdapterCatalog
from atoll.server.body_limit import BodyLimit
from atoll.server.errors import install_error_handlers
from atoll.server.gateway import Gateway, RequestEngine
from atoll.server.lorax import Lorax
from atoll.server.metrics import ServerMetrics
from atoll.server.openai import OpenAI
from atoll.server.settings import ServerSettings

if TYPE_CHECKING:
    from atoll.model.load import BaseModel

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(
    engine: RequestEngine,
    base: BaseModel,
    catalog: AdapterCatalog,
    *,
    settings: ServerSettings | None = None,
) -> FastAPI:
    """The application over a started engine, which the caller starts and closes."""
    settings = settings or ServerSettings()
    metrics = ServerMetrics(engine.stats, settings.max_metric_adapters)
    gateway = Gateway(engine, base, catalog, settings, metrics)
    # The pages under /docs would load their code from elsewhere.
    app = FastAPI(title="Atoll", version=__version__, docs_url=None, redoc_url=None)
    app.include_router(Lorax(gateway).router)
    app.include_router(OpenAI(gateway).router)

    @app.get("/health", tags=["Operation"], summary="Whether the engine runs")
    async def health() -> Response:
        if engine.is_alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"error": "unhealthy", "error_type": "healthcheck"}, status_code=503)

    @app.get("/metrics", tags=["Operation"], summary="Prometheus metrics")
    async def show_metrics() -> Response:
        return Response(metrics.render(), media_type=METRICS_TYPE)

    install_error_handlers(app)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes)
    return app
