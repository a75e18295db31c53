"""Events on their way in and out: what a client proposed becomes an `Event`, a row of the log what a client reads."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import msgspec

from ...schemas import Event, Opaque
from ...schemas.codec import json_of
from ...schemas.from_json import data_from_json
from ...schemas.opaque import JSON, raw_content
from ..postgres import PostgresEventStore
from .faults import bad_request
from .messages import message_class
from .names import stream_name_of

__all__ = [
    "NAMESPACE",
    "Proposed",
    "Recorded",
    "event_of",
    "id_of",
    "lifted_ids",
    "proposed_of",
    "record_of",
    "recorded_of",
    "replacement_id",
]

_RecordedEvent = message_class("RecordedEvent")
_Id = message_class("Id")
_StreamName = message_class("StreamName")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
NAMESPACE = UUID("6f1f9e0a-6d53-5a8c-9a55-0d4f2f5c7a11")
_KEY = "kurrent"  # in the metadata: what only this door's clients need
_LIFTED = {"$correlationId": "correlation_id", "$causationId": "causation_id"}
_read_json = msgspec.json.Decoder()


class Proposed(NamedTuple):
    """An event as a client sends it."""

    event_id: UUID
    event_type: str
    content_type: str
    data: bytes
    metadata: bytes

    @property
    def size(self) -> int:
        return len(self.data) + len(self.metadata)


class Recorded(NamedTuple):
    """An event as a client reads it; its revision is `version` - 1."""

    event_id: UUID
    name: str
    version: int
    position: int
    event_type: str
    content_type: str
    data: bytes
    metadata: bytes
    created_at: datetime


def proposed_of(message: Any) -> Proposed:
    """Return what an Append or BatchAppend message proposes.

    Raises:
        Fault: the id is none, or the message lacks its type.
    """
    headers = message.metadata
    event_type, content_type = headers.get("type", ""), headers.get("content-type", JSON)
    if not event_type or "\0" in event_type:
        raise bad_request("an event's metadata names its type, without NUL characters")
    return Proposed(id_of(message.id), event_type, content_type, message.data, message.custom_metadata)


def id_of(message: Any) -> UUID:
    """Return the UUID that a message holds in either form.

    Raises:
        Fault: it is none.
    """
    if message.WhichOneof("value") == "structured":
        halves = message.structured
        return UUID(int=(halves.most_significant_bits % 2**64) << 64 | halves.least_significant_bits % 2**64)
    try:
        return UUID(message.string)
    except ValueError as error:
        raise bad_request(f"{message.string[:80]!r} is no UUID") from error


def replacement_id(stream_id: str, event_id: UUID, which: str) -> UUID:
    """Return the id under which an event is stored whose own id is recorded elsewhere. The same call gives the same id."""
    return uuid5(NAMESPACE, f"{stream_id}\0{event_id}\0{which}")


def event_of(store: PostgresEventStore, proposed: Proposed, stored_id: UUID) -> Event:
    """Return the event to append: of a registered type with its data as that type has it, of another with its bytes.

    Raises:
        Fault: the type is registered, and the data is no JSON object.
    """
    metadata = _metadata(proposed, stored_id)
    event_type = store.event_type(proposed.event_type)
    if event_type is None:
        data: Mapping[str, Any] = Opaque(proposed.content_type, proposed.data)
    else:
        try:
            decoded = _read_json.decode(proposed.data)
            if not isinstance(decoded, dict):
                raise ValueError("it is no object")
            data = data_from_json(event_type, decoded)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise bad_request(
                f"{proposed.event_type} is a registered event type, and its data no JSON object: {error}"
            ) from error
    return Event(event_type=proposed.event_type, data=data, metadata=metadata, event_id=stored_id)


def _metadata(proposed: Proposed, stored_id: UUID) -> dict[str, Any]:
    """Return the envelope. The client's own metadata is kept to the byte; ids of correlation and causation are lifted out."""
    metadata: dict[str, Any] = {}
    kept: dict[str, str] = {}
    if proposed.metadata:
        try:
            text = proposed.metadata.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            kept["metadata_base64"] = base64.b64encode(proposed.metadata).decode()
        else:
            kept["metadata"] = text
            if "$c" in text:
                metadata |= lifted_ids(proposed.metadata)
    if stored_id != proposed.event_id:
        kept["id"] = str(proposed.event_id)
    if kept:
        metadata[_KEY] = kept
    return metadata


def lifted_ids(content: bytes) -> dict[str, str]:
    """Return the ids of correlation and causation that a client's metadata names, as `correlation_id` and `causation_id`."""
    try:
        said = _read_json.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    values = {name: said.get(key) for key, name in _LIFTED.items()}
    return {name: value for name, value in values.items() if isinstance(value, str) and "\0" not in value}


async def recorded_of(store: PostgresEventStore, rows: Sequence[Any]) -> list[Recorded]:
    """Return rows of the log, in the columns of sql/events_at.sql, as clients read them: registered types in today's shape."""
    typed = [row for row in rows if row[5]]
    decoded = iter(await store.events_of(typed)) if typed else iter(())
    return [_typed(next(decoded)) if row[5] else _opaque(row) for row in rows]


def _opaque(row: Any) -> Recorded:
    position, event_id, stream_id, event_type, version, _, metadata, _, payload, created_at = row
    content_type, content = raw_content(payload)
    said = _read_json.decode(metadata)
    kept, event_id = _kept(said, event_id)
    return Recorded(
        event_id, stream_name_of(stream_id), version, position, event_type, content_type, content,
        _own_metadata(said) if kept is None else kept, created_at,
    )  # fmt: skip


def _typed(event: Event) -> Recorded:
    kept, event_id = _kept(event.metadata, event.event_id)
    metadata = _own_metadata(event.metadata) if kept is None else kept
    assert event.created_at is not None
    return Recorded(
        event_id, stream_name_of(event.stream_id), event.version, event.global_position, event.event_type, JSON,
        json_of(event.data), metadata, event.created_at,
    )  # fmt: skip


def _kept(metadata: Mapping[str, Any], event_id: Any) -> tuple[bytes | None, UUID]:
    """Return the metadata as its author sent it, None if it came another way, and the event's own id."""
    kept = metadata.get(_KEY)
    if not isinstance(kept, dict):
        return (b"" if len(metadata) == 1 else None), event_id  # only the time of its append
    if "id" in kept:
        event_id = UUID(kept["id"])
    if "metadata_base64" in kept:
        return base64.b64decode(kept["metadata_base64"]), event_id
    return kept.get("metadata", "").encode(), event_id


def _own_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Return the envelope of an event that was appended another way, as clients of this door look for it."""
    said = dict(metadata)
    for key, name in _LIFTED.items():
        if name in said:
            said[key] = said[name]
    return msgspec.json.encode(said)


def record_of(recorded: Recorded, *, structured: bool) -> Any:
    """Return the protocol's message of an event."""
    event_id, name, version, position, event_type, content_type, data, metadata, created_at = recorded
    if structured:
        high, low = event_id.int >> 64, event_id.int & (2**64 - 1)
        halves = {"most_significant_bits": _signed(high), "least_significant_bits": _signed(low)}
        identifier = _Id(structured=halves)
    else:
        identifier = _Id(string=str(event_id))
    ticks = (created_at - _EPOCH) // _MICROSECOND * 10
    return _RecordedEvent(
        id=identifier,
        stream_identifier=_StreamName(stream_name=name.encode()),
        stream_revision=version - 1,
        prepare_position=position,
        commit_position=position,
        metadata={"type": event_type, "created": str(ticks), "content-type": content_type},
        custom_metadata=metadata,
        data=data,
    )


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
