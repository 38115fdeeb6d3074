"""One set-up of logging: lines for people or JSON lines for machines, on stderr, without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

_SECRETS = re.compile(
    r"""
    (?P<keep>
        \bbearer\s+                                                              # an HTTP header's value
      | \b(?:authorization|password|secret|(?:api|hf|access)[_-]?(?:key|token))["']?\s*[:=]\s*["']?(?:bearer\s+)?
      | ://                                                                      # user:password@host
    )
    (?: (?<=://) [^/\s:@]*:[^/\s@]+(?=@) | (?<!://) [^\s"',;]+ )
    | \b(?:hf_|sk-|ghp_|atoll-[0-9a-f]{12}-)[\w-]{12,}                       # tokens known by their form
    """,
    re.VERBOSE | re.IGNORECASE,
)
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Everything that can end a line or steer a terminal: a logged prompt must not forge lines.
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
_PLAIN = re.compile(r"[\w.,:;/@+*{}()<>-]+")


def get_logger(name: str) -> logging.Logger:
    """The logger of a module: pass `__name__`. Extra facts go in `extra={...}` and are printed after the message."""
    return logging.getLogger(name)


def setup_logging(
    level: int | str = "INFO",
    *,
    json_lines: bool = False,
    stream: TextIO | None = None,
    others: Sequence[str] = (),
) -> logging.Handler:
    """Send Atoll's log to `stream` (stderr unless given), replacing what an earlier call set up.

    others: loggers of libraries whose warnings are to come in the same form.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if json_lines else _HumanFormatter())
    logger = logging.getLogger("atoll")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper() if isinstance(level, str) else level)
    logger.propagate = False
    for name in others:
        other = logging.getLogger(name)
        other.handlers[:] = [handler]
        other.setLevel(logging.WARNING)
        other.propagate = False
    return handler


def redact(text: str) -> str:
    """`text` with passwords and access tokens replaced by `***`."""
    return _SECRETS.sub(lambda match: (match["keep"] or "") + "***", text)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}


def _shown(value: Any) -> str:
    """A fact whose text could be taken for more than one is quoted."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class _HumanFormatter(logging.Formatter):
    """`12:30:05 INFO server: message key=value`, then the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        facts = "".join(f" {key}={_shown(value)}" for key, value in _extra(record).items())
        origin = record.name.removeprefix("atoll.")
        line = f"{time} {record.levelname} {origin}: {record.getMessage()}{facts}".translate(_CONTROLS)
        if record.exc_info:
            # Each line is marked as part of this entry: an error's text may hold what somebody else wrote.
            lines = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n  | {part.translate(_CONTROLS)}" for part in lines)
        return redact(line)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the extra facts, and the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for key, value in _extra(record).items():
            # Objects become text first, so that a secret inside one is seen.
            entry[key] = value if isinstance(value, int | float | None) else redact(str(value))
        if record.exc_info:
            entry["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(entry)
