"""Decisions of an append, without I/O: what a request holds, which requests share a round trip, what their outcomes mean."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from ..schemas import Codec, ConcurrencyError, ConditionFailed, Event, EventIdTaken, InvalidEvent
from ..schemas.codec import has_nul
from ..schemas.event import check_stream_id, check_tags, normalise_metadata
from .protocol import Expected, ExpectedVersion, StreamAppend
from .query import AppendCondition

__all__ = [
    "AppendRequest",
    "EncodedEvent",
    "Outcome",
    "Part",
    "cut_batch",
    "prepare",
    "recorded",
]

_json = msgspec.json.Encoder()
_read_json = msgspec.json.Decoder()


# Thousands of these live at a time under load, and none is ever part of a cycle: they are no business of the garbage collector.


class EncodedEvent(msgspec.Struct, frozen=True, gc=False):
    """One event as the database takes it, and as the caller will get it back."""

    event_id: UUID
    event_type: str
    schema_version: int
    data: dict[str, Any]
    json: str
    metadata: dict[str, Any]
    metadata_json: str
    tags: tuple[str, ...]
    payload: bytes


class Part(msgspec.Struct, frozen=True, gc=False):
    """What an append writes to one stream."""

    stream_id: str
    stream_type: str
    expected: ExpectedVersion
    encoded: tuple[EncodedEvent, ...]


class AppendRequest:
    """One append, ready to be sent, and the future on which its caller waits."""

    __slots__ = ("bytes", "condition", "done", "events", "ids", "parts", "tags")

    def __init__(self, parts: tuple[Part, ...], condition: AppendCondition | None = None) -> None:
        self.parts = parts
        self.condition = condition
        self.done: asyncio.Future[Sequence[Outcome]] | None = None
        if len(parts) == 1 and len(parts[0].encoded) == 1:  # most are like this
            [only] = parts[0].encoded
            self.events = 1
            self.ids = {only.event_id.int}
            self.tags = set(only.tags) if only.tags else None
            self.bytes = len(only.payload) + len(only.json) + len(only.metadata_json)
            return
        encoded = [each for part in parts for each in part.encoded]
        self.events = len(encoded)
        self.ids = {each.event_id.int for each in encoded}
        self.tags = {tag for each in encoded for tag in each.tags} if any(each.tags for each in encoded) else None
        self.bytes = sum([len(each.payload) + len(each.json) + len(each.metadata_json) for each in encoded])


class Outcome(NamedTuple):
    """What a backend says of a part: the outcomes of store/postgres/functions/append_events.sql."""

    outcome: str
    version: int | None
    position: int | None
    created_at: datetime | None


def prepare(
    codec: Codec,
    appends: Sequence[StreamAppend],
    condition: AppendCondition | None,
    *,
    now: str,
    max_event_bytes: int,
) -> AppendRequest:
    """Validate and encode the events of one append.

    Raises:
        InvalidEvent: what is wrong, with stream and event type.
    """
    parts = tuple([_prepare_part(codec, append, now, max_event_bytes) for append in appends])
    if condition is not None and not isinstance(condition, AppendCondition):
        raise InvalidEvent(f"condition is {type(condition).__name__}; give an AppendCondition")
    request = AppendRequest(parts, condition)
    if len(request.ids) < request.events:
        raise InvalidEvent("two events of this append have the same event_id", stream_id=parts[0].stream_id)
    return request


def _prepare_part(codec: Codec, append: StreamAppend, now: str, max_event_bytes: int) -> Part:
    stream_id, stream_type, events, expected = append
    check_stream_id(stream_id, stream_type)
    if not isinstance(expected, Expected) and (type(expected) is not int or not 0 <= expected < 2**63):
        raise InvalidEvent(
            f"expected_version={expected!r}: give the stream's version (0 for a new stream), ANY, NO_STREAM or STREAM_EXISTS",
            stream_id=stream_id,
        )
    if type(events) is not list and not isinstance(
        events, Sequence
    ):  # an iterator could be consumed only once; we may look twice
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
    return Part(stream_id, stream_type, expected, tuple(encoded))


def _encode(codec: Codec, stream_id: str, event: Event, now: str, max_event_bytes: int) -> EncodedEvent:
    if not isinstance(event, Event):
        raise InvalidEvent(f"events are eventspine.Event objects, not {type(event).__name__}")
    event_id = event.event_id
    if event.stream_id and event.stream_id != stream_id:
        raise InvalidEvent(f"the event names the stream {event.stream_id!r} itself")
    if type(event_id) is not UUID and not isinstance(event_id, UUID):
        raise InvalidEvent(f"event_id is {type(event_id).__name__}; it must be a uuid.UUID")
    if not isinstance(event.event_type, str) or type(event.schema_version) is not int:
        raise InvalidEvent("event_type is a string, and schema_version an integer")
    if not (type(event.data) is dict or isinstance(event.data, Mapping)) or not (
        type(event.metadata) is dict or isinstance(event.metadata, Mapping)
    ):
        raise InvalidEvent("data and metadata are mappings from field names to values")
    data = codec.encode(event.event_type, event.schema_version, event.data)
    metadata: dict[str, Any]
    if not event.metadata:
        metadata, metadata_json = {"timestamp": now}, f'{{"timestamp":"{now}"}}'
    else:
        metadata, metadata_json = _encode_metadata(event.metadata, now)
    size = len(data.payload) + len(metadata_json)
    if size > max_event_bytes // 4 and (size := len(data.payload) + len(metadata_json.encode())) > max_event_bytes:
        raise InvalidEvent(
            f"the event has {size:,} bytes (encoded data and metadata); {max_event_bytes:,} is the limit: store large "
            "content elsewhere and append a reference to it"
        )
    tags = check_tags(event.tags) if event.tags != () else ()
    return EncodedEvent(
        event_id, event.event_type, data.schema_version, data.data, data.json, metadata, metadata_json, tags, data.payload
    )


def _encode_metadata(given: Mapping[str, Any], now: str) -> tuple[dict[str, Any], str]:
    """Return the envelope as it will be read, and as JSON."""
    try:
        text = _json.encode(normalise_metadata(given, now=now))
        metadata: dict[str, Any] = _read_json.decode(text)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InvalidEvent):
            raise
        raise InvalidEvent(f"metadata is not JSON: {error}") from error
    if has_nul(text, metadata):
        raise InvalidEvent("metadata contains a NUL character, which Postgres can't store")
    return metadata, text.decode()


def cut_batch(waiting: deque[AppendRequest], *, max_events: int, max_bytes: int) -> list[AppendRequest]:
    """Take from the front of the queue what goes together in one round trip; at least one request.

    Requests whose caller has gone are dropped. The batch ends before a request
    - that shares an event id with one in the batch: a retry of an append that is still waiting must find it recorded;
    - whose condition matches an event in the batch: it is checked against what is recorded.
    """
    batch: list[AppendRequest] = []
    ids: set[int] = set()
    tags: set[str] = set()
    events = size = 0
    while waiting:
        request = waiting[0]
        if request.done is not None and request.done.done():
            waiting.popleft()
            continue
        if batch and (
            events + request.events > max_events
            or size + request.bytes > max_bytes
            or not ids.isdisjoint(request.ids)
            or (request.condition is not None and _matches(request.condition, batch, tags))
        ):
            break
        batch.append(waiting.popleft())
        ids |= request.ids
        if request.tags is not None:
            tags |= request.tags
        events += request.events
        size += request.bytes
    return batch


def _matches(condition: AppendCondition, batch: list[AppendRequest], tags: set[str]) -> bool:
    """Tell whether a condition matches an event of the batch; `tags` are all tags in it, for a quick no."""
    items = condition.query.items
    if items and not any(tags.issuperset(item.tags) for item in items):
        return False
    return any(
        condition.query.matches(_event(part.stream_id, each, 0, 0, None))
        for request in batch
        for part in request.parts
        for each in part.encoded
    )


def recorded(request: AppendRequest, outcomes: Sequence[Outcome]) -> list[list[Event]]:
    """Return the recorded copies of an append that was written, part by part.

    Raises:
        ConcurrencyError, ConditionFailed, EventIdTaken: it was not.
    """
    copies = []
    for part, outcome in zip(request.parts, outcomes, strict=True):
        kind, version, position, created_at = outcome
        if kind == "appended":
            assert version is not None
            assert position is not None
            copies.append(
                [_event(part.stream_id, each, version + n, position + n, created_at) for n, each in enumerate(part.encoded)]
            )
        elif kind == "conflict":
            raise ConcurrencyError(part.stream_id, expected=part.expected, actual=version or 0)
        elif kind == "unmet":
            assert request.condition is not None
            raise ConditionFailed(part.stream_id, after=request.condition.after, position=position or 0)
        elif kind == "taken":
            raise EventIdTaken(part.stream_id, event_ids=sorted(str(each.event_id) for each in part.encoded))
    return copies


def _event(stream_id: str, each: EncodedEvent, version: int, position: int, created_at: datetime | None) -> Event:
    return Event(
        event_type=each.event_type,
        data=each.data,
        metadata=each.metadata,
        event_id=each.event_id,
        tags=each.tags,
        stream_id=stream_id,
        schema_version=each.schema_version,
        version=version,
        global_position=position,
        created_at=created_at,
    )
