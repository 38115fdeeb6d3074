"""The same ask for other programs: as a curl command, as Python, and for the command line."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

KEY_VARIABLE = "ATOLL_KEY"
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")


@dataclass(frozen=True)
class Copy:
    """A text to copy, and what it is for."""

    label: str
    text: str


def address(request: Request) -> str:
    """The server's address as the browser knows it."""
    host = request.headers.get("host", "")
    scheme = "https" if "https" in (request.url.scheme, request.headers.get("x-forwarded-proto")) else "http"
    return f"{scheme}://{host if _HOST.fullmatch(host) else '127.0.0.1:3000'}"


def curl(url: str, body: dict[str, Any] | None, *, has_keys: bool) -> Copy:
    """A command for a shell; the key comes from the environment. Without a body it is a GET."""
    words = ["curl", "-sS", shlex.quote(url)]
    if has_keys:
        words += ["-H", f'"Authorization: Bearer ${KEY_VARIABLE}"']
    if body is not None:
        words += ["-H", "'Content-Type: application/json'", "-d", shlex.quote(json.dumps(body))]
    return Copy("curl", " ".join(words))


def python(url: str, body: dict[str, Any] | None, answer: str, *, has_keys: bool) -> Copy:
    """A program that needs nothing but Python. answer: the subscripts of what it prints, such as `["text"]`."""
    headers = ['"Content-Type": "application/json"'] if body is not None else []
    headers += [f'"Authorization": "Bearer " + os.environ["{KEY_VARIABLE}"]'] if has_keys else []
    lines = ["import json", *(["import os"] if has_keys else []), "import urllib.request", ""]
    lines += [f"url = {url!r}", f"headers = {{{', '.join(headers)}}}"]
    lines += [f"body = {body!r}", "data = json.dumps(body).encode()"] if body is not None else ["data = None"]
    lines += ["request = urllib.request.Request(url, data, headers)"]
    lines += ["with urllib.request.urlopen(request) as answer:", f"    print(json.load(answer){answer})"]
    return Copy("Python", "\n".join(lines))


def command(*words: str) -> Copy:
    """A command line of Atoll's own."""
    return Copy("CLI", " ".join(["atoll", *map(shlex.quote, words)]))
