"""The gallery and the pages of adapters: what is shown, chosen and sorted, and what admins may do."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2 as httpx
import pytest
from playwright.sync_api import expect

from atoll.adapters.store import StoredAdapter
from atoll.server.adapter_use import AdapterUse
from atoll.server.caller import Caller, Scope
from atoll.server.ui.adapters_facts import read_facts
from support.browsing import Watched, serious_findings
from support.pages import ShownSite
from support.servers import wait_until

CARD = """\
---
model-index:
- name: support
  results:
  - metrics:
    - {type: accuracy, value: 0.913, args: {low: 0.88, high: 0.94}}
---
# support
"""
BAD_CARDS = [
    "---\nmodel-index: [[[\n---\n",
    "---\nmodel-index: 7\n---\n",
    "---\n- 1\n---\n",
    "---\nmodel-index: [{results: [{metrics: [{type: a, value: [1]}]}]}]\n---\n",
    "---\na: &a [*a]\nmodel-index: *a\n---\n",
    "no front matter",
    "\xff\x00",
]


def names(page: str) -> list[str]:
    return re.findall(r'<h2><a href="/ui/adapters/([^"]+)">', page)


def act(site: ShownSite, name: str, action: str) -> httpx.Response:
    token = re.findall(r'name="csrf" content="(\w+)"', httpx.get(f"{site.url}/ui/adapters").text)[0]
    return httpx.post(f"{site.url}/ui/admin/adapters/{name}/{action}", headers={"x-atoll-csrf": token})


def tier(site: ShownSite, name: str) -> str:
    page = httpx.get(f"{site.url}/ui/adapters/{name}").text
    return re.findall(r'<span class="tag \w+">([^<]+)</span>', page)[0]


def test_the_gallery_is_chosen_and_sorted_by_its_address(site: ShownSite) -> None:
    def shown(query: str) -> list[str]:
        return names(httpx.get(f"{site.url}/ui/adapters?{query}").text)

    assert shown("") == sorted(site.store.names())
    assert shown("q=customer%27s+queue") == ["support"]
    assert shown("category=knowledge") == ["glue_qnli"]
    assert shown("q=%3Cscript%3E") == []
    sizes = {name: site.store.resolve(name).size_bytes for name in site.store.names()}
    by_size = [sizes[name] for name in shown("sort=size")]
    assert by_size == sorted(sizes.values(), reverse=True)
    assert shown("sort=nonsense&page=0&tier=moon") == shown("")
    assert shown("page=2") == []


def test_scores_of_the_model_card_are_shown_with_the_published_ones(site: ShownSite) -> None:
    adapter = site.store.resolve("support")
    site.store.write_card(adapter, CARD)
    wait_until(lambda: "91.3" in httpx.get(f"{site.url}/ui/adapters").text)
    page = httpx.get(f"{site.url}/ui/adapters/support").text
    assert "88.0 to 94.0" in page
    assert names(httpx.get(f"{site.url}/ui/adapters?sort=score").text)[0] == "support"


@pytest.mark.parametrize("card", BAD_CARDS)
def test_a_damaged_card_costs_its_scores_and_nothing_else(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card, encoding="latin-1")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "target_modules": ["a.b", "c.b"]}')
    facts = read_facts(StoredAdapter("x", 1, "d", tmp_path, None))
    assert (facts.scores, facts.rank, facts.modules) == (None, 4, ("b",))


def test_admins_load_pin_unload_and_delete(site: ShownSite) -> None:
    assert act(site, "gamma", "pin").status_code == 303
    wait_until(lambda: tier(site, "gamma") == "device, pinned")
    act(site, "gamma", "unpin")
    assert tier(site, "gamma") == "device"
    act(site, "gamma", "pin")
    wait_until(lambda: tier(site, "gamma") == "device, pinned")
    act(site, "gamma", "unload")
    assert tier(site, "gamma") == "unloaded"
    assert not any(held.is_pinned for held in site.engine.adapters())
    body = {"inputs": "Hi", "parameters": {"adapter_id": "gamma", "max_new_tokens": 1}}
    assert httpx.post(f"{site.url}/generate", json=body).status_code == 424
    act(site, "gamma", "restore")
    assert httpx.post(f"{site.url}/generate", json=body).status_code == 200
    site.store.publish("doomed", site.world.adapters["beta"].folder)
    assert act(site, "doomed", "load").status_code == 303
    assert act(site, "doomed", "delete").status_code == 303
    assert "doomed" not in site.store.names()
    assert httpx.get(f"{site.url}/ui/adapters/doomed").status_code == 404
    assert act(site, "doomed", "delete").status_code == 404
    assert act(site, "gamma", "explode").status_code == 422
    assert "beta" in site.store.names()  # whose files were the same ones


def test_a_pin_is_shown_for_a_newer_revision_too_and_can_be_taken_away(site: ShownSite) -> None:
    site.store.publish("moving", site.world.adapters["alpha"].folder)
    act(site, "moving", "pin")
    wait_until(lambda: tier(site, "moving") == "device, pinned")
    site.store.publish("moving", site.world.adapters["beta"].folder)
    page = f"{site.url}/ui/adapters/moving"
    wait_until(lambda: "<dt>Revision</dt><dd>2</dd>" in httpx.get(page).text)
    assert tier(site, "moving").endswith(", pinned")
    act(site, "moving", "unpin")
    assert not any(held.is_pinned for held in site.engine.adapters())


def test_requests_and_last_use_are_counted(site: ShownSite) -> None:
    body = {"inputs": "Hi", "parameters": {"adapter_id": "delta", "max_new_tokens": 1}}
    httpx.post(f"{site.url}/generate", json=body)
    page = httpx.get(f"{site.url}/ui/adapters/delta").text
    assert re.search(r"<dt>Requests</dt><dd>[1-9]", page)
    assert re.search(r"<dt>Last use</dt><dd>(just now|\d+ s ago)", page)


def test_a_tenant_sees_its_own_requests_alone() -> None:
    use = AdapterUse()
    for tenant in ("mine", "theirs", "theirs"):
        use.note("shared@1", tenant)

    def num_requests(tenant: str, *scopes: Scope) -> int:
        return use.of("shared@1", Caller(tenant=tenant, scopes=frozenset(scopes))).num_requests

    assert [num_requests("mine", "use"), num_requests("theirs", "use"), num_requests("new", "use")] == [1, 2, 0]
    assert num_requests("mine", "use", "admin") == 3


def test_the_gallery_follows_what_one_types_and_deleting_asks(tab: Watched, site: ShownSite) -> None:
    site.store.publish("spare", site.world.adapters["beta"].folder)
    wait_until(lambda: "spare" in httpx.get(f"{site.url}/ui/adapters").text)  # the store is read every other second
    page = tab.goto("/ui/adapters")
    expect(page.locator("main a", has_text="spare")).to_be_visible()
    page.get_by_label("Search adapters").fill("spa")
    expect(page.locator(".gallery li")).to_have_count(1)
    assert "q=spa" in page.url
    page.get_by_role("link", name="spare", exact=True).click()
    assert serious_findings(page) == []
    delete = page.get_by_role("button", name="Delete spare")
    expect(delete).to_be_hidden()
    page.get_by_text("Delete …").click()
    delete.click()
    page.wait_for_url("**/ui/adapters")
    assert "spare" not in site.store.names()
