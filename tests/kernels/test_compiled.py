"""What numba has compiled is kept, and not used any more once a source has changed."""

from __future__ import annotations

from pathlib import Path

import torch
from numba import config

from atoll.kernels.cpu import CACHE_FOLDER, cache_folder
from atoll.kernels.cpu.fused import rms_norm


def test_every_change_of_a_source_leads_to_another_folder(tmp_path: Path) -> None:
    sources, above = tmp_path / "sources", tmp_path / "kept"
    sources.mkdir()
    (sources / "a.py").write_text("x = 1")
    (sources / "b.py").write_text("y = 1")
    first = cache_folder(above, sources)
    assert first.parent == above
    assert cache_folder(above, sources) == first
    (sources / "notes.txt").write_text("nothing that is compiled")
    assert cache_folder(above, sources) == first
    (sources / "b.py").write_text("y = 2")
    second = cache_folder(above, sources)
    (sources / "b.py").rename(sources / "c.py")
    assert len({first, second, cache_folder(above, sources)}) == 3


def test_kernels_are_kept_there() -> None:
    assert str(CACHE_FOLDER) == config.CACHE_DIR
    x = torch.ones(1, 6)
    rms_norm(x, x[0], 1e-5)
    assert list(CACHE_FOLDER.rglob("fused.rms_norm_kernel*.nbc"))
