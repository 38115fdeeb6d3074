"""The documentation site builds, its links lead somewhere, and a reader's browser fetches nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import atoll

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']([^"']+)|<link\b[^>]*\bhref=["']([^"']+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # A link that leads nowhere, an anchor that is not there or a page that no menu has is an error with --strict.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert written <= {path.relative_to(site) for path in site.rglob("*.html")}


def test_made_pages_hold_what_the_code_says(site: Path) -> None:
    files = (site / "reference" / "files.html").read_text()
    assert "max_grad_norm" in files
    assert "The most tokens in one epoch" in files
    http = (site / "reference" / "http.html").read_text()
    assert "POST /generate_stream" in http
    assert "/v1/chat/completions" in http
    python = (site / "reference" / "python.html").read_text()
    assert all(f'id="{name.lower()}"' in python for name in atoll.__all__ if name != "__version__")
    assert 'id="evaltableto_pandas"' in python


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        fetched = [a or b for a, b in FETCHED.findall(page.read_text())]
        assert fetched, page
        assert not [address for address in fetched if "//" in address], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", style.read_text()), style


def test_tested_clients_have_the_versions_of_the_locks_and_tests_that_use_them() -> None:
    locked = (ROOT / "requirements.lock").read_text() + (ROOT / "tests/server/npm/package.json").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` ([0-9.]+).*\| (`test_.*`) \|$", (ROOT / "docs/openai-api.md").read_text(), re.M)
    assert len(rows) == 6
    for name, version, tests in rows:
        assert f"\n{name}=={version} " in locked or f'"{name}": "{version}"' in locked, name
        text = "".join((ROOT / "tests/server" / test.strip("`")).read_text() for test in tests.split(", "))
        assert name.split("-")[0] in text
