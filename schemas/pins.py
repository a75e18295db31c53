"""Schema ids pinned in Postgres: given once, kept for ever, so that no registry's outage stops an append or the relay."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import asyncpg

from .codec import PinnedType, check_new_definition
from .compatibility import Level
from .errors import SchemaError
from .event_type import EventType
from .gate import check_new_version
from .postgres import Connection, load_sql, translated
from .registry_client import RegistryClient
from .registry_rules import fingerprint
from .upcasting import Upcaster

__all__ = ["check_new_types", "ids_from_registry", "load_pinned_types", "pin_schema", "register_event_types", "register_subjects"]

_SQL = "eventspine.schemas"
_LOAD = load_sql(_SQL, "sql/load_event_types")
_LOCK = load_sql(_SQL, "sql/lock_registration")
_REGISTER_SCHEMA = load_sql(_SQL, "sql/registry_register_schema")
_LOAD_DEFINITIONS = load_sql(_SQL, "sql/load_definitions")
_LOAD_FINGERPRINTS = load_sql(_SQL, "sql/load_fingerprints")
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
    registry: RegistryClient | None = None,
) -> list[PinnedType]:
    """Register event types, all or none, and return everything that is registered now. Doing it again changes nothing.

    With a `registry`, types that are new are registered there first, under their records' full names, and keep for ever the ids
    that it gives. Types that are registered here already need no registry. If it fails in between, some may stand there and not
    here; the next registration finds them.

    Raises:
        SchemaError: a type is registered under that version with another schema, or a new version is neither compatible with the
            earlier ones nor reached from them by upcasters; or the registry refuses it, or gives it an id that is another's here.
        Unavailable: the registry is away, and a type is new.
    """
    pinned = await load_pinned_types(pool)
    new = check_new_types(pinned, event_types, compatibility, upcasters)
    if not new:
        return pinned
    ids = await ids_from_registry(pool, registry, [(each.full_name, each.definition) for each in new]) if registry else {}
    async with translated(), pool.acquire() as connection, connection.transaction(isolation="read_committed"):
        await connection.execute(_LOCK)
        # Another process may have registered some of them between our look and our lock: look again.
        known = await load_pinned_types(connection)
        for event_type in check_new_types(known, event_types, compatibility, upcasters):
            title = f"{event_type.name} version {event_type.schema_version}"
            schema_id = await pin_schema(connection, event_type.definition, ids, title)
            await connection.execute(_REGISTER_EVENT_TYPE, event_type.name, event_type.schema_version, schema_id)
    return await load_pinned_types(pool)


async def ids_from_registry(
    database: asyncpg.Pool | Connection, registry: RegistryClient, schemas: Sequence[tuple[str, str]]
) -> dict[bytes, int]:
    """Register schemas, given as (subject, definition), in a registry, and return its ids by fingerprint.

    Those that have an id here already are left out: they keep it.
    """
    fingerprints = [fingerprint(definition, ()) for _, definition in schemas]
    async with translated():
        known = {row["fingerprint"] for row in await database.fetch(_LOAD_FINGERPRINTS, fingerprints)}
    ids: dict[bytes, int] = {}
    for (subject, definition), key in zip(schemas, fingerprints, strict=True):
        if key not in known and key not in ids:
            ids[key] = (await registry.register(subject, definition)).schema_id
    return ids


async def pin_schema(connection: Connection, definition: str, ids: Mapping[bytes, int], title: str) -> int:
    """Return the id of a schema: the one that it has, the one that a registry gave it (`ids`), or else the next one.

    To be called under lock_registration.

    Raises:
        SchemaError: the registry's id is another schema's here.
    """
    key = fingerprint(definition, ())
    wanted = ids.get(key)
    if wanted is not None:
        taken = await connection.fetchrow(_LOAD_DEFINITIONS, [wanted])
        if taken is not None and fingerprint(taken["definition"], ()) != key:
            name = json.loads(taken["definition"]).get("name", "another schema")
            raise SchemaError(
                f"the registry gives {title} the id {wanted}, which is the id of {name} in this log for ever; use a registry (or "
                "a context of one) that `eventspine registry push` filled with this log's schemas: its ids go on from ours"
            )
    return int(await connection.fetchval(_REGISTER_SCHEMA, key, definition, "[]", wanted))


def check_new_types(
    pinned: Sequence[PinnedType], offered: Sequence[EventType], compatibility: Level, upcasters: Sequence[Upcaster]
) -> list[EventType]:
    """Return the event types that are not registered yet, by version, once they have passed the gate."""
    fresh = sorted(unregistered(pinned, offered), key=lambda each: each.schema_version)
    for number, event_type in enumerate(fresh):
        others = [*(pin.event_type for pin in pinned), *fresh[:number]]
        earlier = [each for each in others if each.name == event_type.name and each.schema_version < event_type.schema_version]
        earlier.sort(key=lambda each: each.schema_version)
        check_new_version(event_type, earlier, compatibility, upcasters)
    return fresh


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
    async with translated(), pool.acquire() as connection, connection.transaction(isolation="read_committed"):
        await connection.execute(_LOCK)
        await connection.executemany(_REGISTER_SUBJECT, sorted(subjects))
