"""KurrentEventStore: an event store over any server that speaks EventStoreDB's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NoReturn
from uuid import UUID

import grpc
import msgspec

from ...schemas import (
    OPAQUE,
    Codec,
    ConcurrencyError,
    Event,
    EventIdTaken,
    EventspineError,
    EventType,
    InvalidEvent,
    SchemaError,
)
from ...schemas.codec import PinnedType
from ...schemas.event import rfc3339_now
from ...schemas.upcasting import Upcaster
from ..batch import Part, prepare
from ..paging import iterate_stream
from ..protocol import ExpectedVersion, Snapshot, StreamAppend
from ..query import AppendCondition, Query
from .appends import Appended
from .asking import END, all_request, filter_for, read_seen, stream_request
from .batching import Batches
from .connection import KurrentConnection, error_of
from .envelope import Seen, check_own_metadata, envelope_of, event_of, proposal, record
from .faults import expected_code
from .kept import Slots, patiently
from .matching import matches
from .messages import message_class
from .read_back import ReadBack
from .subscription import KurrentSubscription

__all__ = ["KurrentEventStore"]

_SessionPart = message_class("SessionPart")
_SessionResponse = message_class("SessionResponse")
_RevisionConflict = message_class("RevisionConflict")
_Status = message_class("Status")

_END = 2**63 - 1
_write_json = msgspec.json.Encoder()


class KurrentEventStore:
    """An `EventStore` on a KurrentDB or EventStoreDB, or on `eventspine serve kurrent`. `async with` it: it owns a call.

        async with KurrentConnection("esdb://localhost:2113?tls=false") as connection:
            async with KurrentEventStore(connection) as store:
                await store.register([ORDER_PLACED])

    Version = revision + 1. The global position is the commit position: dense on a door of ours, but not on a KurrentDB.
    Nothing there keeps schemas: each program registers the event types that it appends and reads; events of others come as their
    JSON's fields. `max_event_bytes` bounds data plus metadata of one event; `retry_s` is how long an append or read tries again
    while the server is away.
    """

    def __init__(self, connection: KurrentConnection, *, max_event_bytes: int = 1_000_000, retry_s: float = 30.0) -> None:
        self._connection = connection
        self._max_event_bytes = max_event_bytes
        self._retry_s = retry_s
        self._codec = Codec()
        self._pinned: dict[tuple[str, int], PinnedType] = {}
        self._batches = Batches(connection)
        self._read_back = ReadBack(connection)
        self._slots = Slots(connection, self._batches, retry_s=retry_s)
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}
        self._pin([OPAQUE])
        self._codec.add(self._pinned.values())

    async def __aenter__(self) -> KurrentEventStore:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._batches.aclose()
        await self._read_back.aclose()

    async def register(self, event_types: Sequence[EventType], upcasters: Sequence[Upcaster] = ()) -> None:
        """Declare event types, for this store object alone: the server knows none.

        Raises:
            SchemaError: two definitions contradict each other; an older version can't be read as the newest; or a type has
                personal fields, whose keys only Postgres keeps.
        """
        for each in event_types:
            if each.personal:
                raise SchemaError(f"{each.name} has personal fields, whose keys are kept in Postgres: they have no place here")
            known = self._pinned.get((each.name, each.schema_version))
            if known is not None and known.event_type.fingerprint != each.fingerprint:
                raise SchemaError(f"{each.name} version {each.schema_version} was given with another schema before")
        before = dict(self._pinned)
        self._pin(event_types)
        try:
            self._codec.add(self._pinned.values(), declared=event_types, upcasters=upcasters)
        except SchemaError:
            self._pinned = before
            raise

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

        Appends of one store object to one stream go one after another, in the order of the calls; those to different streams
        share a call, without waiting for each other. The recorded copies are read back from the server.

        The protocol knows event ids at the place where an append expects them: the same events at another version are not found.

        Raises (beside `EventStore.append`):
            EventspineError: a condition is given: the protocol has none.
            SettingsError: the server refuses this user.
        """
        _refuse_condition(condition)
        part = self._prepared([StreamAppend(stream_id, stream_type, events, expected_version)])[0]
        messages = [proposal(each) for each in part.encoded]
        async with self._turn([stream_id]):
            appended = await patiently(lambda: self._batches.send(stream_id, expected_version, messages), self._retry_s)
            return await self._recorded(part, appended)

    async def append_streams(
        self, appends: Sequence[StreamAppend], *, condition: AppendCondition | None = None
    ) -> list[list[Event]]:
        """Append to several streams, all or none; see `EventStore.append_streams`. Needs KurrentDB 25.1, or a door of ours.

        Raises: as `append`.
        """
        _refuse_condition(condition)
        if not isinstance(appends, Sequence) or not appends or not all(isinstance(each, StreamAppend) for each in appends):
            raise InvalidEvent("append_streams takes a list of StreamAppend(stream_id, stream_type, events, expected_version)")
        parts = self._prepared(appends)
        repeated = len({part.stream_id for part in parts}) < len(parts)
        if repeated:
            raise InvalidEvent("a stream is named twice; give its events in one StreamAppend")
        content = [
            _SessionPart(
                stream=part.stream_id,
                records=[record(each) for each in part.encoded],
                expected_revision=expected_code(part.expected),
            ).SerializeToString()
            for part in parts
        ]
        async with self._turn(sorted(part.stream_id for part in parts)):
            answer = await patiently(lambda: self._send_session(content, parts), self._retry_s)
            return [
                await self._recorded(part, Appended(each.stream_revision + 1, each.position))
                for part, each in zip(parts, answer.output, strict=True)
            ]

    async def read_stream(
        self,
        stream_id: str,
        from_version: int = 0,
        limit: int | None = None,
        *,
        to_version: int | None = None,
        backwards: bool = False,
    ) -> list[Event]:
        """Return a stream's events with `from_version <= version <= to_version`, in order, or the last first.

        What the stream's metadata hide (`$maxCount`, `$maxAge`, `$tb`) is not among them.
        """
        first, last = max(from_version, 1), _END if to_version is None else to_version
        most = min(_END if limit is None else limit, last - first + 1)
        if most <= 0:
            return []
        if backwards:
            request = stream_request(stream_id, END if last == _END else last - 1, backwards=True, limit=most)
        else:
            request = stream_request(stream_id, first - 1, backwards=False, limit=most)

        async def collect() -> list[Event]:
            seen = [each async for each in read_seen(self._connection, request) if first <= each.revision + 1 <= last]
            return self._events(seen)

        return await patiently(collect, self._retry_s)

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
        return iterate_stream(self, stream_id, max(from_version, 1), last, backwards=backwards, batch_size=batch_size)

    async def read_all(self, from_position: int = 0, limit: int = 1000) -> list[Event]:
        """Return at most `limit` events of the log with `global_position > from_position`, in order; none of the system's own.

        On a KurrentDB, give positions that events have: others are none to it.
        """
        return await self.read(Query(), from_position=from_position, limit=limit)

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

        The server filters by event types or by categories, if every item of the query names some; all else is looked at here,
        event by event. Backwards, it begins at the end of the log: there may be no event at `to_position`.
        """
        if not isinstance(query, Query):
            raise InvalidEvent(f"a query is made by Query(QueryItem(…), …), not {type(query).__name__}")
        if limit is not None and limit <= 0:
            return []
        request = all_request(END if backwards else max(from_position, 0), backwards=backwards, wanted=filter_for(query))

        async def collect() -> list[Event]:
            found: list[Seen] = []
            async for seen in read_seen(self._connection, request):
                if (seen.position <= from_position) if backwards else (to_position is not None and seen.position > to_position):
                    break
                if seen.position <= from_position or (to_position is not None and seen.position > to_position):
                    continue
                if matches(query, seen, envelope_of(seen)):
                    found.append(seen)
                    if len(found) == limit:
                        break
            return self._events(found)

        return await patiently(collect, self._retry_s)

    async def read_event(self, event_id: UUID) -> NoReturn:
        """Refuse: the protocol finds no event by its id.

        Raises:
            EventspineError: always.
        """
        raise EventspineError("EventStoreDB's protocol finds no event by its id; keep its stream and version, and read those")

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""

        async def look() -> int:
            async for seen in read_seen(self._connection, all_request(END, backwards=True)):
                if matches(None, seen, envelope_of(seen)):
                    return seen.position
            return 0

        return await patiently(look, self._retry_s)

    def subscribe(self, *, query: Query | None = None, from_position: int = 0, batch_size: int = 1000) -> KurrentSubscription:
        """Yield the log after `from_position`, then new events as they come; see `EventStore.subscribe`.

        The transport bounds what is read ahead, and not `batch_size`.
        """
        return KurrentSubscription(self._connection, self._codec, query=query, from_position=from_position, retry_s=self._retry_s)

    async def load_checkpoint(self, subscription_id: str) -> int:
        """Return the position saved under this name, 0 if none was."""
        kept = await patiently(lambda: self._slots.load(_checkpoint(subscription_id)), self._retry_s)
        return 0 if kept is None else int(kept.document["position"])

    async def save_checkpoint(self, subscription_id: str, last_position: int) -> None:
        """Save how far a subscription has come; a lower position than the saved one is ignored."""
        document = _write_json.encode({"position": last_position})
        save = self._slots.save(_checkpoint(subscription_id), document, lambda kept: bool(kept["position"] < last_position))
        await save

    async def load_snapshot(self, stream_id: str, *, schema_version: int = 1) -> Snapshot | None:
        """Return the last snapshot of a stream's state, None if there is none of this schema version."""
        kept = await patiently(lambda: self._slots.load(_snapshot(stream_id)), self._retry_s)
        if kept is None or kept.document["schema_version"] != schema_version:
            return None
        return Snapshot(stream_id, kept.document["version"], schema_version, kept.document["state"], kept.created_at)

    async def save_snapshot(
        self, stream_id: str, stream_type: str, state: Mapping[str, Any], *, version: int, schema_version: int = 1
    ) -> None:
        """Save a stream's state at a version; see `EventStore.save_snapshot`.

        Raises:
            InvalidEvent: the state is not JSON, or larger than the server takes.
        """
        try:
            document = _write_json.encode({"schema_version": schema_version, "version": version, "state": state})
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidEvent(f"the snapshot is not JSON: {error}", stream_id=stream_id) from error
        await self._slots.save(
            _snapshot(stream_id),
            document,
            lambda kept: bool((kept["schema_version"], kept["version"]) < (schema_version, version)),
        )

    def _pin(self, event_types: Sequence[EventType]) -> None:
        """Give event types the ids under which the codec knows them; they are written nowhere."""
        for each in event_types:
            self._pinned.setdefault((each.name, each.schema_version), PinnedType(len(self._pinned) + 1, each))

    def _prepared(self, appends: Sequence[StreamAppend]) -> tuple[Part, ...]:
        request = prepare(self._codec, appends, None, now=rfc3339_now(), max_event_bytes=self._max_event_bytes)
        for part in request.parts:
            for each in part.encoded:
                check_own_metadata(each, part.stream_id)
        return request.parts

    @asynccontextmanager
    async def _turn(self, stream_ids: Sequence[str]) -> AsyncIterator[None]:
        """Wait for the appends to these streams that were called before. Names are given in one order: nobody waits in a ring."""
        async with AsyncExitStack() as held:
            for stream_id in stream_ids:
                lock, users = self._turns.get(stream_id) or (asyncio.Lock(), 0)
                self._turns[stream_id] = (lock, users + 1)
                held.callback(self._end_turn, stream_id)
                await held.enter_async_context(lock)
            yield

    def _end_turn(self, stream_id: str) -> None:
        lock, users = self._turns[stream_id]
        if users == 1:
            del self._turns[stream_id]
        else:
            self._turns[stream_id] = (lock, users - 1)

    async def _recorded(self, part: Part, appended: Appended) -> list[Event]:
        """Read back what an append recorded, or a repetition of it found.

        Raises:
            EventIdTaken: the server took it for a repetition, and what is there has other data.
        """
        first = appended.version - len(part.encoded) + 1
        request = stream_request(part.stream_id, first - 1, backwards=False, limit=len(part.encoded))

        async def collect() -> list[Seen]:
            if len(part.encoded) == 1 and appended.position:  # of more, the protocol does not say where the first one is
                seen = await self._read_back.at(appended.position)
                if seen is not None and (seen.name, seen.revision + 1) == (part.stream_id, first):
                    return [seen]
            return [each async for each in read_seen(self._connection, request)]

        written = {seen.revision + 1: seen for seen in await patiently(collect, self._retry_s)}
        copies = []
        for version, each in enumerate(part.encoded, first):
            seen = written.get(version)
            if seen is None:  # the stream's metadata hide it already
                event = Event(
                    event_type=each.event_type, data=each.data, metadata=each.metadata, event_id=each.event_id, tags=each.tags,
                    stream_id=part.stream_id, schema_version=each.schema_version, version=version,
                )  # fmt: skip
            else:
                event = event_of(self._codec, seen, envelope_of(seen))
                given = (each.event_id, each.event_type, each.schema_version, each.data)
                if (event.event_id, event.event_type, event.schema_version, event.data) != given:
                    raise EventIdTaken(part.stream_id, event_ids=sorted(str(one.event_id) for one in part.encoded))
            copies.append(event)
        return self._codec.upcast(copies)

    async def _send_session(self, content: list[bytes], parts: Sequence[Part]) -> Any:
        try:
            return _SessionResponse.FromString(await self._connection.append_session(content))
        except grpc.aio.AioRpcError as error:
            status = _Status.FromString(dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b""))
            for detail in status.details:
                kind = detail.type_url.rpartition(".")[2]
                if kind == "StreamRevisionConflictErrorDetails":
                    conflict = _RevisionConflict.FromString(detail.value)
                    expected = next(part.expected for part in parts if part.stream_id == conflict.stream)
                    actual = max(conflict.actual_revision + 1, 0)
                    raise ConcurrencyError(conflict.stream, expected=expected, actual=actual) from error
                if kind in ("AppendRecordSizeExceededErrorDetails", "StreamTombstonedErrorDetails"):
                    raise InvalidEvent(status.message) from error
            raise error_of(error) from error

    def _events(self, seen: Sequence[Seen]) -> list[Event]:
        return self._codec.upcast([event_of(self._codec, each, envelope_of(each)) for each in seen])


def _refuse_condition(condition: AppendCondition | None) -> None:
    if condition is not None:
        raise EventspineError("EventStoreDB's protocol has no conditions: an append expects a version of its stream, and no more")


def _checkpoint(subscription_id: str) -> str:
    return f"eventspine checkpoint-{subscription_id}"


def _snapshot(stream_id: str) -> str:
    return f"eventspine snapshot-{stream_id}"
