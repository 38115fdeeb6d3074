"""What one server allows; every limit exists so that no request can harm the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits of one server.

    max_open_requests: accepted and not yet answered; one more is told to come back later. max_unread_events: tokens
    that a streaming client may leave unread before it is cut off. max_metric_adapters: adapters that get metric labels
    of their own; the rest share the label `other`.
    """

    max_open_requests: int = 256
    max_body_bytes: int = 2 << 20
    max_stop_strings: int = 16
    max_stop_chars: int = 256
    max_unread_events: int = 1024
    max_metric_adapters: int = 64
