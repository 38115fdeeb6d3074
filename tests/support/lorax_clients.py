"""The two clients of LoRAX's dialect as they are published: LoRAX's own, and the copy that Predibase's package has."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClientLibrary:
    """What a program imports from one of them."""

    client: Any
    async_client: Any
    generation_error: type[Exception]
    validation_error: type[Exception]
    merged_adapters: Any


def lorax_library() -> ClientLibrary:
    """lorax-client."""
    from lorax import AsyncClient, Client
    from lorax.errors import GenerationError, ValidationError
    from lorax.types import MergedAdapters

    return ClientLibrary(Client, AsyncClient, GenerationError, ValidationError, MergedAdapters)


def predibase_library() -> ClientLibrary:
    """predibase. The package itself imports tensorboard, tritonclient and twenty others that its client has no use for,
    so it stands there empty; the client's own modules are the published ones."""
    if "predibase" not in sys.modules:
        spec = importlib.util.find_spec("predibase")
        assert spec is not None
        sys.modules["predibase"] = importlib.util.module_from_spec(spec)
    client, errors, types = (
        importlib.import_module(f"predibase.resources.lorax.{name}") for name in ("client", "errors", "types")
    )
    return ClientLibrary(
        client.LoraxClient,
        client.AsyncLoraxClient,
        errors.GenerationError,
        errors.ValidationError,
        types.MergedAdapters,
    )


LIBRARIES = {"lorax": lorax_library, "predibase": predibase_library}
