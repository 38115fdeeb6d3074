"""What the server does at this moment, as JSON: for `atoll ps` and whoever runs the server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request

from atoll import __version__
from atoll.errors import Forbidden
from atoll.server.caller import caller_of
from atoll.server.engine_metrics import kv_use

if TYPE_CHECKING:
    from atoll.adapters.tiers import TieredAdapter
    from atoll.engine import EngineStats
    from atoll.model.load import BaseModel
    from atoll.server.gateway import RequestEngine

STATE_PATH = "/atoll/state"


class Operations:
    """The route over one engine; it needs the scope admin, as it shows the adapters of all tenants."""

    def __init__(self, engine: RequestEngine, base: BaseModel) -> None:
        self._engine = engine
        self._base = base
        self._started_at_s = time.monotonic()
        self.router = APIRouter(tags=["Operation"])
        self.router.get(STATE_PATH, summary="Requests, KV blocks and adapters at this moment")(self.state)

    async def state(self, request: Request) -> dict[str, Any]:
        """Counts are since the start of the server."""
        if "admin" not in caller_of(request).scopes:
            raise Forbidden("this address needs a key with the scope admin")
        stats = self._engine.stats()
        return {
            "version": __version__,
            "base_model": self._base.name,
            "uptime_s": round(time.monotonic() - self._started_at_s, 3),
            "is_alive": self._engine.is_alive,
            "requests": _requests(stats),
            "kv": _kv(stats),
            "tokens": {"computed": stats.num_computed_tokens, "generated": stats.num_generated_tokens},
            "tiers": _tiers(stats),
            "adapters": [_adapter(held, stats) for held in self._engine.adapters()],
        }


def _requests(stats: EngineStats) -> dict[str, Any]:
    return {
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "finished": stats.num_finished,
        "failed": stats.num_failed,
        "preemptions": stats.num_preemptions,
        "running_by_adapter": stats.running_by_adapter,
        "waiting_by_adapter": stats.waiting_by_adapter,
    }


def _kv(stats: EngineStats) -> dict[str, Any]:
    return {
        "blocks": stats.num_blocks,
        "free": stats.num_free_blocks,
        "cached": stats.num_cached_blocks,
        "use_ratio": kv_use(stats),
        "prefix_tokens": stats.num_prefix_tokens,
        "prefix_tokens_found": stats.num_prefix_tokens_found,
    }


def _tiers(stats: EngineStats) -> dict[str, Any]:
    tiers = stats.tiers
    return {
        "slots": stats.num_slots,
        "max_rank": stats.max_rank,
        "host_bytes": tiers.host_bytes,
        "max_host_bytes": tiers.max_host_bytes,
        "loading": tiers.num_loading,
        "loads": tiers.num_loads,
        "reads": tiers.num_reads,
        "load_failures": tiers.num_failures,
        "slot_evictions": tiers.num_slot_evictions,
        "host_evictions": tiers.num_host_evictions,
    }


def _adapter(held: TieredAdapter, stats: EngineStats) -> dict[str, Any]:
    name = held.adapter.name
    return {
        "id": held.adapter.id,
        "name": name,
        "digest": held.adapter.digest,
        "tier": held.tier,
        "pinned": held.is_pinned,
        "running": held.num_users,
        "waiting": stats.waiting_by_adapter.get(name, 0),
    }
