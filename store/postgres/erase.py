"""Erase a person: destroy the key of their data, and look whether anything readable is left in the store's database."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID, uuid5

import asyncpg
import msgspec

from ...schemas import Codec, Event, EventspineError, EventType
from ...schemas.pins import load_pinned_types
from ...schemas.postgres import load_sql, translated
from ...schemas.privacy import KeyRing, reveal_events
from ..protocol import ANY
from .store import PostgresEventStore

__all__ = ["SUBJECT_ERASED", "Erasure", "Remains", "erase_subject", "readable_in_database", "readable_in_store"]

_SQL = "eventspine.store.postgres"
_EVENTS_OF_SUBJECT = load_sql(_SQL, "sql/events_of_subject")
_DESTROY_KEY = load_sql(_SQL, "sql/destroy_key")
_DELETE_SNAPSHOTS = load_sql(_SQL, "sql/delete_snapshots")
_FIND_IN_EVENTS = load_sql(_SQL, "sql/find_text_in_events")
_FIND_IN_SNAPSHOTS = load_sql(_SQL, "sql/find_text_in_snapshots")
_TEXT_COLUMNS = load_sql(_SQL, "sql/text_columns")

_NAMESPACE = UUID("5d0a7f5c-35f0-5b8e-9a53-7a6c0d0f3b11")

SUBJECT_ERASED = EventType.from_schema(
    {"type": "record", "name": "SubjectErased", "fields": [{"name": "subject", "type": "string"}]}
)
"""Recorded, in the category PersonalData, when a person was erased: for projections, so that they forget as well."""


class Erasure(NamedTuple):
    """What was erased: the readable values, for a last search; whoever holds this holds the data."""

    events: int
    streams: list[str]
    values: list[str]
    snapshots: int


class Remains(NamedTuple):
    """Where an erased value can still be read."""

    where: str
    rows: int


async def erase_subject(store: PostgresEventStore, subject: str) -> Erasure:
    """Destroy a person's key, delete the snapshots of the streams that hold their data, and record `SubjectErased`.

    The events stay as they are, so they fold and the hash chain holds; their personal fields read as `[erased]` or null from now
    on (in processes that read about this person just before: when they forget the key). Erasing again finishes what was
    interrupted.

    Raises:
        EventspineError: no event holds data of this person.
    """
    pool = store.pool
    codec, keys = Codec(), KeyRing(pool)
    codec.add(await load_pinned_types(pool))
    if subject not in await keys.load({subject}):
        raise EventspineError(f"there is no personal data of {subject!r}")
    found: list[Event] = []
    for pinned in codec.pinned():
        if pinned.event_type.personal:
            found += await store.read_rows(
                _EVENTS_OF_SUBJECT,
                pinned.event_type.name,
                pinned.event_type.schema_version,
                pinned.event_type.subject,
                subject,
            )
    readable = await reveal_events(codec, keys, found)
    values = {
        value
        for event in readable
        for field in codec.event_type(event.event_type, event.schema_version).personal  # type: ignore[union-attr]
        if isinstance(value := event.data.get(field), str)
    }
    streams = sorted({event.stream_id for event in found})
    async with translated(), pool.acquire() as connection:
        async with connection.transaction():
            await connection.execute(_DESTROY_KEY, subject)
            snapshots = len(await connection.fetch(_DELETE_SNAPSHOTS, streams))
        await connection.execute("VACUUM subject_keys")  # the row's old version still holds the key
    store.forget_key(subject)
    await store.register([SUBJECT_ERASED])
    event = Event(event_type="SubjectErased", data={"subject": subject}, event_id=uuid5(_NAMESPACE, subject))
    await store.append(f"PersonalData-{uuid5(_NAMESPACE, subject)}", "PersonalData", [event], ANY)
    return Erasure(len(found), streams, sorted(values), snapshots)


async def readable_in_store(store: PostgresEventStore, values: list[str]) -> list[Remains]:
    """Search every event and snapshot for texts, byte by byte. Reads the whole log."""
    texts = _spellings(values)
    async with translated():
        rows = await store.pool.fetch(_FIND_IN_EVENTS, texts)
        snapshots = await store.pool.fetchval(_FIND_IN_SNAPSHOTS, texts)
    remains = [Remains(f"events of type {row['event_type']}", row["count"]) for row in rows]
    return [*remains, Remains("snapshots", snapshots)] if snapshots else remains


async def readable_in_database(pool: asyncpg.Pool, values: list[str]) -> list[Remains]:
    """Search every column of every table of a read model's database that holds texts or JSON. Reads all of it."""
    remains = []
    async with translated(), pool.acquire() as connection:
        for table, column in await connection.fetch(_TEXT_COLUMNS):
            count = await connection.fetchval(
                f"SELECT count(*) FROM {table} AS t"
                f" WHERE EXISTS (SELECT FROM unnest($1::text[]) AS v WHERE strpos(t.{column}::text, v) > 0)",
                _spellings(values),
            )
            if count:
                remains.append(Remains(f"table {table}, column {column}", count))
    return remains


def _spellings(values: list[str]) -> list[str]:
    """Return texts as they are, and as JSON writes them."""
    return sorted({spelling for value in values for spelling in (value, msgspec.json.encode(value).decode()[1:-1])})
