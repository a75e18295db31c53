"""Bring a database to the tables that this version of eventspine needs."""

from __future__ import annotations

import re
from importlib.resources import files

from ...schemas.errors import SettingsError
from ...schemas.postgres import Connection, load_sql, translated

__all__ = ["grant_application", "grant_relay", "migrate"]

_PACKAGE = "eventspine.store.postgres"
_FILE_NAME = re.compile(r"(\d{4})_\w+\.sql")
FUNCTIONS = (
    *("event_digest", "link_events", "find_events", "seal_events", "find_events_backwards", "append_events"),
    *("send_messages", "trim_outbox"),
)
_LOCK = "SELECT pg_advisory_xact_lock(1702261358, 0)"
_VERSIONS = """
CREATE TABLE IF NOT EXISTS eventspine_migrations (
    version    integer     NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT eventspine_migrations_pkey PRIMARY KEY (version)
)"""


def migrations() -> dict[int, str]:
    """Return the statements of each migration, by version, ascending."""
    folder = files(_PACKAGE).joinpath("migrations")
    found = {int(match[1]): file for file in folder.iterdir() if (match := _FILE_NAME.fullmatch(file.name))}
    return {version: found[version].read_text(encoding="utf-8") for version in sorted(found)}


async def migrate(connection: Connection, *, only_if_empty: bool = False) -> list[int]:
    """Create the tables, or migrate those of an older version; return the versions applied, [] if all was there.

    One transaction: it happens as a whole or not at all. Two at once are safe. With `only_if_empty`, a database that has
    our tables already is not changed.

    Raises:
        SettingsError: the database is newer than this program (with `only_if_empty`, also: older), holds a foreign table
            `events`, or refuses the right to create tables.
        Unavailable: Postgres is away.
    """
    steps = migrations()
    newest = max(steps)
    async with translated(), connection.transaction():
        await connection.execute(_LOCK)
        ours = await connection.fetchval("SELECT to_regclass('eventspine_migrations') IS NOT NULL")
        if not ours and await connection.fetchval("SELECT to_regclass('events') IS NOT NULL"):
            raise SettingsError(
                "the database holds a table `events` that is not ours; choose another database, or another schema by "
                "search_path in the DSN (postgresql://…/db?search_path=eventspine)"
            )
        if not (ours and only_if_empty):
            await connection.execute(_VERSIONS)
        at = await connection.fetchval("SELECT coalesce(max(version), 0) FROM eventspine_migrations")
        if at > newest:
            raise SettingsError(f"the database is at version {at}, this program knows {newest}: upgrade eventspine")
        if ours and only_if_empty:
            if at < newest:
                raise SettingsError(f"the database is at version {at}, this program needs {newest}: run `eventspine migrate`")
            return []
        if at == 0:
            applied = [newest]
            await connection.execute(load_sql(_PACKAGE, "schema"))
        else:
            applied = [version for version in steps if version > at]
            for version in applied:
                await connection.execute(steps[version])
        for function in FUNCTIONS:
            await connection.execute(load_sql(_PACKAGE, f"functions/{function}"))
        await connection.executemany("INSERT INTO eventspine_migrations (version) VALUES ($1)", [(v,) for v in applied])
    return applied


async def grant_application(connection: Connection, role: str) -> None:
    """Give a role the rights of an application: it can append and read, and can't change or delete an event.

    The tables' owner keeps that right by SQL, but the triggers refuse it for the owner as well. Doing it again changes nothing.

    Raises:
        SettingsError: there is no such role, or the connection's role does not own the tables.
    """
    await _grant(connection, role, "grant_application")


async def grant_relay(connection: Connection, role: str) -> None:
    """Give a role the rights of the relay: it reads the log, and writes what it keeps of itself; it can't append or read keys.

    Doing it again changes nothing.

    Raises:
        SettingsError: there is no such role, or the connection's role does not own the tables.
    """
    await _grant(connection, role, "grant_relay")


async def _grant(connection: Connection, role: str, name: str) -> None:
    quoted = '"' + role.replace('"', '""') + '"'
    async with translated(), connection.transaction():
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role):
            raise SettingsError(f"there is no role {role!r}; make it first: CREATE ROLE {quoted} LOGIN PASSWORD '…'")
        schema = await connection.fetchval("SELECT quote_ident(current_schema())")
        await connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {quoted}")
        await connection.execute(load_sql(_PACKAGE, name).replace("{role}", quoted))
