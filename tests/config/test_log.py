"""The log: one line an event, for people or machines, and no secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from atoll.log import get_logger, redact, setup_logging


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    logger = logging.getLogger("atoll")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def test_lines_for_people() -> None:
    stream = io.StringIO()
    setup_logging(stream=stream)
    logger = get_logger("atoll.engine.scheduler")
    logger.debug("not shown")
    logger.info("preempted %d", 2, extra={"num_free_blocks": 7})
    line = stream.getvalue()
    assert line.endswith(" INFO engine.scheduler: preempted 2 num_free_blocks=7\n")
    assert line.count("\n") == 1


def test_json_lines() -> None:
    stream = io.StringIO()
    setup_logging("debug", json_lines=True, stream=stream)
    get_logger("atoll.server").debug("done\nnext", extra={"num_tokens": 3, "adapter": "a@1"})
    entry = json.loads(stream.getvalue())
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "debug",
        "logger": "atoll.server",
        "message": "done\nnext",
        "num_tokens": 3,
        "adapter": "a@1",
    }
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("json_lines", [False, True])
def test_tracebacks_are_kept_and_redacted(json_lines: bool) -> None:
    stream = io.StringIO()
    setup_logging(json_lines=json_lines, stream=stream)
    try:
        raise RuntimeError("no access with hf_abcdefghijklmnopqrstuvwx")
    except RuntimeError:
        get_logger("atoll.model").exception("failed", extra={"url": "https://joe:pw@host/x"})
    assert "RuntimeError: no access with ***" in stream.getvalue()
    assert "https://***@host/x" in stream.getvalue()


def test_a_prompt_cannot_forge_a_line() -> None:
    stream = io.StringIO()
    setup_logging(stream=stream)
    get_logger("atoll.server").info("prompt %s", "x\n12:00:00 ERROR server: forged\x1b[2J\u2028")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
    assert "\u2028" not in stream.getvalue()


def test_a_fact_cannot_pass_for_two() -> None:
    stream = io.StringIO()
    setup_logging(stream=stream)
    get_logger("atoll.server").info("request", extra={"adapter": 'a status=200 "x', "route": "/v1/models/{id}"})
    assert stream.getvalue().endswith('request adapter="a status=200 \\"x" route=/v1/models/{id}\n')


def test_the_text_of_an_error_cannot_forge_a_line() -> None:
    stream = io.StringIO()
    setup_logging(stream=stream)
    try:
        raise ValueError("x\n12:00:00 INFO server: forged\r\x1b[2J")
    except ValueError:
        get_logger("atoll.server").exception("failed")
    first, *others = stream.getvalue().splitlines()
    assert first.endswith("failed")
    assert all(line.startswith("  | ") for line in others)
    assert "\x1b" not in stream.getvalue()


def test_libraries_warn_in_the_same_form() -> None:
    stream = io.StringIO()
    setup_logging(json_lines=True, stream=stream, others=("some_library",))
    logging.getLogger("some_library.part").info("not shown")
    logging.getLogger("some_library.part").warning("shown")
    assert json.loads(stream.getvalue())["logger"] == "some_library.part"


def test_setting_up_twice_logs_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    setup_logging(stream=first)
    setup_logging(stream=second)
    get_logger("atoll.x").warning("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("HF_TOKEN=hf_abcdefghijklmnopqrst", "HF_TOKEN=***"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("bearer abc", "bearer ***"),
        ("{'api_key': 'sk-1234567890abcdef'}", "{'api_key': '***'}"),
        ("password=x&y next", "password=*** next"),
        ("https://user:secret@host/path", "https://***@host/path"),
        ("sk-proj-ABCDEFGHIJ1234567890", "***"),
        ("key atoll-0123456789ab-AbC_-123456789012345 used", "key *** used"),
        ("https://host:8080/path of 12 tokens: 3", "https://host:8080/path of 12 tokens: 3"),
        ("max_new_tokens=64 token_budget=2048", "max_new_tokens=64 token_budget=2048"),
    ],
)
def test_redaction(text: str, redacted: str) -> None:
    assert redact(text) == redacted
