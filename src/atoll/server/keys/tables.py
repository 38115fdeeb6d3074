"""The tables; what changes here needs a migration. Times are Unix seconds."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Date, Float, Integer, MetaData, String, Table

METADATA = MetaData()

ABOUT = Table(
    "atoll_about",
    METADATA,
    Column("database_id", String(32), primary_key=True),
    Column("keys_version", BigInteger, nullable=False),  # grows with every change of a key
)

KEYS = Table(
    "atoll_keys",
    METADATA,
    Column("key_id", String(32), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),  # sha256 of the whole key, in hex
    Column("name", String(64), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("adapters", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("concurrency", Integer),
    Column("created_at_s", BigInteger, nullable=False),
    Column("expires_at_s", BigInteger),
    Column("revoked_at_s", BigInteger),
)

USAGE = Table(
    "atoll_usage",
    METADATA,
    Column("key_id", String(32), primary_key=True),
    Column("adapter", String(512), primary_key=True),  # empty: the bare base
    Column("day", Date, primary_key=True),  # UTC
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("cost_usd", Float(53), nullable=False),
)

JOURNALS = Table(
    "atoll_journals",
    METADATA,
    Column("journal_id", String(64), primary_key=True),
    Column("num_bytes", BigInteger, nullable=False),  # how much of the file is in the sums
)
