"""PostgresEventStore: appends that share round trips, reads, subscriptions, checkpoints and snapshots."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from ...schemas import (
    Event,
    EventspineError,
    EventType,
    Fenced,
    InvalidEvent,
    RegistryClient,
    Unavailable,
    UnknownEventType,
)
from ...schemas.codec import Codec, Encoded, UnknownSchemaId
from ...schemas.compatibility import Level
from ...schemas.event import rfc3339_now
from ...schemas.pins import load_pinned_types, register_event_types
from ...schemas.postgres import Connection, load_sql, translated
from ...schemas.privacy import KeyRing, protect_events, reveal_events
from ...schemas.retry import Backoff, wait_or_raise
from ...schemas.upcasting import Upcaster
from ..batch import AppendRequest, Outcome, prepare, recorded
from ..noted import note_recorded
from ..paging import iterate_stream
from ..protocol import ExpectedVersion, Snapshot, StreamAppend
from ..query import AppendCondition, Query, QueryItem
from ..subscription import Following, LogSubscription
from .appender import Appender
from .batch import arguments, item_arguments, outcomes_of
from .bulk import Imported, import_batch, import_events
from .log import PostgresLog
from .outbox import PostgresOutbox
from .reactions import PostgresReactions

__all__ = ["PostgresEventStore"]

_SQL = "eventspine.store.postgres"
_APPEND = load_sql(_SQL, "sql/append_batch")
_READ_STREAM = load_sql(_SQL, "sql/read_stream")
_READ_STREAM_BACKWARDS = load_sql(_SQL, "sql/read_stream_backwards")
_READ_ALL = load_sql(_SQL, "sql/read_all")
_READ_QUERY = load_sql(_SQL, "sql/read_query")
_READ_QUERY_BACKWARDS = load_sql(_SQL, "sql/read_query_backwards")
_READ_EVENT = load_sql(_SQL, "sql/read_event")
_LOAD_CHECKPOINT = load_sql(_SQL, "sql/load_checkpoint")
_SAVE_CHECKPOINT = load_sql(_SQL, "sql/save_checkpoint")
_ADVANCE_CHECKPOINT = load_sql(_SQL, "sql/advance_checkpoint")
_LOAD_SNAPSHOT = load_sql(_SQL, "sql/load_snapshot")
_SAVE_SNAPSHOT = load_sql(_SQL, "sql/save_snapshot")
_GUARD = load_sql(_SQL, "sql/guard_transaction")

Result = TypeVar("Result")

_END = 2**63 - 1
_read_json = msgspec.json.Decoder()
_write_json = msgspec.json.Encoder()


class PostgresEventStore:
    """The event store on Postgres; see `EventStore` for the contract.

    `pool` must lead to a migrated database (`eventspine.migrate`) and stays the caller's: closing it is not our business.
    One store per process is best: appends that are called at the same time share round trips only within one.

    Options: `max_event_bytes` bounds encoded data plus metadata of one event. `max_batch_events` and `max_batch_bytes`
    bound what goes in one round trip, `max_waiting_bytes` what waits for one: beyond it `append` waits before it queues.
    `retry_s` is how long an append or read tries again while Postgres is away. `hash_chain` adds each batch to the hash chain as
    it is recorded; without it, `eventspine audit seal` does so later. `keep_keys_s` is how long keys of personal data are kept in
    memory. `as_written` leaves events in the schema version that they were written in, for tools that show what is there. With a
    `registry` of yours, event types that are new get their ids from it; those that have one never ask it.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        *,
        max_event_bytes: int = 1_000_000,
        max_batch_events: int = 512,
        max_batch_bytes: int = 8_000_000,
        max_waiting_bytes: int = 64_000_000,
        retry_s: float = 30.0,
        hash_chain: bool = True,
        keep_keys_s: float = 60.0,
        as_written: bool = False,
        registry: RegistryClient | None = None,
    ) -> None:
        self._as_written = as_written
        self._registry = registry
        self.log = PostgresLog(pool, registry=registry)
        self.outbox = PostgresOutbox(pool, max_message_bytes=max_event_bytes)
        self.reactions = PostgresReactions(self, self._encoded)
        self.pool = self._pool = pool
        self._codec = Codec()
        self._keys = KeyRing(pool, keep_s=keep_keys_s)
        self._max_event_bytes = max_event_bytes
        self._retry_s = retry_s
        self._hash_chain = hash_chain
        self._appender = Appender(
            pool,
            max_batch_events=max_batch_events,
            max_batch_bytes=max_batch_bytes,
            max_waiting_bytes=max_waiting_bytes,
            hash_chain=hash_chain,
            retry_s=retry_s,
        )

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of appends wait or are under way; beyond `max_waiting_bytes`, further calls of `append` wait."""
        return self._appender.held_bytes

    async def register(
        self,
        event_types: Sequence[EventType],
        upcasters: Sequence[Upcaster] = (),
        *,
        compatibility: Level = Level.FULL_TRANSITIVE,
    ) -> None:
        """Register event types, all or none; each keeps its schema id for ever. Doing it again changes nothing.

        What is given is declared as well: this store appends in the highest version given of each type, and reads events of other
        versions as that one, by `upcasters` and Avro's rules. A version that is new must be compatible with the earlier ones, or
        be reached from them by upcasters.

        Raises:
            SchemaError: a type is registered under that version with another schema; a new version is not compatible; or an older
                version can't be read as the declared one.
            Unavailable: Postgres is away, or with a new type the `registry`.
        """
        pinned = await register_event_types(
            self._pool, event_types, upcasters, compatibility=compatibility, registry=self._registry
        )
        self._codec.add(pinned, declared=event_types, upcasters=upcasters)

    async def append(
        self,
        stream_id: str,
        stream_type: str,
        events: Sequence[Event],
        expected_version: ExpectedVersion,
        *,
        condition: AppendCondition | None = None,
        connection: Connection | None = None,
    ) -> list[Event]:
        """Append events to one stream; see `EventStore.append`.

        Calls made while a round trip is under way go together in the next one. A lost connection is retried for `retry_s`
        seconds; the event ids make that safe. Cancelling leaves the append undone if it was still waiting, else unknown.

        With `connection`, the append is part of the transaction that is open on it: events and the caller's rows are recorded
        together or not at all. Nobody else can append until it ends, so append last, then commit. Such an append is not retried.

        Raises (beside `EventStore.append`):
            EventspineError: the connection has no open transaction, or one that is not READ COMMITTED.
            Unavailable: with `connection`, also a lock that was not free in 10 s, or a deadlock: do the transaction over.
        """
        [copies] = await self._append([StreamAppend(stream_id, stream_type, events, expected_version)], condition, connection)
        note_recorded(copies)
        return copies

    async def append_streams(
        self,
        appends: Sequence[StreamAppend],
        *,
        condition: AppendCondition | None = None,
        connection: Connection | None = None,
    ) -> list[list[Event]]:
        """Append to several streams, all or none; see `EventStore.append_streams`, and `append` for `connection`."""
        if not isinstance(appends, Sequence) or not appends or not all(isinstance(each, StreamAppend) for each in appends):
            raise InvalidEvent("append_streams takes a list of StreamAppend(stream_id, stream_type, events, expected_version)")
        repeated = {each.stream_id for n, each in enumerate(appends) if each.stream_id in {one.stream_id for one in appends[:n]}}
        if repeated:
            raise InvalidEvent(
                "the stream is named twice; give its events in one StreamAppend", stream_id=min(map(str, repeated))
            )
        copies = await self._append(appends, condition, connection)
        for each in copies:
            note_recorded(each)
        return copies

    async def encode(self, event_type: str, data: Mapping[str, Any], *, schema_version: int = 0) -> bytes:
        """Return data as Avro in Confluent's wire format, by a registered type: the value of a message that is no event.

        Raises:
            InvalidEvent: the data does not fit, the type is unknown, or it has personal fields, which nothing would encrypt here.
        """
        return (await self._encoded(event_type, schema_version, data)).payload

    async def import_events(
        self,
        name: str,
        events: Iterable[Event] | AsyncIterable[Event],
        *,
        batch_events: int = 2000,
        on_progress: Callable[[Imported], None] = lambda _: None,
    ) -> Imported:
        """Append events by the million, each to the end of the stream that it names, by COPY; resumable under `name`.

        See `eventspine.store.postgres.bulk.import_events`.
        """
        return await import_events(
            self._pool,
            name,
            events,
            codec=self._codec,
            keys=self._keys,
            batch_events=batch_events,
            max_event_bytes=self._max_event_bytes,
            on_progress=on_progress,
        )

    async def import_batch(self, name: str, events: Sequence[Event], before: int, after: int) -> None:
        """Append a batch of a source that has places of its own; see `eventspine.store.postgres.bulk.import_batch`."""
        await import_batch(
            self._pool, name, events, before, after,
            codec=self._codec, keys=self._keys, max_event_bytes=self._max_event_bytes,
        )  # fmt: skip

    async def read_stream(
        self,
        stream_id: str,
        from_version: int = 0,
        limit: int | None = None,
        *,
        to_version: int | None = None,
        backwards: bool = False,
    ) -> list[Event]:
        """Return a stream's events with `from_version <= version <= to_version`, in order, or the last first."""
        statement = _READ_STREAM_BACKWARDS if backwards else _READ_STREAM
        return await self._read(statement, stream_id, from_version, _END if to_version is None else to_version, limit)

    def iterate_stream(
        self,
        stream_id: str,
        from_version: int = 0,
        *,
        to_version: int | None = None,
        backwards: bool = False,
        batch_size: int = 500,
    ) -> AsyncIterator[Event]:
        """Yield what `read_stream` returns, with at most `batch_size` events in memory."""
        last = _END if to_version is None else to_version
        return iterate_stream(self, stream_id, from_version, last, backwards=backwards, batch_size=batch_size)

    async def read_all(self, from_position: int = 0, limit: int = 1000) -> list[Event]:
        """Return at most `limit` events of the log with `global_position > from_position`, in order."""
        return await self._read(_READ_ALL, from_position, min(from_position + limit, _END))

    async def read(
        self,
        query: Query,
        *,
        from_position: int = 0,
        to_position: int | None = None,
        limit: int | None = None,
        backwards: bool = False,
    ) -> list[Event]:
        """Return the events that match, with `from_position < global_position <= to_position`, in order, or the last first."""
        return await self._read(*_query(query, from_position, to_position, limit, backwards=backwards))

    async def read_event(self, event_id: UUID) -> Event | None:
        """Return the event with this id, None if there is none."""
        return next(iter(await self._read(_READ_EVENT, event_id)), None)

    def forget_key(self, subject: str) -> None:
        """Drop a person's key from memory, so that the next read asks for it again."""
        self._keys.forget(subject)

    def event_type(self, name: str, schema_version: int = 0) -> EventType | None:
        """Return an event type in a version, 0 = today's, as far as this process knows; None if it is not registered."""
        return self._codec.event_type(name, schema_version)

    async def refresh_types(self) -> None:
        """Learn the event types that other processes have registered meanwhile."""
        await self._load_types()

    async def events_of(self, rows: Sequence[asyncpg.Record]) -> list[Event]:
        """Return the events of rows that were read in the columns and the order of sql/read_all.sql."""
        return await self._events(rows)

    async def read_rows(
        self, statement: str, *parameters: Any, as_written: bool = False, connection: Connection | None = None
    ) -> list[Event]:
        """Return the events that a statement of ours selects, in the columns and the order of sql/read_all.sql."""
        if connection is not None:
            async with translated():
                rows = await connection.fetch(statement, *parameters)
            return await self._events(rows, connection, as_written=as_written)
        return await self._patiently(partial(self._read_once, statement, *parameters, as_written=as_written))

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""
        return await self.log.last_position()

    def subscribe(
        self,
        *,
        query: Query | None = None,
        from_position: int = 0,
        batch_size: int = 1000,
        poll_s: float = 1.0,
        on_caught_up: Callable[[], None] = lambda: None,
    ) -> LogSubscription:
        """Yield the log after `from_position`, then new events as they come; see `EventStore.subscribe`.

        `poll_s` bounds the delay when a notification is lost. `on_caught_up` is called whenever the end of the log is reached
        after not having been there. While Postgres is away the subscription waits; it raises `Unavailable` only after `retry_s`
        seconds without success.
        """

        async def read(after: int) -> Following:
            return await self._read_following(query, after, batch_size)

        return LogSubscription(
            self.log, read, from_position=from_position, poll_s=poll_s, retry_s=self._retry_s, on_caught_up=on_caught_up
        )

    async def load_checkpoint(self, subscription_id: str) -> int:
        """Return the position saved under this name, 0 if none was."""
        async with translated():
            return await self._pool.fetchval(_LOAD_CHECKPOINT, subscription_id) or 0

    async def save_checkpoint(self, subscription_id: str, last_position: int, *, connection: Connection | None = None) -> None:
        """Save how far a subscription has come; a lower position than the saved one is ignored.

        With `connection`, it is saved with the transaction that is open on it, together with what the caller wrote for those
        events: each event then has its effect once, however often the subscription is restarted.

        Raises:
            Fenced: with `connection`: the checkpoint is there or further already, by another process with this subscription. Roll
                back: the effects are recorded.
        """
        async with translated():
            if connection is None:
                await self._pool.execute(_SAVE_CHECKPOINT, subscription_id, last_position)
                return
            _check_transaction(connection)
            advanced = await connection.fetchval(_ADVANCE_CHECKPOINT, subscription_id, last_position)
        if advanced is None:
            raise Fenced(
                f"subscription {subscription_id!r} is at position {last_position} or beyond already: another process runs it; "
                "roll back, and load the checkpoint again"
            )

    async def load_snapshot(self, stream_id: str, *, schema_version: int = 1) -> Snapshot | None:
        """Return the last snapshot of a stream's state, None if there is none of this schema version."""
        async with translated():
            row = await self._pool.fetchrow(_LOAD_SNAPSHOT, stream_id, schema_version)
        if row is None:
            return None
        version, schema_version, state, created_at = row
        return Snapshot(stream_id, version, schema_version, _read_json.decode(state), created_at)

    async def save_snapshot(
        self, stream_id: str, stream_type: str, state: Mapping[str, Any], *, version: int, schema_version: int = 1
    ) -> None:
        """Save a stream's state at a version; see `EventStore.save_snapshot`.

        Raises:
            InvalidEvent: the state is not JSON.
        """
        try:
            text = _write_json.encode(state).decode()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidEvent(f"the snapshot is not JSON: {error}", stream_id=stream_id) from error
        async with translated():
            await self._pool.execute(_SAVE_SNAPSHOT, stream_id, stream_type, text, version, schema_version)

    async def _append(
        self, appends: Sequence[StreamAppend], condition: AppendCondition | None, connection: Connection | None
    ) -> list[list[Event]]:
        now = rfc3339_now()
        protected = await self._protect(appends, connection) if self._codec.holds_personal else appends
        try:
            request = prepare(self._codec, protected, condition, now=now, max_event_bytes=self._max_event_bytes)
        except UnknownEventType:  # somebody else may have registered it since we looked
            await self._load_types(connection)
            protected = await self._protect(appends, connection) if self._codec.holds_personal else appends
            request = prepare(self._codec, protected, condition, now=now, max_event_bytes=self._max_event_bytes)
        if connection is None:
            outcomes = await self._appender.send(request)
        else:
            outcomes = await self._append_within(connection, request)
        if outcomes[0][0] == "duplicate":
            return [
                await self._read_recorded(part.stream_id, outcome[1] or 0, len(part.encoded), connection)
                for part, outcome in zip(request.parts, outcomes, strict=True)
            ]
        copies = recorded(request, outcomes)
        if self._codec.holds_personal:
            copies = [await self._reveal(each, connection) for each in copies]
        return copies if self._as_written else [self._codec.upcast(each) for each in copies]

    async def _encoded(self, event_type: str, schema_version: int, data: Mapping[str, Any]) -> Encoded:
        if not self._codec.knows(event_type, schema_version):
            await self._load_types()
        known = self._codec.event_type(event_type, schema_version)
        if known is not None and known.personal:
            raise InvalidEvent("it has personal fields: send a type without them, or append an event", event_type=event_type)
        return self._codec.encode(event_type, schema_version, data)

    # With the caller's connection, nothing here asks the pool for another one: callers may hold all of them.

    async def _load_types(self, connection: Connection | None = None) -> None:
        self._codec.add(await self._patiently(partial(load_pinned_types, connection or self._pool), connection))

    async def _protect(self, appends: Sequence[StreamAppend], connection: Connection | None) -> Sequence[StreamAppend]:
        """Encrypt personal fields. What is no list of events is left for prepare() to refuse."""
        protected = []
        for append in appends:
            if isinstance(append.events, Sequence):
                protect = partial(protect_events, self._codec, self._keys, append.events, connection)
                append = append._replace(events=await self._patiently(protect, connection))
            protected.append(append)
        return protected

    async def _reveal(self, events: Sequence[Event], connection: Connection | None) -> list[Event]:
        return await self._patiently(partial(reveal_events, self._codec, self._keys, events, connection), connection)

    async def _append_within(self, connection: Connection, request: AppendRequest) -> Sequence[Outcome]:
        _check_transaction(connection)
        async with translated():
            await connection.execute(_GUARD)
            parameters = arguments([request], hash_chain=self._hash_chain)
            return outcomes_of(await connection.fetchrow(_APPEND, *parameters))

    async def _read_recorded(self, stream_id: str, version: int, count: int, connection: Connection | None) -> list[Event]:
        """Read the originals of a repeated append; in the caller's transaction, which may have recorded them itself."""
        parameters = (stream_id, version, version + count - 1, None)
        if connection is None:
            return await self._read(_READ_STREAM, *parameters)
        async with translated():
            rows = await connection.fetch(_READ_STREAM, *parameters)
        return await self._events(rows, connection)

    async def _read(self, statement: str, *parameters: Any) -> list[Event]:
        return await self._patiently(partial(self._read_once, statement, *parameters))

    async def _patiently(self, work: Callable[[], Awaitable[Result]], connection: Connection | None = None) -> Result:
        """Do it again while Postgres is away, for `retry_s` seconds; in the caller's transaction once only."""
        if connection is not None:
            return await work()
        backoff = Backoff(give_up_after_s=self._retry_s)
        while True:
            try:
                return await work()
            except Unavailable as error:
                await wait_or_raise(backoff, error)

    async def _read_once(self, statement: str, *parameters: Any, as_written: bool = False) -> list[Event]:
        async with translated():
            rows = await self._pool.fetch(statement, *parameters)
        return await self._events(rows, as_written=as_written)

    async def _read_following(self, query: Query | None, after: int, batch_size: int) -> Following:
        """Return what comes behind a position: the next events that match, at most `batch_size`."""
        if query is None or not query.items:
            events = await self._read_once(_READ_ALL, after, min(after + batch_size, _END))
            return Following(events, events[-1].global_position if events else after, len(events) == batch_size)
        end = await self.last_position()  # events become visible in order: up to here, what is not there will never be
        events = await self._read_once(*_query(query, after, end, batch_size)) if end > after else []
        full = len(events) == batch_size
        return Following(events, events[-1].global_position if full else max(after, end), full)

    async def _events(
        self, rows: Sequence[asyncpg.Record], connection: Connection | None = None, *, as_written: bool = False
    ) -> list[Event]:
        try:
            events = _decode(self._codec, rows)
        except UnknownSchemaId:
            self._codec.add(await load_pinned_types(connection or self._pool))
            events = _decode(self._codec, rows)
        if self._codec.holds_personal:
            events = await reveal_events(self._codec, self._keys, events, connection)
        return events if self._as_written or as_written else self._codec.upcast(events)


