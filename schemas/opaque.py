"""Opaque events: of types that are not registered, as they come through the EventStoreDB door. Their author's bytes are kept.

Such an event is stored under its own type with schema version 0; its payload is Avro of the record below, whatever the type. So
all that goes by a payload's schema id (the relay, consumers, audit, archive) takes it like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from .event_type import EventType

__all__ = ["JSON", "OPAQUE", "Opaque", "encode_opaque", "raw_content", "readable"]

JSON: Final = "application/json"
OPAQUE: Final = EventType.from_schema(
    {
        "type": "record",
        "name": "OpaqueContent",
        "namespace": "eventspine",
        "doc": "The data of an event whose type is not registered, as its author wrote it.",
        "fields": [{"name": "content_type", "type": "string"}, {"name": "content", "type": "bytes"}],
    }
)

_read_json = msgspec.json.Decoder(dict[str, Any])
_write_json = msgspec.json.Encoder()
_FRAME_BYTES = 5


class Opaque(dict[str, Any]):
    """An event's data as bytes: `Event(event_type="Any", data=Opaque("application/json", b'{"a": 1}'))`.

    As a mapping it is what readers of the event see: a JSON object's own fields; of anything else the field `content`, with the
    bytes. If the type is registered by the time of the append, that mapping is validated and stored like any data.
    """

    def __init__(self, content_type: str, content: bytes) -> None:
        super().__init__(readable({"content_type": content_type, "content": content}))
        self.content_type = content_type
        self.content = content


def readable(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record's content as handlers see it: a JSON object's fields, or `{"content": bytes}`."""
    content: bytes = record["content"]
    if record["content_type"] == JSON:
        try:
            data: dict[str, Any] = _read_json.decode(content)
            # What JSON can say and jsonb can't hold is left as bytes: NUL, half a surrogate pair, numbers beyond all bounds.
            if b"\\u0000" not in _write_json.encode(data):
                return data
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
            pass
    return {"content": content}


def encode_opaque(header: bytes, data: Opaque) -> tuple[bytes, str, dict[str, Any]]:
    """Return the payload of data, its JSON for people, and what readers will see. `header` is the frame of OPAQUE's schema id."""
    kind = data.content_type.encode()
    payload = b"".join((header, _length(len(kind)), kind, _length(len(data.content)), data.content))
    decoded = dict(data)
    return payload, _write_json.encode(decoded).decode(), decoded


def raw_content(payload: bytes) -> tuple[str, bytes]:
    """Return content type and content of an opaque event's payload."""
    size, place = _number(payload, _FRAME_BYTES)
    content_type = payload[place : place + size].decode()
    size, place = _number(payload, place + size)
    return content_type, payload[place : place + size]


def _length(size: int) -> bytes:
    """Write a length as Avro does: zigzag, seven bits a byte."""
    rest, written = size << 1, bytearray()
    while rest > 127:
        written.append(rest & 127 | 128)
        rest >>= 7
    written.append(rest)
    return bytes(written)


def _number(payload: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = payload[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number >> 1, place
        shift += 7
