"""The answer that carries an event, written byte by byte: reads send little else, and protobuf's classes take longer.

Source: https://protobuf.dev/programming-guides/encoding/; tests compare it with what the classes of proto/streams.proto write.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from .events import Recorded
from .reading import Item

__all__ = ["event_frame"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SMALL = [bytes([number]) for number in range(128)]
_MOST_KINDS = 10_000
_kinds: dict[tuple[str, str], bytes] = {}


def event_frame(item: Item, *, structured: bool) -> bytes:
    """Return a serialised ReadResponse with an event, a link, or both; ids as two halves or as text."""
    parts = []
    if item.event is not None:
        parts.append(_sized(b"\x0a", _record(item.event, structured=structured)))
    if item.link is not None:
        parts.append(_sized(b"\x12", _record(item.link, structured=structured)))
    parts.append(b"\x18" + _varint(item.place.position))
    return _sized(b"\x0a", b"".join(parts))


def _record(recorded: Recorded, *, structured: bool) -> bytes:
    event_id, name, version, position, event_type, content_type, data, metadata, created_at = recorded
    if structured:
        halves = b"\x08" + _varint(event_id.int >> 64) + b"\x10" + _varint(event_id.int & (2**64 - 1))
        identifier = _sized(b"\x0a", _sized(b"\x0a", halves))
    else:
        identifier = b"\x0a\x26\x12\x24" + str(event_id).encode()
    kind = _kinds.get((event_type, content_type)) or _kind(event_type, content_type)
    ticks = b"%d" % ((created_at - _EPOCH) // _MICROSECOND * 10)
    place = _varint(position)
    return b"".join(
        (
            identifier,
            _sized(b"\x12", _sized(b"\x1a", name.encode())),
            b"\x18", _varint(version - 1),
            b"\x20", place,
            b"\x28", place,
            kind,
            _sized(b"\x32", b"\x0a\x07created" + _sized(b"\x12", ticks)),
            _sized(b"\x3a", metadata),
            _sized(b"\x42", data),
        )
    )  # fmt: skip


def _kind(event_type: str, content_type: str) -> bytes:
    """Return the two entries of the metadata that all events of a type share."""
    if len(_kinds) >= _MOST_KINDS:
        _kinds.clear()
    entries = (
        b"\x0a\x04type" + _sized(b"\x12", event_type.encode()),
        b"\x0a\x0ccontent-type" + _sized(b"\x12", content_type.encode()),
    )
    kind = _kinds[event_type, content_type] = b"".join(_sized(b"\x32", entry) for entry in entries)
    return kind


def _sized(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    if number < 128:
        return _SMALL[number]
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)
