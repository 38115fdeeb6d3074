"""Alembic's environment and the changes of the tables, in order."""