def _decode(codec: Codec, rows: Sequence[asyncpg.Record]) -> list[Event]:
    try:
        return _decode_by(codec.readers, rows)
    except Exception:  # a payload whose reader is not made yet, or that it can't read
        return _decode_by(dict.fromkeys({row[8][:5] for row in rows}, codec.decode), rows)


def _decode_by(readers: Mapping[bytes, Callable[[bytes], dict[str, Any]]], rows: Sequence[asyncpg.Record]) -> list[Event]:
    """Make events of rows, with the reader of each payload's first five bytes: the hot path of every read."""
    read_json = _read_json.decode
    return [
        Event(
            event_type=event_type,
            data=readers[payload[:5]](payload),
            metadata=read_json(metadata),
            event_id=event_id,
            tags=tuple(tags) if tags else (),
            stream_id=stream_id,
            schema_version=schema_version,
            version=version,
            global_position=position,
            created_at=created_at,
        )
        for position, event_id, stream_id, event_type, version, schema_version, metadata, tags, payload, created_at in rows
    ]


def _query(query: Query, after: int, until: int | None, limit: int | None, *, backwards: bool = False) -> tuple[Any, ...]:
    """Return the statement that reads a query, and its parameters."""
    if not isinstance(query, Query):
        raise InvalidEvent(f"a query is made by Query(QueryItem(…), …), not {type(query).__name__}")
    items = item_arguments(query.items or (QueryItem(),))
    statement = _READ_QUERY_BACKWARDS if backwards else _READ_QUERY
    return statement, *items, after, _END if until is None else until, _END if limit is None else limit


def _check_transaction(connection: Connection) -> None:
    if not connection.is_in_transaction():
        raise EventspineError("the connection has no open transaction: `async with connection.transaction():` begins one")
