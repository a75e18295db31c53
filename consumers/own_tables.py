"""The tables that projections keep beside their rows in Postgres."""

from __future__ import annotations

from ..schemas.postgres import Connection, load_sql

__all__ = ["make_own_tables"]

_SCHEMA = load_sql("eventspine.consumers", "sql/schema")
_LOCK = "SELECT pg_advisory_xact_lock(1702261358, 1)"  # CREATE … IF NOT EXISTS alone is not safe against itself


async def make_own_tables(connection: Connection) -> None:
    """Make what is missing, in the caller's transaction; until its end, nobody else does."""
    await connection.execute(_LOCK)
    await connection.execute(_SCHEMA)
