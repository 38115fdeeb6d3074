"""Keys, usage, and how far each journal is in it."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From an empty database."""
    about = op.create_table(
        "atoll_about",
        sa.Column("database_id", sa.String(32), primary_key=True),
        sa.Column("keys_version", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(about, [{"database_id": secrets.token_hex(16), "keys_version": 1}])
    op.create_table(
        "atoll_keys",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("adapters", sa.JSON, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("tokens_per_minute", sa.Integer),
        sa.Column("concurrency", sa.Integer),
        sa.Column("created_at_s", sa.BigInteger, nullable=False),
        sa.Column("expires_at_s", sa.BigInteger),
        sa.Column("revoked_at_s", sa.BigInteger),
    )
    op.create_table(
        "atoll_usage",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("adapter", sa.String(512), primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("generated_tokens", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("cost_usd", sa.Float(53), nullable=False),
    )
    op.create_table(
        "atoll_journals",
        sa.Column("journal_id", sa.String(64), primary_key=True),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """To an empty database: keys and usage are lost."""
    for name in ("atoll_journals", "atoll_usage", "atoll_keys", "atoll_about"):
        op.drop_table(name)
