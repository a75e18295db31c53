"""Bulk import: events by the million through COPY, resumable, with dense positions like any other."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from typing import Any, NamedTuple

import asyncpg

from ...schemas import Codec, Event, EventIdTaken, Fenced, InvalidEvent
from ...schemas.event import category_of, rfc3339_now
from ...schemas.pins import load_pinned_types
from ...schemas.postgres import load_sql, translated
from ...schemas.privacy import KeyRing, protect_events
from ..batch import EncodedEvent, prepare
from ..protocol import ANY, StreamAppend

__all__ = ["Imported", "import_batch", "import_events", "import_place"]

_SQL = "eventspine.store.postgres"
_LOCK = load_sql(_SQL, "sql/lock_log")
_END_OF_LOG = load_sql(_SQL, "sql/end_of_log")
_LAST_VERSIONS = load_sql(_SQL, "sql/last_versions")
_END_IMPORT = load_sql(_SQL, "sql/end_import")
_LOAD_CHECKPOINT = load_sql(_SQL, "sql/load_checkpoint")
_ADVANCE_CHECKPOINT = load_sql(_SQL, "sql/advance_checkpoint")

_COLUMNS = [
    "global_position", "id", "stream_id", "stream_type", "version", "event_type", "schema_version",
    "event_data", "metadata", "tags", "payload", "created_at",
]  # fmt: skip


class Imported(NamedTuple):
    """How far an import has come: events of the source that were recorded by earlier runs, and by this one."""

    before: int
    now: int


async def import_events(
    pool: asyncpg.Pool,
    name: str,
    events: Iterable[Event] | AsyncIterable[Event],
    *,
    codec: Codec | None = None,
    keys: KeyRing | None = None,
    batch_events: int = 2000,
    max_event_bytes: int = 1_000_000,
    on_progress: Callable[[Imported], None] = lambda _: None,
) -> Imported:
    """Append the events of a source in their order, each to the end of the stream that it names; return how many.

    `name` names the import: how many events of the source are recorded is kept under it, in the same transaction as the events.
    So an import that was stopped at any moment is called again with the same source, and goes on where it was. Others can append
    meanwhile; they wait for one batch at most. Events are validated as in `append`; their types must be registered, and are
    written in the version that `codec` takes for today's.

    Raises:
        InvalidEvent: an event is refused, or names no stream; the events before its batch are recorded.
        EventIdTaken: an event's id is recorded already, or comes twice.
        Fenced: another process runs this import at the same time.
        Unavailable: Postgres is away; call again.
    """
    codec = Codec() if codec is None else codec
    codec.add(await load_pinned_types(pool))
    before = await import_place(pool, name)
    skip, now = before, 0
    on_progress(Imported(before, 0))
    async for batch in _batches(events, batch_events):
        fresh = batch[skip:] if skip else batch
        skip = max(0, skip - len(batch))
        if fresh:
            place = before + now
            await import_batch(
                pool, name, fresh, place, place + len(fresh), codec=codec, keys=keys, max_event_bytes=max_event_bytes
            )
            now += len(fresh)
            on_progress(Imported(before, now))
    if skip:
        raise InvalidEvent(
            f"the source of import {name!r} ends {skip} events before where an earlier run was: it is another source"
        )
    return Imported(before, now)


async def import_place(pool: asyncpg.Pool, name: str) -> int:
    """Return how far an import has come: in events, or whatever its caller counts in; 0 if it has not begun.

    Raises:
        Unavailable: Postgres is away.
    """
    async with translated():
        return await pool.fetchval(_LOAD_CHECKPOINT, f"import:{name}") or 0


async def import_batch(
    pool: asyncpg.Pool,
    name: str,
    events: Sequence[Event],
    before: int,
    after: int,
    *,
    codec: Codec,
    keys: KeyRing | None,
    max_event_bytes: int,
) -> None:
    """Append a batch of an import, all or none, and move its place from `before` to `after` in the same transaction.

    Raises: as `import_events`.
    """
    if codec.holds_personal:
        events = await protect_events(codec, keys or KeyRing(pool), events)
    encoded = [_encode(codec, event, max_event_bytes) for event in events]
    await _record(pool, f"import:{name}", before, after, encoded)


def _encode(codec: Codec, event: Event, max_event_bytes: int) -> tuple[str, EncodedEvent]:
    if not isinstance(event, Event) or not event.stream_id:
        raise InvalidEvent("an imported event names its stream: Event(event_type=…, data=…, stream_id='Order-abc123')")
    append = StreamAppend(event.stream_id, category_of(event.stream_id), [event], ANY)
    request = prepare(codec, [append], None, now=rfc3339_now(), max_event_bytes=max_event_bytes)
    return event.stream_id, request.parts[0].encoded[0]


async def _record(
    pool: asyncpg.Pool, checkpoint: str, before: int, after: int, encoded: Sequence[tuple[str, EncodedEvent]]
) -> None:
    async with translated(), pool.acquire() as connection, connection.transaction(isolation="read_committed"):
        await connection.execute(_LOCK)
        if (await connection.fetchval(_LOAD_CHECKPOINT, checkpoint) or 0) != before:
            raise Fenced(f"{checkpoint!r} is run by another process at the same time: let one of them end")
        position, moment = await connection.fetchrow(_END_OF_LOG)  # type: ignore[misc]
        streams = list({stream_id for stream_id, _ in encoded})
        versions: dict[str, int] = {row["stream_id"]: row["version"] for row in await connection.fetch(_LAST_VERSIONS, streams)}
        rows: list[tuple[Any, ...]] = []
        tags: list[tuple[str, int, str]] = []
        for stream_id, each in encoded:
            position += 1
            versions[stream_id] = version = versions.get(stream_id, 0) + 1
            rows.append(
                (
                    position, each.event_id, stream_id, category_of(stream_id), version, each.event_type, each.schema_version,
                    each.json, each.metadata_json, list(each.tags) or None, each.payload, moment,
                )
            )  # fmt: skip
            tags.extend((tag, position, each.event_type) for tag in each.tags)
        try:
            await connection.copy_records_to_table("events", records=rows, columns=_COLUMNS)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != "events_id_key":
                raise
            raise EventIdTaken("the import", event_ids=[error.detail or "one of the batch"]) from error
        if tags:
            await connection.copy_records_to_table("event_tags", records=tags, columns=["tag", "global_position", "event_type"])
        await connection.execute(_END_IMPORT, position, len(encoded))
        await connection.fetchval(_ADVANCE_CHECKPOINT, checkpoint, after)


async def _batches(events: Iterable[Event] | AsyncIterable[Event], size: int) -> AsyncIterator[list[Event]]:
    batch: list[Event] = []
    async for event in _each(events):
        batch.append(event)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def _each(events: Iterable[Event] | AsyncIterable[Event]) -> AsyncIterator[Event]:
    if isinstance(events, AsyncIterable):
        async for event in events:
            yield event
    else:
        for event in events:
            yield event
