"""Atoll's log, read by a test."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from atoll.log import setup_logging


@contextmanager
def captured_log(*, json_lines: bool = False) -> Iterator[io.StringIO]:
    """What is logged in the block, everything from DEBUG on, uvicorn's warnings too."""
    loggers = [logging.getLogger(name) for name in ("atoll", "uvicorn")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    stream = io.StringIO()
    setup_logging("DEBUG", json_lines=json_lines, stream=stream, others=("uvicorn",))
    try:
        yield stream
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate
