"""vLLM's routes to add adapters to a running server and to take them away."""

from __future__ import annotations

from functools import partial

import anyio
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from atoll.adapters.store import StoredAdapter
from atoll.errors import AdapterInvalid, AdapterNotFound, Forbidden, UsageError
from atoll.log import get_logger
from atoll.server.caller import Caller, caller_of
from atoll.server.gateway import Gateway
from atoll.server.openai_bodies import LoadAdapterBody, UnloadAdapterBody
from atoll.server.openai_schema import TEXT_ANSWERS
from atoll.server.sources import local_name

logger = get_logger(__name__)

# Reading and hashing adapters takes a while; requests that wait for their prompts have threads of their own.
_NUM_LOADING = 1


class AdapterLoading:
    """The routes over one gateway; they need the scope admin."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._limiter = anyio.CapacityLimiter(_NUM_LOADING)
        self.router = router = APIRouter(prefix="/v1", tags=["OpenAI"])
        router.post("/load_lora_adapter", summary="Add an adapter from the server's disk", responses=TEXT_ANSWERS)(
            self.load
        )
        router.post("/unload_lora_adapter", summary="Know an adapter no more", responses=TEXT_ANSWERS)(self.unload)

    async def load(self, body: LoadAdapterBody, request: Request) -> PlainTextResponse:
        """Stores the PEFT folder as the next revision of the name; the same content again changes nothing."""
        caller = _admin(request)
        adapter = await anyio.to_thread.run_sync(partial(self._load, body, caller), limiter=self._limiter)
        logger.info("adapter %s is loaded", adapter.id)
        return PlainTextResponse(f"Success: LoRA adapter '{adapter.name}' added successfully.")

    async def unload(self, body: UnloadAdapterBody, request: Request) -> PlainTextResponse:
        """The name is unknown until it is loaded again or the server starts anew; what is stored stays."""
        caller = _admin(request)
        await anyio.to_thread.run_sync(partial(self._unload, body, caller), limiter=self._limiter)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def _load(self, body: LoadAdapterBody, caller: Caller) -> StoredAdapter:
        catalog, base = self._gateway.catalog, self._gateway.base
        if not caller.may_use(body.lora_name):
            raise Forbidden(f"the key may not use the name {body.lora_name[:80]!r}")
        if not caller.may_use(local_name(body.lora_path)):
            raise AdapterNotFound(f"no adapter {body.lora_path[:80]!r}")
        if not body.load_inplace and any(adapter.name == body.lora_name for adapter in catalog.list()):
            mend = "choose another name, or leave load_inplace out"
            raise UsageError(f"there is an adapter {body.lora_name!r} already", mend=mend)
        contract = catalog.resolve(body.lora_path, "local").contract
        if contract is not None and contract.base.digest != base.digest:
            raise AdapterInvalid(
                f"the adapter was trained on {contract.base.name}, this server runs {base.name}",
                mend="load it into a server with its own base model",
            )
        return catalog.load(body.lora_name, body.lora_path)

    def _unload(self, body: UnloadAdapterBody, caller: Caller) -> None:
        name = body.lora_name.partition("@")[0]
        if not caller.may_use(name):
            raise AdapterNotFound(f"no adapter {name[:80]!r}")
        self._gateway.unload(name)


def _admin(request: Request) -> Caller:
    caller = caller_of(request)
    if "admin" not in caller.scopes:
        raise Forbidden("this needs the scope admin", mend="use a key with the scope admin")
    return caller
