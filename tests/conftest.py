"""Fixtures that all floors share."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Before any import that reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Servers of tests must not ask for the keys of whoever runs them: there is nothing at this path yet.
os.environ["ATOLL_DATABASE"] = str(Path(tempfile.gettempdir()) / f"atoll-tests-{os.getpid()}" / "atoll.db")
# Tiny matrices gain nothing from threads, and on busy cores their barriers cost ten times the arithmetic.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Read when Triton is first imported, which transformers does by the way.
os.environ.setdefault("TRITON_INTERPRET", str(int(not torch.cuda.is_available())))

from support.tiny import save_tiny_base

torch.set_num_threads(1)
atexit.register(shutil.rmtree, Path(os.environ["ATOLL_DATABASE"]).parent, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its tokenizer."""
    return save_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def loraland() -> Path:
    """The folder with the real LoRA Land data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("ATOLL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data" / "loraland"))
    if not folder.is_dir():
        pytest.skip(f"no LoRA Land data at {folder} (set ATOLL_TEST_DATA)")
    return folder
