"""GET /docs: the OpenAPI schema as a page to read, made here: nothing is loaded from elsewhere, and no script runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastapi import APIRouter
from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}
_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}: the API</title>
<style>
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0 }
code { font-size: .95em } summary { cursor: pointer; padding: .2rem 0 }
</style>
<h1>{{ title }} {{ version }}</h1>
<p>For programs: <a href="/openapi.json">/openapi.json</a>.</p>
{% for tag, operations in groups.items() %}
<h2>{{ tag }}</h2>
{% for operation in operations %}
<details>
<summary><code>{{ operation.method }} {{ operation.path }}</code> {{ operation.summary }}</summary>
<p>{{ operation.description }}</p>
{% if operation.fields %}
<table><tr><th>field</th><th>type</th><th></th></tr>
{% for field in operation.fields %}
<tr><td><code>{{ field.name }}</code></td><td>{{ field.kind }}</td><td>{{ field.text }}</td></tr>
{% endfor %}
</table>
{% endif %}
</details>
{% endfor %}
{% endfor %}
</html>
"""
)


class Field(NamedTuple):
    """One field of a body; those of an object inside have its name before theirs."""

    name: str
    kind: str
    text: str


class Operation(NamedTuple):
    """One address with one method."""

    method: str
    path: str
    summary: str
    description: str
    fields: list[Field]


def docs_router() -> APIRouter:
    """The page's route; it shows the application that it is included in."""
    router = APIRouter()

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        schema: dict[str, Any] = request.app.openapi()
        info = schema["info"]
        page = _PAGE.render(title=info["title"], version=info["version"], groups=grouped_operations(schema))
        return HTMLResponse(page, headers=_HEADERS)

    return router


def grouped_operations(schema: dict[str, Any]) -> dict[str, list[Operation]]:
    """The operations of an OpenAPI schema by tag, in its order."""
    groups: dict[str, list[Operation]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            shown = Operation(
                method.upper(),
                path,
                operation.get("summary", ""),
                operation.get("description", ""),
                list(_fields(body, schema["components"]["schemas"], "")),
            )
            groups.setdefault(operation.get("tags", ["Other"])[0], []).append(shown)
    return groups


def _fields(body: dict[str, Any], components: dict[str, Any], before: str) -> Iterator[Field]:
    """The fields of a body, and one level of those inside of it."""
    for name, field in _resolved(body, components).get("properties", {}).items():
        yield Field(before + name, _kind(field), field.get("description", ""))
        if not before:
            yield from _fields(field, components, f"{name}.")


def _resolved(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for; of alternatives the first that is an object."""
    if reference := schema.get("$ref"):
        return _resolved(components[reference.rpartition("/")[2]], components)
    for option in schema.get("anyOf", []):
        if "properties" in (found := _resolved(option, components)):
            return found
    return schema


def _kind(field: dict[str, Any]) -> str:
    if reference := field.get("$ref"):
        return str(reference.rpartition("/")[2])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(option) for option in field["anyOf"]))
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    return str(field.get("const", field.get("type", "any")))
