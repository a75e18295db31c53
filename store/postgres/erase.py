"""Erase a person: destroy the key of their data, and look whether anything readable is left in the databases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID, uuid5

import asyncpg
import msgspec

from ...schemas import Codec, Event, EventspineError, EventType
from ...schemas.pins import load_pinned_types
from ...schemas.postgres import load_sql, translated
from ...schemas.privacy import ERASED, KeyRing
from ..protocol import ANY
from .store import PostgresEventStore

__all__ = [
    "SUBJECT_ERASED",
    "Erasure",
    "Remains",
    "delete_snapshots",
    "erase_subject",
    "events_of_subject",
    "readable_in_database",
    "readable_in_store",
    "spellings",
    "unsealed_fields",
]

_SQL = "eventspine.store.postgres"
_EVENTS_OF_SUBJECT = load_sql(_SQL, "sql/events_of_subject")
_UNSEALED = load_sql(_SQL, "sql/unsealed_fields")
_DESTROY_KEY = load_sql(_SQL, "sql/destroy_key")
_DELETE_SNAPSHOTS = load_sql(_SQL, "sql/delete_snapshots")
_FIND_IN_EVENTS = load_sql(_SQL, "sql/find_text_in_events")
_FIND_IN_SNAPSHOTS = load_sql(_SQL, "sql/find_text_in_snapshots")
_TEXT_COLUMNS = load_sql(_SQL, "sql/text_columns")

_NAMESPACE = UUID("5d0a7f5c-35f0-5b8e-9a53-7a6c0d0f3b11")
_SHORTEST_CHARS = 4

SUBJECT_ERASED = EventType.from_schema(
    {"type": "record", "name": "SubjectErased", "fields": [{"name": "subject", "type": "string"}]}
)
"""Recorded, in the category PersonalData, when a person was erased: for projections, so that they forget as well."""


class Erasure(NamedTuple):
    """What was erased. `values` are the readable ones, for a last search: whoever holds this holds the data. None = unknown, for
    the key had been destroyed before."""

    events: int
    streams: list[str]
    values: list[str] | None
    snapshots: int


class Remains(NamedTuple):
    """Where an erased value can still be read, and in how many rows."""

    where: str
    rows: int


async def events_of_subject(store: PostgresEventStore, subject: str) -> list[Event]:
    """Return every event with personal data of a person, readable, as it was written, in the order of the log."""
    found: list[Event] = []
    for event_type in await _personal_types(store.pool):
        found += await store.read_rows(
            _EVENTS_OF_SUBJECT, event_type.name, event_type.schema_version, event_type.subject, subject, as_written=True
        )
    return sorted(found, key=lambda event: event.global_position)


async def erase_subject(store: PostgresEventStore, subject: str) -> Erasure:
    """Destroy a person's key, delete the snapshots of the streams that hold their data, and record `SubjectErased`.

    The events stay as they are, so they fold and the hash chain holds; their personal fields read as `[erased]` or null from now
    on: in processes that read about this person just before, as soon as they forget the key (`keep_keys_s`). Such a process can
    still save a snapshot with readable values: call `delete_snapshots` after that time. Erasing again finishes what was
    interrupted. Needs the rights of the tables' owner.

    Raises:
        EventspineError: no personal data of this person was ever recorded.
    """
    keys = await KeyRing(store.pool).load({subject})
    if subject not in keys:
        raise EventspineError(f"there is no personal data of {subject!r}")
    found = await events_of_subject(store, subject)
    values = None if keys[subject] is None else sorted(await _values(store.pool, found))
    streams = sorted({event.stream_id for event in found})
    async with translated():
        await store.pool.execute(_DESTROY_KEY, subject)
        await store.pool.execute("VACUUM subject_keys")  # the row's old version still holds the key
    store.forget_key(subject)
    snapshots = await delete_snapshots(store.pool, streams)
    await store.register([SUBJECT_ERASED])
    event_id = uuid5(_NAMESPACE, subject)
    event = Event(event_type="SubjectErased", data={"subject": subject}, event_id=event_id)
    await store.append(f"PersonalData-{event_id}", "PersonalData", [event], ANY)
    return Erasure(len(found), streams, values, snapshots)


async def delete_snapshots(pool: asyncpg.Pool, stream_ids: Sequence[str]) -> int:
    """Delete the snapshots of streams, and return how many there were: they are made again from the events."""
    async with translated():
        return len(await pool.fetch(_DELETE_SNAPSHOTS, stream_ids))


async def unsealed_fields(pool: asyncpg.Pool, subject: str) -> list[Remains]:
    """Return the personal fields that are stored unencrypted in events of a person: none, unless somebody wrote around us."""
    remains = []
    for event_type in await _personal_types(pool):
        async with translated():
            rows = await pool.fetch(
                _UNSEALED, event_type.name, event_type.schema_version, event_type.subject, subject, list(event_type.personal)
            )
        remains += [Remains(f"{event_type.name}.{row['field']}, unencrypted", row["events"]) for row in rows]
    return remains


async def readable_in_store(pool: asyncpg.Pool, texts: Sequence[str]) -> list[Remains]:
    """Search every event and snapshot for texts, byte by byte. Reads the whole log."""
    async with translated():
        rows = await pool.fetch(_FIND_IN_EVENTS, texts)
        snapshots = await pool.fetchval(_FIND_IN_SNAPSHOTS, texts)
    remains = [Remains(f"events of type {row['event_type']}", row["count"]) for row in rows]
    return [*remains, Remains("snapshots", snapshots)] if snapshots else remains


async def readable_in_database(pool: asyncpg.Pool, texts: Sequence[str]) -> list[Remains]:
    """Search every column that can hold a text, of every table that is not the store's. Reads all of it."""
    remains = []
    async with translated(), pool.acquire() as connection:
        for table, column, holds in await connection.fetch(_TEXT_COLUMNS):
            rows = await connection.fetchval(
                f"SELECT count(*) FROM {table} AS t WHERE EXISTS (SELECT FROM unnest($1::text[]) AS v WHERE {holds})", texts
            )
            if rows:
                remains.append(Remains(f"table {table}, column {column}", rows))
    return remains


def spellings(values: Iterable[str]) -> list[str]:
    """Return what to search for: each value as it is, and as JSON writes it. Values of fewer than 4 characters are left out:
    what finds them is chance."""
    long_enough = [value for value in values if len(value) >= _SHORTEST_CHARS]
    return sorted({text for value in long_enough for text in (value, msgspec.json.encode(value).decode()[1:-1])})


async def _personal_types(pool: asyncpg.Pool) -> list[EventType]:
    return [pinned.event_type for pinned in await load_pinned_types(pool) if pinned.event_type.personal]


async def _values(pool: asyncpg.Pool, events: Sequence[Event]) -> set[str]:
    codec = Codec()
    codec.add(await load_pinned_types(pool))
    values = set()
    for event in events:
        event_type = codec.event_type(event.event_type, event.schema_version)
        assert event_type is not None, "it was read by this type"
        values |= {value for field in event_type.personal if isinstance(value := event.data.get(field), str)}
    return values - {ERASED}
