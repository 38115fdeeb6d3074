"""What `serve`, `run` and `ls` share: the store, the base model that its adapters want, and progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

DType = Literal["auto", "float32", "bfloat16"]

if TYPE_CHECKING:
    from atoll.adapters.store import AdapterStore, StoredAdapter
    from atoll.model.load import BaseModel


def open_store(root: Path | None) -> AdapterStore:
    """The store at `root`, or the user's own."""
    from atoll.adapters.store import AdapterStore, default_store_root

    return AdapterStore(root or default_store_root())


def load_base_for(adapters: Sequence[StoredAdapter], base_model: str | None, dtype: DType = "auto") -> BaseModel:
    """Load `base_model`; where None, the one that the adapters were trained on, quantised as it was then.

    Raises UsageError if they have several.
    """
    from atoll.config.fleet import QuantizationConfig
    from atoll.errors import UsageError
    from atoll.model.load import load_base
    from atoll.model.source import DEFAULT_BASE

    bases = {a.contract.base.digest: a.contract.base for a in adapters if a.contract is not None}
    wanted = {base.name: base for base in bases.values()}
    if base_model is None and len(wanted) > 1:
        names = ", ".join(sorted(wanted))
        raise UsageError(
            f"the adapters belong to several base models: {names}", mend=f"choose one: --base-model {min(wanted)}"
        )
    name = base_model or next(iter(wanted), DEFAULT_BASE)
    # The same model under another revision is a reason to warn, as its digest does, not to fill four times the memory.
    alike = [base for base in wanted.values() if base.name.partition("@")[0] == name.partition("@")[0]]
    bits = wanted.get(name, alike[0]).quantization_bits if alike else None
    return load_base(
        name,
        dtype=dtype,
        quantization=QuantizationConfig(bits=bits) if bits is not None else None,
        on_progress=Progress(),
    )


class Progress:
    """One line on stderr for each thing that is done; on a terminal with the share that is done."""

    def __init__(self) -> None:
        self._what = ""

    def __call__(self, what: str, fraction: float | None) -> None:
        if sys.stderr.isatty() and fraction is not None:
            end = "\n" if fraction >= 1 else ""
            print(f"\r{what}: {100 * fraction:3.0f} %", end=end, file=sys.stderr, flush=True)
        elif what != self._what:
            print(what, file=sys.stderr, flush=True)
        self._what = what
