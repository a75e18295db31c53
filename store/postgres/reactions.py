"""What reactions record: each outcome once, with what it schedules; and scheduled events, appended when they are due."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import msgspec

from ...schemas import ConcurrencyError, Encoded, Event, EventIdTaken, EventspineError, Unavailable, category_of
from ...schemas.event import check_stream_id, check_tags
from ...schemas.postgres import load_sql, translated
from ..protocol import ANY, StreamAppend
from .batch import array_literal

if TYPE_CHECKING:
    from .store import PostgresEventStore

__all__ = ["Effects", "PostgresReactions", "Scheduled", "WaitingEvent"]

logger = logging.getLogger(__name__)

_SQL = "eventspine.store.postgres"
_RECORDED = load_sql(_SQL, "sql/recorded_marks")
_MARK = load_sql(_SQL, "sql/mark_reaction")
_SCHEDULE = load_sql(_SQL, "sql/schedule_events")
_CANCEL = load_sql(_SQL, "sql/cancel_scheduled")
_DUE = load_sql(_SQL, "sql/due_events")
_READ = load_sql(_SQL, "sql/read_scheduled")
_DELETE = load_sql(_SQL, "sql/delete_scheduled")
_FAIL = load_sql(_SQL, "sql/fail_scheduled")
_NEXT = load_sql(_SQL, "sql/next_due")
_LIST = load_sql(_SQL, "sql/list_scheduled")

_MAX_REASON_CHARS: Final = 2000
_write_json = msgspec.json.Encoder()

Encode = Callable[[str, int, Mapping[str, Any]], Awaitable[Encoded]]


class Scheduled(NamedTuple):
    """An event to be appended later: `at` a time (aware), or so long `after` the time at which this is recorded."""

    stream_id: str
    event: Event
    at: datetime | None
    after: timedelta | None
    key: str


class Effects(NamedTuple):
    """All that a reaction to one event comes to in the store. `cancelled` names keys, of what was scheduled before."""

    mark: UUID
    appends: Sequence[StreamAppend]
    scheduled: Sequence[Scheduled] = ()
    cancelled: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.appends or self.scheduled or self.cancelled)


class WaitingEvent(NamedTuple):
    """A scheduled event; `failure` says why it could not be appended when it was due."""

    event_id: UUID
    key: str
    due_at: datetime
    stream_id: str
    event_type: str
    failure: str | None


class PostgresReactions:
    """Records what reactions do in the store, and appends what they scheduled."""

    def __init__(self, store: PostgresEventStore, encode: Encode) -> None:
        self._store = store
        self._encode = encode

    async def recorded(self, marks: Sequence[UUID]) -> set[UUID]:
        """Return those of the marks whose effects are recorded."""
        async with translated():
            rows = await self._store.pool.fetch(_RECORDED, list(marks))
        return {row["mark"] for row in rows}

    async def record(self, reaction: str, effects: Effects) -> None:
        """Record the effects of a reaction to one event: all or none, and once. What was recorded first under the mark stays.

        The mark must be the id of the first event that is appended, if there is any. Without scheduled events this is one append
        like any other, and shares its round trip with others. With them it is a transaction of its own.

        Raises:
            ConcurrencyError: a stream is at another version, and nothing is recorded under the mark: decide again.
            InvalidEvent, EventIdTaken, Unavailable: as `EventStore.append`.
        """
        try:
            if effects.scheduled or effects.cancelled:
                await self._record_with_schedule(reaction, effects)
            else:
                await self._store.append_streams(effects.appends)
        except (ConcurrencyError, EventIdTaken):
            # Another process reacted to the same event, at the same time or before: what it recorded counts.
            if not await self.recorded([effects.mark]):
                raise

    async def _record_with_schedule(self, reaction: str, effects: Effects) -> None:
        """Rows are locked before the log is, here and in `append_due`: neither waits for the other in a circle."""
        columns = [await self._columns(each) for each in effects.scheduled]
        async with translated(), self._store.pool.acquire() as connection, connection.transaction():
            if not await connection.fetchval(_MARK, effects.mark, reaction):
                return
            if effects.cancelled:
                await connection.fetch(_CANCEL, reaction, list(effects.cancelled))
            if columns:
                await connection.execute(_SCHEDULE, reaction, *map(list, zip(*columns, strict=True)))
            if effects.appends:
                await self._store.append_streams(effects.appends, connection=connection)

    async def _columns(self, scheduled: Scheduled) -> tuple[Any, ...]:
        """Return an event as a row. What `append` would refuse when it is due is refused now."""
        stream_id, event, at, after, key = scheduled
        check_stream_id(stream_id, category_of(stream_id))
        tags = check_tags(event.tags)
        encoded = await self._encode(event.event_type, event.schema_version, event.data)
        return (
            event.event_id,
            key,
            at,
            None if after is None else after.total_seconds(),
            stream_id,
            event.event_type,
            encoded.schema_version,
            encoded.payload,
            _write_json.encode(dict(event.metadata)).decode(),
            array_literal(tags) if tags else None,
        )

    async def append_due(self, reaction: str, *, limit: int = 100) -> int:
        """Append events that are due, each once, however many processes do this; return how many were due.

        An event is forgotten in the transaction that appends it: a crash leaves it scheduled, or appended. One that can't be
        appended stays, with the reason, and holds no other up.

        Raises:
            Unavailable: Postgres is away, or the log's lock was not free in time.
        """
        try:
            return await self._append_due(reaction, limit)
        except Unavailable:
            raise
        except EventspineError as error:
            logger.warning("scheduled events are appended one by one: %s", error, extra={"reaction": reaction})
        taken = 0
        while taken < limit and await self._append_due(reaction, 1):
            taken += 1
        return taken

    async def _append_due(self, reaction: str, limit: int) -> int:
        ids: list[UUID] = []
        try:
            async with translated(), self._store.pool.acquire() as connection, connection.transaction():
                ids = [row["id"] for row in await connection.fetch(_DUE, reaction, limit)]
                if not ids:
                    return 0
                streams: dict[str, list[Event]] = {}
                for event in await self._store.read_rows(_READ, ids, connection=connection):
                    fresh = msgspec.structs.replace(event, stream_id="", version=0, global_position=0, schema_version=0)
                    streams.setdefault(event.stream_id, []).append(fresh)
                appends = [StreamAppend(stream, category_of(stream), events, ANY) for stream, events in streams.items()]
                await self._store.append_streams(appends, connection=connection)
                await connection.execute(_DELETE, ids)
        except Unavailable:
            raise
        except EventspineError as error:
            if len(ids) != 1:
                raise
            logger.error("a scheduled event can't be appended: %s", error, extra={"reaction": reaction, "event_id": str(ids[0])})
            async with translated():
                await self._store.pool.execute(_FAIL, ids[0], str(error)[:_MAX_REASON_CHARS].replace("\0", ""))
        return len(ids)

    async def next_due_in_s(self, reaction: str) -> float | None:
        """Return how long until the next event is due: negative if it is overdue, None if none waits."""
        async with translated():
            seconds: float | None = await self._store.pool.fetchval(_NEXT, reaction)
        return seconds

    async def waiting(self, reaction: str, *, limit: int = 1000) -> list[WaitingEvent]:
        """Return what a reaction has scheduled, in the order of time."""
        async with translated():
            rows = await self._store.pool.fetch(_LIST, reaction, limit)
        return [WaitingEvent(*row) for row in rows]
