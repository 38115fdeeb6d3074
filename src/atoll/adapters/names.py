"""Where the store is and what it names, without reading an adapter: shells ask this while somebody types."""

from __future__ import annotations

import os
from pathlib import Path


def default_store_root() -> Path:
    """$ATOLL_STORE, else `atoll/store` in the XDG data folder."""
    if root := os.environ.get("ATOLL_STORE"):
        return Path(root)
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data_home) / "atoll" / "store"


def stored_names(root: Path) -> list[str]:
    """All names in the store at `root`, sorted."""
    folder = root / "names"
    return sorted(path.stem for path in folder.glob("[!.]*.json")) if folder.is_dir() else []
