"""Schema ids pinned in Postgres: given once, kept for ever, so that no registry's outage stops an append or the relay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import asyncpg

from .codec import PinnedType, check_new_definition
from .compatibility import Level
from .event_type import EventType
from .gate import check_new_version
from .postgres import Connection, load_sql, translated
from .upcasting import Upcaster

__all__ = ["load_pinned_types", "register_event_types", "register_subjects"]

_SQL = "eventspine.schemas"
_LOAD = load_sql(_SQL, "sql/load_event_types")
_LOCK = load_sql(_SQL, "sql/lock_registration")
_REGISTER_SCHEMA = load_sql(_SQL, "sql/register_schema")
_REGISTER_EVENT_TYPE = load_sql(_SQL, "sql/register_event_type")
_REGISTER_SUBJECT = load_sql(_SQL, "sql/register_subject")


async def load_pinned_types(database: asyncpg.Pool | Connection) -> list[PinnedType]:
    """Read every registered event type with its schema id."""
    async with translated():
        rows = await database.fetch(_LOAD)
    return [PinnedType(row["schema_id"], EventType(row["event_type"], row["schema_version"], row["definition"])) for row in rows]


async def register_event_types(
    pool: asyncpg.Pool,
    event_types: Sequence[EventType],
    upcasters: Sequence[Upcaster] = (),
    *,
    compatibility: Level = Level.FULL_TRANSITIVE,
) -> list[PinnedType]:
    """Register event types, all or none, and return everything that is registered now. Doing it again changes nothing.

    Raises:
        SchemaError: a type is registered under that version with another schema, or a new version is neither compatible with the
            earlier ones nor reached from them by upcasters.
    """
    pinned = await load_pinned_types(pool)
    if not unregistered(pinned, event_types):
        return pinned
    async with translated(), pool.acquire() as connection, connection.transaction():
        await connection.execute(_LOCK)
        # Another process may have registered some of them between our look and our lock: look again.
        known = await load_pinned_types(connection)
        fresh = sorted(unregistered(known, event_types), key=lambda each: each.schema_version)
        for number, event_type in enumerate(fresh):
            others = [*(pin.event_type for pin in known), *fresh[:number]]
            earlier = [
                each for each in others if each.name == event_type.name and each.schema_version < event_type.schema_version
            ]
            earlier.sort(key=lambda each: each.schema_version)
            check_new_version(event_type, earlier, compatibility, upcasters)
            schema_id = await connection.fetchval(_REGISTER_SCHEMA, event_type.fingerprint, event_type.definition)
            await connection.execute(_REGISTER_EVENT_TYPE, event_type.name, event_type.schema_version, schema_id)
    return await load_pinned_types(pool)


def unregistered(pinned: Sequence[PinnedType], offered: Sequence[EventType]) -> list[EventType]:
    """Return the event types that are not registered yet.

    Raises:
        SchemaError: one is registered under that version with another schema.
    """
    known = {(pin.event_type.name, pin.event_type.schema_version): pin.event_type for pin in pinned}
    for event_type in offered:
        if (event_type.name, event_type.schema_version) in known:
            check_new_definition(known[event_type.name, event_type.schema_version], event_type)
    return [event_type for event_type in offered if (event_type.name, event_type.schema_version) not in known]


async def register_subjects(pool: asyncpg.Pool, subjects: Iterable[tuple[str, int]]) -> None:
    """List schemas under subjects, given as (subject, schema id). Doing it again changes nothing."""
    async with translated(), pool.acquire() as connection, connection.transaction():
        await connection.execute(_LOCK)
        await connection.executemany(_REGISTER_SUBJECT, sorted(subjects))
