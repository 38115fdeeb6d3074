"""Alembic runs this; the connection, in a transaction that the caller ends, comes from atoll.server.keys.database."""

from __future__ import annotations

from alembic import context

from atoll.server.keys.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
