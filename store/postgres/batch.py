"""Decisions of an append, without I/O: what a request holds, which requests share a round trip, what their outcomes mean."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from ...schemas import Codec, ConcurrencyError, Event, EventIdTaken, InvalidEvent
from ...schemas.codec import has_nul
from ...schemas.event import check_stream_id, normalise_metadata
from ..protocol import Expected, ExpectedVersion

__all__ = ["AppendRequest", "Outcome", "arguments", "cut_batch", "prepare", "recorded"]

_json = msgspec.json.Encoder()
_read_json = msgspec.json.Decoder()
_EXPECTED_CODES = {Expected.ANY: -1, Expected.STREAM_EXISTS: -2, Expected.NO_STREAM: 0}


class EncodedEvent(NamedTuple):
    """One event as the database takes it, and the copy that the caller will get."""

    event: Event
    json: str
    metadata_json: str
    payload: bytes


class AppendRequest:
    """One call of append(), ready to be sent, and the future on which its caller waits."""

    __slots__ = ("bytes", "done", "encoded", "expected", "ids", "stream_id", "stream_type")

    def __init__(self, stream_id: str, stream_type: str, expected: ExpectedVersion, encoded: list[EncodedEvent]) -> None:
        self.stream_id = stream_id
        self.stream_type = stream_type
        self.expected = expected
        self.encoded = encoded
        self.ids = {each.event.event_id for each in encoded}
        self.bytes = sum(len(each.payload) + len(each.json) + len(each.metadata_json) for each in encoded)
        self.done: asyncio.Future[Outcome] | None = None


class Outcome(NamedTuple):
    """A row that append_events() returned: see append_events.sql."""

    outcome: str
    version: int | None
    position: int | None
    created_at: datetime | None


def prepare(
    codec: Codec,
    stream_id: str,
    stream_type: str,
    events: Sequence[Event],
    expected: ExpectedVersion,
    *,
    now: str,
    max_event_bytes: int,
) -> AppendRequest:
    """Validate and encode the events of one append.

    Raises:
        InvalidEvent: what is wrong, with stream and event type.
    """
    check_stream_id(stream_id, stream_type)
    if not isinstance(expected, Expected) and (type(expected) is not int or not 0 <= expected < 2**63):
        raise InvalidEvent(
            f"expected_version={expected!r}: give the stream's version (0 for a new stream), ANY, NO_STREAM or STREAM_EXISTS",
            stream_id=stream_id,
        )
    if not isinstance(events, Sequence):  # an iterator could be consumed only once, and we may look twice
        raise InvalidEvent(f"events are given as a list, not as {type(events).__name__}", stream_id=stream_id)
    if not events:
        raise InvalidEvent("an append needs at least one event", stream_id=stream_id)
    encoded = []
    for event in events:
        try:
            encoded.append(_encode(codec, stream_id, event, now, max_event_bytes))
        except InvalidEvent as refused:
            event_type = str(getattr(event, "event_type", ""))
            raise type(refused)(refused.reason, stream_id=stream_id, event_type=event_type) from refused.__cause__
    request = AppendRequest(stream_id, stream_type, expected, encoded)
    if len(request.ids) < len(encoded):
        raise InvalidEvent("two events of this append have the same event_id", stream_id=stream_id)
    return request


def _encode(codec: Codec, stream_id: str, event: Event, now: str, max_event_bytes: int) -> EncodedEvent:
    if not isinstance(event, Event):
        raise InvalidEvent(f"events are eventspine.Event objects, not {type(event).__name__}")
    if event.stream_id and event.stream_id != stream_id:
        raise InvalidEvent(f"the event names the stream {event.stream_id!r} itself")
    if not isinstance(event.event_id, UUID):
        raise InvalidEvent(f"event_id is {type(event.event_id).__name__}; it must be a uuid.UUID")
    if not isinstance(event.event_type, str) or type(event.schema_version) is not int:
        raise InvalidEvent("event_type is a string, and schema_version an integer")
    if not isinstance(event.data, Mapping) or not isinstance(event.metadata, Mapping):
        raise InvalidEvent("data and metadata are mappings from field names to values")
    data = codec.encode(event.event_type, event.schema_version, event.data)
    try:
        metadata = _json.encode(normalise_metadata(event.metadata, now=now))
        metadata_read_back: dict[str, Any] = _read_json.decode(metadata)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InvalidEvent):
            raise
        raise InvalidEvent(f"metadata is not JSON: {error}") from error
    if has_nul(metadata, metadata_read_back):
        raise InvalidEvent("metadata contains a NUL character, which Postgres can't store")
    size = len(data.payload) + len(metadata)
    if size > max_event_bytes:
        raise InvalidEvent(
            f"the event has {size:,} bytes (encoded data and metadata); {max_event_bytes:,} is the limit: store large "
            "content elsewhere and append a reference to it"
        )
    recorded_copy = Event(
        event_type=event.event_type,
        data=data.data,
        metadata=metadata_read_back,
        event_id=event.event_id,
        stream_id=stream_id,
        schema_version=data.schema_version,
    )
    return EncodedEvent(recorded_copy, data.json, metadata.decode(), data.payload)


def cut_batch(waiting: deque[AppendRequest], *, max_events: int, max_bytes: int) -> list[AppendRequest]:
    """Take from the front of the queue what goes together in one round trip; at least one request.

    Requests whose caller has gone are dropped. The batch ends before a request that shares an event id with one in it:
    a retry of an append that is still waiting must find the first one recorded.
    """
    batch: list[AppendRequest] = []
    ids: set[UUID] = set()
    events = size = 0
    while waiting:
        request = waiting[0]
        if request.done is not None and request.done.done():
            waiting.popleft()
            continue
        if batch and (
            events + len(request.encoded) > max_events or size + request.bytes > max_bytes or not ids.isdisjoint(request.ids)
        ):
            break
        batch.append(waiting.popleft())
        ids |= request.ids
        events += len(request.encoded)
        size += request.bytes
    return batch


def arguments(batch: Sequence[AppendRequest]) -> tuple[list[Any], ...]:
    """Lay out a batch as the parameters of append_events(), in their order."""
    streams: dict[str, int] = {}
    stream_types: list[str] = []
    for request in batch:
        if request.stream_id not in streams:
            streams[request.stream_id] = len(streams) + 1
            stream_types.append(request.stream_type)
    encoded = [each for request in batch for each in request.encoded]
    return (
        list(streams),
        stream_types,
        [streams[request.stream_id] for request in batch],
        [request.expected if isinstance(request.expected, int) else _EXPECTED_CODES[request.expected] for request in batch],
        [len(request.encoded) for request in batch],
        [number for number, request in enumerate(batch, 1) for _ in request.encoded],
        [each.event.event_id for each in encoded],
        [each.event.event_type for each in encoded],
        [each.event.schema_version for each in encoded],
        [each.json for each in encoded],
        [each.metadata_json for each in encoded],
        [each.payload for each in encoded],
    )


def recorded(request: AppendRequest, outcome: Outcome) -> list[Event]:
    """Return the recorded copies of an append that was written.

    Raises:
        ConcurrencyError, EventIdTaken: it was not.
    """
    if outcome.outcome == "conflict":
        raise ConcurrencyError(request.stream_id, expected=request.expected, actual=outcome.version or 0)
    if outcome.outcome == "taken":
        raise EventIdTaken(request.stream_id, event_ids=sorted(map(str, request.ids)))
    assert outcome.version is not None
    assert outcome.position is not None
    return [
        Event(
            event_type=each.event.event_type,
            data=each.event.data,
            metadata=each.event.metadata,
            event_id=each.event.event_id,
            stream_id=each.event.stream_id,
            schema_version=each.event.schema_version,
            version=outcome.version + n,
            global_position=outcome.position + n,
            created_at=outcome.created_at,
        )
        for n, each in enumerate(request.encoded)
    ]
