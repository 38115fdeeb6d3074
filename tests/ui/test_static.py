"""The page's own files: small, known, and nothing inline in any template."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import httpx2 as httpx
import pytest

import atoll.server.ui
from support.pages import ShownSite

UI = Path(atoll.server.ui.__file__).parent
MAX_PACKED_BYTES = 80 << 10
TEMPLATES = sorted((UI / "templates").glob("*.html"))


def test_vendored_files_are_those_that_the_list_names() -> None:
    text = (UI / "static" / "VENDORED.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$", text, flags=re.MULTILINE))
    assert listed.keys() == {"htmx.min.js", "uPlot.iife.min.js", "uPlot.min.css"}
    for name, digest in listed.items():
        assert hashlib.sha256((UI / "static" / name).read_bytes()).hexdigest() == digest, name


def test_all_files_together_are_small() -> None:
    packed = {path.name: len(gzip.compress(path.read_bytes(), 9)) for path in (UI / "static").iterdir()}
    assert sum(packed.values()) <= MAX_PACKED_BYTES, packed


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_has_code_or_style_of_its_own(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|hx-on|hx-vals=.js", text, flags=re.IGNORECASE)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
    assert "|safe" not in text.replace(" ", "")
    assert not re.search(r"""(?:src|href|action)=["']https?:""", text)


def test_files_are_kept_for_ever_at_an_address_that_their_content_makes(site: ShownSite) -> None:
    page = httpx.get(f"{site.url}/ui/try").text
    addresses = set(re.findall(r'(?:src|href)="(/ui/static/[^"]+)"', page))
    assert len(addresses) >= 4
    for address in addresses:
        answer = httpx.get(site.url + address)
        assert answer.status_code == 200
        assert answer.content == (UI / "static" / address.rpartition("/")[2]).read_bytes()
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
    address = addresses.pop()
    for other in (address.replace(address.split("/")[3], "0" * 16), address + "x", "/ui/static/x/..%2f__init__.py"):
        assert httpx.get(site.url + other).status_code in (404, 405), other


def test_a_client_that_cannot_unpack_gets_the_file_as_it_is(site: ShownSite) -> None:
    page = httpx.get(f"{site.url}/ui/try").text
    address = re.findall(r'"(/ui/static/[^"]+app\.css)"', page)[0]
    answer = httpx.get(site.url + address, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in answer.headers
    assert answer.content == (UI / "static" / "app.css").read_bytes()
