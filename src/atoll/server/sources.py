"""Where a request's adapter comes from: the store, a folder, a hub, S3, or a mix of those."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from atoll.adapters.addresses import HostRules
from atoll.adapters.cache import AdapterCache
from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.hub import Hub
from atoll.adapters.merge import Recipe
from atoll.adapters.merger import Merger
from atoll.adapters.remote import RemoteAdapters
from atoll.adapters.source import Source
from atoll.adapters.store import StoredAdapter
from atoll.errors import AdapterNotFound, RequestInvalid, UsageError
from atoll.model.cache import cache_root
from atoll.server.caller import Caller
from atoll.server.merge_ask import MergeAsk
from atoll.server.settings import ServerSettings

if TYPE_CHECKING:
    from atoll.model.load import BaseModel

_IN_STORE_OR_FOLDER = (None, "", "store", "local")


class AdapterSources:
    """Every way to an adapter, and whether a caller may go it; any thread may use it.

    max_rank: the largest rank that the engine's slots hold. Raises UsageError for settings that do not go together.
    """

    def __init__(self, catalog: AdapterCatalog, settings: ServerSettings, *, max_rank: int, base: BaseModel) -> None:
        self._catalog = catalog
        root = settings.adapter_cache or cache_root() / "adapters"
        cache = AdapterCache(root / "merged", settings.max_adapter_cache_bytes)
        self._merger = Merger(
            cache,
            max_rank=max_rank,
            max_seconds=settings.merge_timeout_s,
            base_model=base.name,
            base_digest=base.digest,
        )
        self._remote = RemoteAdapters(
            _sources(settings),
            AdapterCache(root / "remote", settings.max_adapter_cache_bytes),
            max_bytes=settings.max_adapter_bytes,
            max_seconds=settings.download_timeout_s,
        )

    @staticmethod
    def is_slow(source: str | None, merge: MergeAsk | None) -> bool:
        """Whether finding the adapter may mean a download or a computation."""
        return merge is not None or source not in _IN_STORE_OR_FOLDER

    def adapter(self, adapter_id: str, source: str | None, caller: Caller, token: str | None) -> StoredAdapter:
        """Raises AdapterNotFound, also for adapters that are not the caller's, and what remote sources raise.

        A key's patterns see an adapter of a remote source as `source:id`, and a folder as `local:path`.
        """
        name = adapter_id.partition("@")[0]
        if source not in _IN_STORE_OR_FOLDER:
            if not caller.may_use(f"{source}:{name}"):
                raise _not_found(adapter_id)
            return self._remote.resolve(str(source), adapter_id, tenant=caller.tenant, token=token)
        seen_as = name
        if source == "local":
            seen_as = local_name(adapter_id)
            adapter_id = seen_as.partition(":")[2]
        if not caller.may_use(seen_as):
            raise _not_found(adapter_id)
        try:
            return self._catalog.resolve(adapter_id, source or None)
        except UsageError as error:  # no name that an adapter could have, so there is none
            raise AdapterNotFound(error.what, mend=error.mend) from error
        except AdapterNotFound:
            # It may name adapters that are like this one, and somebody else's.
            if caller.adapters == ("*",):
                raise
            raise _not_found(adapter_id) from None

    def merged(self, ask: MergeAsk, source: str | None, caller: Caller, token: str | None) -> StoredAdapter:
        """A mix of adapters, each of which the caller may use. Raises RequestInvalid, and as `adapter` does."""
        weights = ask.weights or (1.0,) * len(ask.ids)
        if len(weights) != len(ask.ids):
            raise RequestInvalid(
                f"there are {len(ask.ids)} adapters and {len(weights)} weights", where="merged_adapters"
            )
        recipe = Recipe(
            weights=weights, strategy=ask.strategy, density=ask.density, sign_method=ask.majority_sign_method
        )
        sources = [self.adapter(adapter_id, source, caller, token) for adapter_id in ask.ids]
        return self._merger.merge(sources, recipe)


def _sources(settings: ServerSettings) -> dict[str, Source]:
    rules = HostRules(
        hosts=settings.adapter_hosts,
        private_hosts=settings.private_adapter_hosts,
        timeout_s=min(settings.download_timeout_s, HostRules.timeout_s),
    )
    sources: dict[str, Source] = {}
    for name in settings.remote_sources:
        if name == "hub":
            sources[name] = Hub(settings.hub_endpoint, rules)
        elif name == "s3":
            from atoll.adapters.s3 import S3  # s3fs takes a second to import

            sources[name] = S3(settings.adapter_buckets, rules, endpoint=settings.s3_endpoint)
        else:
            raise UsageError(f"there is no adapter source {name!r}", mend="there are hub and s3")
    return sources


def local_name(path: str) -> str:
    """How patterns see a folder, whichever way its path is spelled: one folder is one adapter in what is counted.

    Raises AdapterNotFound for a path that leads elsewhere than it seems to.
    """
    if ".." in path.split("/"):
        raise _not_found(path)
    return f"local:{posixpath.normpath(path) if path else path}"


def _not_found(adapter_id: str) -> AdapterNotFound:
    return AdapterNotFound(f"no adapter {adapter_id[:80]!r}", mend="see GET /v1/models for those that there are")
