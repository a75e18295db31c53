"""Events between a client of ours and a server of the protocol: data as JSON, the envelope in the client's metadata.

The metadata of an event is one JSON object: its own values, `user_id` and `timestamp` as they are, `$correlationId` and
`$causationId` as EventStoreDB calls them, and `$eventspine` with what only this client needs.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from ...schemas import Codec, DecodeError, Event, InvalidEvent, UnknownEventType
from ...schemas.event import rfc3339
from ...schemas.from_json import data_from_json
from ...schemas.opaque import JSON, raw_content, readable
from ..batch import EncodedEvent
from .events import id_of
from .messages import message_class

__all__ = ["Envelope", "Seen", "check_own_metadata", "envelope_of", "event_of", "proposal", "record", "seen_of"]

_Proposed = message_class("Proposed")
_Record = message_class("Record")

_NAMES: Final = {"correlation_id": "$correlationId", "causation_id": "$causationId"}
_OURS: Final = "$eventspine"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNKNOWN_POSITION = 2**64 - 1
_read_json = msgspec.json.Decoder()
_write_json = msgspec.json.Encoder()


class Seen(NamedTuple):
    """An event as a server gives it out."""

    event_id: UUID
    name: str
    revision: int
    position: int
    event_type: str
    content_type: str
    data: bytes
    metadata: bytes
    created_at: datetime


class Envelope(NamedTuple):
    """What an event's metadata says. `schema_version`: None if another program wrote it."""

    metadata: dict[str, Any]
    tags: tuple[str, ...]
    schema_version: int | None


def check_own_metadata(encoded: EncodedEvent, stream_id: str) -> None:
    """Check that no value of the user's own is called as the protocol calls one of ours.

    Raises:
        InvalidEvent: one is.
    """
    taken = encoded.metadata.keys() & {*_NAMES.values(), _OURS}
    if taken:
        reason = f"metadata[{min(taken)!r}] is the protocol's own; give correlation_id and causation_id"
        raise InvalidEvent(reason, stream_id=stream_id, event_type=encoded.event_type)


def proposal(encoded: EncodedEvent) -> Any:
    """Return the message that proposes an event."""
    content_type, data = _content(encoded)
    said, ours = _said(encoded)
    return _Proposed(
        id={"string": str(encoded.event_id)},
        metadata={"type": encoded.event_type, "content-type": content_type},
        custom_metadata=_write_json.encode({**said, _OURS: ours}),
        data=data,
    )


def record(encoded: EncodedEvent) -> Any:
    """Return the message that proposes an event in a session. Its metadata are properties: texts stay texts, and all else goes
    into one, because the protocol's numbers are floats."""
    content_type, data = _content(encoded)
    said, ours = _said(encoded)
    texts = {name: value for name, value in said.items() if isinstance(value, str)}
    ours["metadata"] = {name: value for name, value in said.items() if not isinstance(value, str)}
    properties = {**texts, _OURS: _write_json.encode(ours).decode()}
    return _Record(
        record_id=str(encoded.event_id),
        properties={name: {"string_value": value} for name, value in properties.items()},
        schema={"name": encoded.event_type, "format": 1 if content_type == JSON else 4},
        data=data,
    )


def _content(encoded: EncodedEvent) -> tuple[str, bytes]:
    if encoded.schema_version == 0:  # of a type that is not registered
        return raw_content(encoded.payload)
    return JSON, encoded.json.encode()


def _said(encoded: EncodedEvent) -> tuple[dict[str, Any], dict[str, Any]]:
    ours: dict[str, Any] = {"schema_version": encoded.schema_version}
    if encoded.tags:
        ours["tags"] = encoded.tags
    return {_NAMES.get(name, name): value for name, value in encoded.metadata.items()}, ours


def seen_of(message: Any) -> Seen:
    """Return what a RecordedEvent message holds."""
    headers = message.metadata
    position = message.commit_position
    return Seen(
        event_id=id_of(message.id),
        name=message.stream_identifier.stream_name.decode(),
        revision=message.stream_revision,
        position=0 if position == _UNKNOWN_POSITION else position,
        event_type=headers["type"],
        content_type=headers["content-type"],
        data=message.data,
        metadata=message.custom_metadata,
        created_at=_EPOCH + timedelta(microseconds=int(headers["created"]) // 10),
    )


def envelope_of(seen: Seen) -> Envelope:
    """Return what an event's metadata says. What another program wrote is kept as it is, under our names where it has ours."""
    said: Any = None
    if seen.metadata:
        try:
            said = _read_json.decode(seen.metadata)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            said = {"kurrent": {"metadata_base64": base64.b64encode(seen.metadata).decode()}}
    metadata: dict[str, Any] = dict(said or {})
    ours = metadata.pop(_OURS, None)
    if isinstance(ours, str):
        try:
            ours = _read_json.decode(ours)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            ours = None
    version: int | None = None
    tags: tuple[str, ...] = ()
    if isinstance(ours, dict):  # whoever wrote it: nothing here may fail on it
        given, labels, more = ours.get("schema_version"), ours.get("tags"), ours.get("metadata")
        version = given if type(given) is int and given >= 0 else None
        tags = tuple(label for label in labels if isinstance(label, str)) if isinstance(labels, list) else ()
        metadata |= more if isinstance(more, dict) else {}
    for name, theirs in _NAMES.items():
        value = metadata.pop(theirs, None)
        if isinstance(value, str):
            metadata[name] = value
    metadata.setdefault("timestamp", rfc3339(seen.created_at))
    return Envelope(metadata, tags, version)


def event_of(codec: Codec, seen: Seen, envelope: Envelope) -> Event:
    """Return an event in the schema version that it was written in, its data validated if its type is declared.

    Raises:
        DecodeError: the data does not fit the event type, or is in a schema version that is not declared here.
    """
    schema_version = envelope.schema_version
    if codec.event_type(seen.event_type, 0) is None:
        data: Mapping[str, Any] = readable({"content_type": seen.content_type, "content": seen.data})
    else:
        where = f"{seen.name}@{seen.revision + 1} (event {seen.event_id})"
        known = codec.event_type(seen.event_type, schema_version or 0)
        if known is None:
            raise DecodeError(f"{where}: {seen.event_type} version {schema_version} is not declared here: give it too")
        try:
            decoded = _read_json.decode(seen.data)
            if seen.content_type != JSON or not isinstance(decoded, dict):
                raise DecodeError(f"{where}: {seen.event_type} is a declared event type, and its data no JSON object")
            encoded = codec.encode(known.name, known.schema_version, data_from_json(known, decoded))
        except (msgspec.MsgspecError, ValueError, RecursionError, InvalidEvent, UnknownEventType) as error:
            raise DecodeError(f"{where}: {error}") from error
        data, schema_version = encoded.data, known.schema_version
    return Event(
        event_type=seen.event_type,
        data=data,
        metadata=envelope.metadata,
        event_id=seen.event_id,
        tags=envelope.tags,
        stream_id=seen.name,
        schema_version=schema_version or 0,
        version=seen.revision + 1,
        global_position=seen.position,
        created_at=seen.created_at,
    )
