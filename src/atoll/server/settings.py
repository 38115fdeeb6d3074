"""What one server allows; every limit exists so that no request can harm the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits of one server.

    max_open_requests: accepted and not yet answered, of all tenants together; one more is told to come back later. With
    keys each tenant has a share of it (server.open_requests). max_unread_events: tokens that a streaming client may
    leave unread before it is cut off. max_metric_adapters: adapters that get metric labels of their own; the rest share
    the label `other`. max_best_of: completions that one request may choose from. max_choices, max_prompts: answers to
    one prompt, and answers or vectors in all, that one OpenAI request may ask for.
    max_header_bytes, max_headers, head_timeout_s: of a request's head. body_timeout_s: how long its body may take.
    max_connections: open ones, idle ones too. unread_timeout_s: how long a client may read nothing of its answer.
    remote_sources: where adapters may be downloaded from, "hub" and "s3"; nowhere unless given. adapter_hosts: names or
    patterns of hosts that a hub may be at or redirect to; private_adapter_hosts: exact names of hosts that may have
    private addresses and speak plain HTTP. adapter_buckets: `bucket` or `bucket/prefix` of s3. s3_endpoint: the address
    of the service, Amazon's unless given. max_adapter_bytes, download_timeout_s: of one download. merge_timeout_s: of
    one mix of adapters. adapter_cache: the folder for downloads and mixes, by default in the user's cache;
    max_adapter_cache_bytes: of each of the two.
    """

    max_open_requests: int = 256
    max_body_bytes: int = 2 << 20
    body_timeout_s: float = 30.0
    max_header_bytes: int = 32 << 10
    max_headers: int = 100
    head_timeout_s: float = 10.0
    max_connections: int = 2048
    unread_timeout_s: float = 60.0
    max_stop_strings: int = 16
    max_stop_chars: int = 256
    max_unread_events: int = 1024
    max_metric_adapters: int = 64
    max_best_of: int = 4
    max_choices: int = 8
    max_prompts: int = 64
    remote_sources: tuple[str, ...] = ()
    adapter_hosts: tuple[str, ...] = ("huggingface.co", "*.huggingface.co", "*.hf.co")
    private_adapter_hosts: tuple[str, ...] = ()
    hub_endpoint: str = "https://huggingface.co"
    adapter_buckets: tuple[str, ...] = ()
    s3_endpoint: str | None = None
    max_adapter_bytes: int = 1 << 30
    download_timeout_s: float = 120.0
    merge_timeout_s: float = 60.0
    adapter_cache: Path | None = None
    max_adapter_cache_bytes: int = 20 << 30
