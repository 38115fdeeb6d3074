"""Compiled constraints are kept, and never mixed up."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from atoll.adapters.catalog import AdapterCatalog
from atoll.server.caller import Caller
from atoll.server.forms import Constraints, JsonForm, PatternForm
from atoll.server.prepare import Ask, Preparer
from atoll.server.settings import ServerSettings
from atoll.text.constraint import ConstraintCompiler, TokenConstraint
from support.servers import Served


def test_kept_constraints_start_anew_and_are_not_mixed_up(served: Served) -> None:
    constraints = Constraints(served.engine.base)
    encode = served.engine.base.tokenizer.encode
    digit, letter = encode("1", add_special_tokens=False)[0], encode("a", add_special_tokens=False)[0]
    for _ in range(2):
        number, pattern = constraints.get(JsonForm({"type": "integer"}), ""), constraints.get(PatternForm("a"), "")
        assert number.allowed(512)[digit]
        assert not number.allowed(512)[letter]
        assert pattern.allowed(512)[letter]
        assert not pattern.allowed(512)[digit]
        pattern.push(letter)
        assert pattern.is_complete


def test_a_tenant_pays_for_its_own_forms(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time of an answer would tell whether somebody else has just used the same schema."""
    compiled: list[str] = []
    regex = ConstraintCompiler.regex

    def counted(self: ConstraintCompiler, pattern: str) -> TokenConstraint:
        compiled.append(pattern)
        return regex(self, pattern)

    monkeypatch.setattr(ConstraintCompiler, "regex", counted)
    settings = ServerSettings()
    preparer = Preparer(served.engine.base, AdapterCatalog(served.store), settings, max_length=512, max_rank=8)
    for tenant, num_compiled in (("a", 1), ("a", 1), ("b", 2), ("a", 2), ("b", 2)):
        ask = Ask(prompt="x", form=PatternForm("[ab]{3}"), default_temperature=0.0)
        assert preparer.prepare(ask, Caller(tenant=tenant)).constraint is not None
        assert len(compiled) == num_compiled, tenant


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_a_bottomless_schema_harms_nobody(served: Served, path: str) -> None:
    schema = '{"type":"array","items":' * 3000 + "{}" + "}" * 3000
    form = {
        "/generate": '{"inputs": "a", "parameters": {"response_format": {"type": "json_object", "schema": %s}}}',
        "/v1/chat/completions": '{"messages": [{"role": "user", "content": "a"}], "response_format": '
        '{"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}}',
    }
    response = httpx.post(
        served.url + path, content=form[path] % schema, headers={"content-type": "application/json"}, timeout=60
    )
    assert response.status_code in (400, 422), response.text[:300]
