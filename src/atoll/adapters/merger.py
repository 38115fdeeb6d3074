"""Mixes of stored adapters, made once and kept: a mix is an adapter like any other, with a folder and a digest."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock

from atoll.adapters.cache import AdapterCache, Kept
from atoll.adapters.merge import Merged, Recipe, merge, write_merged
from atoll.adapters.peft_files import reading
from atoll.adapters.peft_io import AdapterWeights, read_adapter
from atoll.adapters.store import StoredAdapter
from atoll.errors import Overloaded, RequestInvalid
from atoll.kernels.openmp import in_passing_thread, use_one_thread
from atoll.log import get_logger

logger = get_logger(__name__)

MERGED_PREFIX = "merged:"
"""How the names of mixes begin; no adapter in a store has such a name."""
MERGED_LABEL = "merged"
"""Stands for all mixes where figures are kept for each name: every other weight makes another mix."""
MAX_SOURCE_BYTES = 2 << 30
WAIT_S = 30.0
# Another way to compute a mix must not find what this one has kept.
_FORMAT = 1


class Merger:
    """Mixes adapters for one engine, one mix at a time on one core; any thread may call it.

    max_rank: the largest rank that the engine's slots hold. max_seconds: of one mix. Whoever calls has made sure that
    the sources may be used.
    """

    def __init__(
        self, cache: AdapterCache, *, max_rank: int, max_seconds: float, base_model: str, base_digest: str
    ) -> None:
        self._cache = cache
        self._max_rank = max_rank
        self._max_seconds = max_seconds
        self._base_model = base_model
        self._base_digest = base_digest
        self._turn = Lock()

    def merge(self, sources: Sequence[StoredAdapter], recipe: Recipe) -> StoredAdapter:
        """The mix, from the cache or made now. Raises RequestInvalid, AdapterInvalid, and Overloaded after WAIT_S."""
        for source in sources:
            source.check_base(self._base_digest)  # the mix has no contract that would tell later
        key = self._key(sources, recipe)
        if (kept := self._cache.find(key)) is not None:
            return _stored(key, kept)
        if sum(source.size_bytes for source in sources) > MAX_SOURCE_BYTES:
            raise RequestInvalid(
                f"these adapters have more than {MAX_SOURCE_BYTES >> 20} MiB together",
                where="merged_adapters",
                mend="mix fewer or smaller ones",
            )
        if not self._turn.acquire(timeout=WAIT_S):
            raise Overloaded("other adapters are being mixed", mend="try again in a minute")
        try:
            kept = self._cache.find(key)
            return _stored(key, kept or self._cache.add(key, lambda folder: self._make(folder, key, sources, recipe)))
        finally:
            self._turn.release()

    def _key(self, sources: Sequence[StoredAdapter], recipe: Recipe) -> str:
        content = [_FORMAT, [source.digest for source in sources], asdict(recipe), self._max_rank]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @in_passing_thread
    def _make(self, folder: Path, key: str, sources: Sequence[StoredAdapter], recipe: Recipe) -> None:
        use_one_thread()
        started_at_s = time.monotonic()
        weights = [_read(source) for source in sources]
        deadline_s = started_at_s + self._max_seconds
        merged = merge(weights, recipe, max_rank=self._max_rank, seed=key.encode(), deadline_s=deadline_s)
        card = _card(sources, recipe, merged, self._base_model)
        write_merged(folder, merged, base_model=self._base_model, card=card)
        facts = {"relative_error": merged.relative_error, "seconds": round(time.monotonic() - started_at_s, 2)}
        logger.info("mixed %d adapters by %s", len(sources), recipe.strategy, extra=facts)


def _read(source: StoredAdapter) -> AdapterWeights:
    with reading(source.folder):
        return read_adapter(source.folder, verify=source.verify)


def _stored(key: str, kept: Kept) -> StoredAdapter:
    return StoredAdapter(f"{MERGED_PREFIX}{key[:12]}", 0, kept.digest, kept.folder, None)


def _card(sources: Sequence[StoredAdapter], recipe: Recipe, merged: Merged, base_model: str) -> str:
    """Sources stand there by digest: their names may be those of a tenant, and the cache is everybody's."""
    rows = "".join(f"| `{s.digest}` | {w:g} |\n" for s, w in zip(sources, recipe.weights, strict=True))
    density = "" if recipe.strategy == "linear" else f", density {recipe.density:g}"
    signs = f", signs by {recipe.sign_method}" if recipe.strategy.endswith("ties") else ""
    return (
        "---\n"
        f"base_model: {json.dumps(base_model)}\nlibrary_name: peft\ntags: [lora, merge]\n"
        "---\n\n# A mix of adapters\n\n"
        f"Made by {recipe.strategy}{density}{signs}, on the products B A. Largest rank: {merged.max_rank}. "
        f"Relative error of the factors against the exact mix: {merged.relative_error:.3g}.\n\n"
        f"| source | weight |\n| --- | --- |\n{rows}"
    )
