"""DynamoDBEventStore: an `EventStore` in one table of DynamoDB."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from ...schemas import Event, EventType, InvalidEvent, RegistryClient, Unavailable, UnknownEventType
from ...schemas.codec import Codec, UnknownSchemaId
from ...schemas.compatibility import Level
from ...schemas.event import rfc3339_now
from ...schemas.retry import Backoff, wait_or_raise
from ...schemas.upcasting import Upcaster
from ..batch import AppendRequest, EncodedEvent, prepare, recorded
from ..noted import note_recorded
from ..paging import iterate_stream
from ..protocol import ExpectedVersion, Snapshot, StreamAppend
from ..query import AppendCondition, Query
from ..subscription import Following, LogSubscription
from .appender import Appender
from .layout import LogHead, checkpoint_key, snapshot_key, stream_key, version_key
from .log import DynamoDBLog, stored
from .pins import load_pinned_types, register_event_types
from .table import Item, Table
from .writing import check_size

__all__ = ["DynamoDBEventStore"]

Result = TypeVar("Result")

_MAX_VERSION: Final = 10**20 - 1
_PAGE: Final = 1000
_read_json = msgspec.json.Decoder()
_write_json = msgspec.json.Encoder()


class DynamoDBEventStore:
    """The event store on DynamoDB; see `EventStore` for the contract.

    `table` is opened by `open_table`, and made by `eventspine dynamodb create-table`. One store per process is best: appends that
    are called at the same time share transactions only within one.

    A transaction of DynamoDB holds a hundred items, so one append holds 48 events at most. Reads by a `Query` and conditions of
    appends look at every event behind the position that they begin at. Personal fields are refused: nothing keeps keys here.

    Options: `max_event_bytes` bounds encoded data plus metadata of one event (DynamoDB's limit is 400 KB with names and keys).
    `max_waiting_bytes` bounds what waits for a transaction: beyond it `append` waits before it queues. `retry_s` is how long an
    append or read tries again while DynamoDB is away or throttles. `poll_s` is how often followers look for appends of other
    processes. `as_written` leaves events in the schema version that they were written in.
    """

    def __init__(
        self,
        table: Table,
        *,
        max_event_bytes: int = 350_000,
        max_waiting_bytes: int = 64_000_000,
        retry_s: float = 30.0,
        poll_s: float = 0.2,
        as_written: bool = False,
        registry: RegistryClient | None = None,
    ) -> None:
        self.table = self._table = table
        self.log = DynamoDBLog(table, poll_s=poll_s, registry=registry)
        self._registry = registry
        self._as_written = as_written
        self._max_event_bytes = max_event_bytes
        self._retry_s = retry_s
        self._codec = Codec()
        self._appender = Appender(
            table,
            max_waiting_bytes=max_waiting_bytes,
            retry_s=retry_s,
            same=self._same,
            unmet=self._unmet,
            on_appended=self.log.notify,
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
        """Register event types; as `PostgresEventStore.register`.

        Raises:
            SchemaError: a type contradicts a registered one or its earlier versions, or has personal fields.
            Unavailable: DynamoDB is away, or with a new type the `registry`.
        """
        pinned = await register_event_types(
            self._table, event_types, upcasters, compatibility=compatibility, registry=self._registry
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
    ) -> list[Event]:
        """Append events to one stream; see `EventStore.append`.

        Calls made while a transaction is under way go together in the next one. Throttling, conflicts of transactions and lost
        answers are retried for `retry_s` seconds; the event ids make that safe.

        Raises (beside `EventStore.append`):
            InvalidEvent: there are more than 48 events, or more bytes than a transaction holds.
        """
        [copies] = await self._append([StreamAppend(stream_id, stream_type, events, expected_version)], condition)
        note_recorded(copies)
        return copies

    async def append_streams(
        self, appends: Sequence[StreamAppend], *, condition: AppendCondition | None = None
    ) -> list[list[Event]]:
        """Append to several streams, all or none; see `EventStore.append_streams`."""
        if not isinstance(appends, Sequence) or not appends or not all(isinstance(each, StreamAppend) for each in appends):
            raise InvalidEvent("append_streams takes a list of StreamAppend(stream_id, stream_type, events, expected_version)")
        if len({each.stream_id for each in appends}) < len(appends):
            raise InvalidEvent("a stream is named twice; give its events in one StreamAppend")
        copies = await self._append(appends, condition)
        for each in copies:
            note_recorded(each)
        return copies

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
        first, last = max(from_version, 0), _MAX_VERSION if to_version is None else to_version
        if last < first or (limit is not None and limit <= 0):
            return []

        async def read() -> list[Event]:
            items = []
            query = self._table.query(
                stream_key(stream_id), first=version_key(first), last=version_key(last), backwards=backwards, page=limit
            )
            async for item in query:
                items.append(item)
                if len(items) == limit:
                    break
            return await self._events(items)

        return await self._patiently(read)

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
        last = _MAX_VERSION if to_version is None else to_version
        return iterate_stream(self, stream_id, from_version, last, backwards=backwards, batch_size=batch_size)

    async def read_all(self, from_position: int = 0, limit: int = 1000) -> list[Event]:
        """Return at most `limit` events of the log with `global_position > from_position`, in order."""
        return await self._patiently(partial(self._read_log, max(from_position, 0), limit))

    async def read(
        self,
        query: Query,
        *,
        from_position: int = 0,
        to_position: int | None = None,
        limit: int | None = None,
        backwards: bool = False,
    ) -> list[Event]:
        """Return the events that match, with `from_position < global_position <= to_position`, in order, or the last first.

        Reads every event of that range: there is no index of tags or types.
        """
        if not isinstance(query, Query):
            raise InvalidEvent(f"a query is made by Query(QueryItem(…), …), not {type(query).__name__}")
        first = max(from_position, 0)
        end = await self.last_position()
        end = end if to_position is None else min(end, to_position)
        matching: list[Event] = []
        while first < end and (limit is None or len(matching) < limit):
            low, high = (max(first, end - _PAGE), end) if backwards else (first, min(end, first + _PAGE))
            page = await self._patiently(partial(self._read_range, low, high))
            matching += [event for event in (reversed(page) if backwards else page) if query.matches(event)]
            first, end = (first, low) if backwards else (high, end)
        return matching if limit is None else matching[: max(limit, 0)]

    async def read_event(self, event_id: UUID) -> Event | None:
        """Return the event with this id, None if there is none."""

        async def read() -> Event | None:
            item = await self.log.find_event(event_id)
            return None if item is None else (await self._events([item]))[0]

        return await self._patiently(read)

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""
        return await self._patiently(self.log.last_position)

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

        Appends of this process are seen at once, others' within the lesser of `poll_s` and the store's.
        """

        async def read(after: int) -> Following:
            events = await self._read_log(after, batch_size)
            end = events[-1].global_position if events else after
            full = len(events) == batch_size
            return Following(events if query is None else [each for each in events if query.matches(each)], end, full)

        return LogSubscription(
            self.log, read, from_position=from_position, poll_s=poll_s, retry_s=self._retry_s, on_caught_up=on_caught_up
        )

    async def load_checkpoint(self, subscription_id: str) -> int:
        """Return the position saved under this name, 0 if none was."""
        item = await self._patiently(partial(self._table.get, checkpoint_key(subscription_id)))
        return 0 if item is None else int(item["position"])

    async def save_checkpoint(self, subscription_id: str, last_position: int) -> None:
        """Save how far a subscription has come; a lower position than the saved one is ignored."""
        save = partial(
            self._table.update,
            checkpoint_key(subscription_id),
            values={"position": last_position},
            condition="attribute_not_exists(PK) OR #s0 < :s0",
        )
        await self._patiently(save)

    async def load_snapshot(self, stream_id: str, *, schema_version: int = 1) -> Snapshot | None:
        """Return the last snapshot of a stream's state, None if there is none of this schema version."""
        item = await self._patiently(partial(self._table.get, snapshot_key(stream_id)))
        if item is None or item["schema_version"] != schema_version:
            return None
        created_at = datetime.fromisoformat(item["created_at"])
        return Snapshot(stream_id, item["version"], schema_version, _read_json.decode(item["state"]), created_at)

    async def save_snapshot(
        self, stream_id: str, stream_type: str, state: Mapping[str, Any], *, version: int, schema_version: int = 1
    ) -> None:
        """Save a stream's state at a version; see `EventStore.save_snapshot`.

        Raises:
            InvalidEvent: the state is not JSON, or larger than an item of DynamoDB.
        """
        try:
            text = _write_json.encode(state).decode()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidEvent(f"the snapshot is not JSON: {error}", stream_id=stream_id) from error
        if len(text.encode()) > self._max_event_bytes:
            raise InvalidEvent(f"the snapshot has more than {self._max_event_bytes:,} bytes", stream_id=stream_id)
        values = {
            "schema_version": schema_version, "version": version, "state": text, "created_at": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        save = partial(
            self._table.update,
            snapshot_key(stream_id),
            values=values,
            condition="attribute_not_exists(PK) OR #s0 < :s0 OR (#s0 = :s0 AND #s1 < :s1)",
        )
        await self._patiently(save)

    async def _append(self, appends: Sequence[StreamAppend], condition: AppendCondition | None) -> list[list[Event]]:
        now = rfc3339_now()
        try:
            request = prepare(self._codec, appends, condition, now=now, max_event_bytes=self._max_event_bytes)
        except UnknownEventType:  # somebody else may have registered it since we looked
            await self._load_types()
            request = prepare(self._codec, appends, condition, now=now, max_event_bytes=self._max_event_bytes)
        check_size(request)
        outcomes = await self._appender.send(request)
        if outcomes[0].outcome == "duplicate":
            copies = []
            for part, outcome in zip(request.parts, outcomes, strict=True):
                first = outcome.version or 0
                copies.append(await self.read_stream(part.stream_id, first, to_version=first + len(part.encoded) - 1))
            return copies
        copies = recorded(request, outcomes)
        return copies if self._as_written else [self._codec.upcast(each) for each in copies]

    def _same(self, item: Item, each: EncodedEvent) -> bool:
        """Tell whether an event is recorded as it is given. Equal data can have other bytes, but not under another schema id."""
        if item["event_type"] != each.event_type or item["payload"][:5] != each.payload[:5]:
            return False
        return item["payload"] == each.payload or self._codec.decode(item["payload"]) == each.data

    async def _unmet(self, request: AppendRequest, head: LogHead) -> int:
        """Return the position of the first event up to the log's head that a request's condition forbids, 0 if there is none."""
        condition = request.condition
        assert condition is not None
        found = await self.read(condition.query, from_position=condition.after, to_position=head.position, limit=1)
        return found[0].global_position if found else 0

    async def _load_types(self) -> None:
        self._codec.add(await self._patiently(partial(load_pinned_types, self._table)))

    async def _read_log(self, after: int, limit: int) -> list[Event]:
        end = min(await self.log.last_position(), after + max(limit, 0))
        return await self._read_range(after, end)

    async def _read_range(self, after: int, end: int) -> list[Event]:
        return await self._events(await self.log.read_items(after, end))

    async def _patiently(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do it again while DynamoDB is away, for `retry_s` seconds."""
        backoff = Backoff(give_up_after_s=self._retry_s)
        while True:
            try:
                return await work()
            except Unavailable as error:
                await wait_or_raise(backoff, error)

    async def _events(self, items: Sequence[Item]) -> list[Event]:
        try:
            events = [self._event(item) for item in items]
        except UnknownSchemaId:
            self._codec.add(await load_pinned_types(self._table))
            events = [self._event(item) for item in items]
        return events if self._as_written else self._codec.upcast(events)

    def _event(self, item: Item) -> Event:
        event = stored(item).decoded(self._codec.decode(item["payload"]))
        return msgspec.structs.replace(event, tags=tuple(item["tags"])) if "tags" in item else event
