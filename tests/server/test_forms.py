"""Compiled constraints are kept, and never mixed up."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from atoll.server.forms import Constraints, JsonForm, PatternForm
from support.servers import Served


def test_kept_constraints_start_anew_and_are_not_mixed_up(served: Served) -> None:
    constraints = Constraints(served.engine.base)
    encode = served.engine.base.tokenizer.encode
    digit, letter = encode("1", add_special_tokens=False)[0], encode("a", add_special_tokens=False)[0]
    for _ in range(2):
        number, pattern = constraints.get(JsonForm({"type": "integer"})), constraints.get(PatternForm("a"))
        assert number.allowed(512)[digit]
        assert not number.allowed(512)[letter]
        assert pattern.allowed(512)[letter]
        assert not pattern.allowed(512)[digit]
        pattern.push(letter)
        assert pattern.is_complete


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
