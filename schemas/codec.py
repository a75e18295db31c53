"""Event data to bytes and back: Avro in the Confluent wire format.

Source: the wire format is a zero byte, the schema id as a 4-byte big-endian integer, then the Avro binary encoding
(https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time
from functools import partial
from io import BytesIO
from math import isinf
from typing import Any, NamedTuple

import msgspec
from fastavro import schemaless_reader, schemaless_writer
from fastavro.validation import ValidationError, validate

from .errors import DecodeError, InvalidEvent, SchemaError, UnknownEventType
from .event_type import EventType
from .reader import compile_reader

__all__ = ["Codec", "Encoded", "PinnedType", "UnknownSchemaId", "check_new_definition", "has_nul", "json_of", "schema_id_of"]

_HEADER = struct.Struct(">bI")
_json = msgspec.json.Encoder()


class UnknownSchemaId(DecodeError):
    """The id may have been registered since the registered schemas were loaded: load them again, once."""


class PinnedType(NamedTuple):
    """An event type together with the schema id that it keeps for ever."""

    schema_id: int
    event_type: EventType


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """What is stored of an event's data: `payload` is the truth, `json` is for people and queries.

    `data` is the payload decoded again: what every reader will see (defaults filled in, numbers in the schema's type).
    """

    payload: bytes
    json: str
    data: dict[str, Any]
    schema_version: int


class Codec:
    """The event types known to this process, by name and by schema id. No I/O: whoever owns it adds what it loads."""

    def __init__(self) -> None:
        self._by_id: dict[int, PinnedType] = {}
        self._by_name: dict[tuple[str, int], PinnedType] = {}
        self.readers: dict[bytes, Callable[[bytes], dict[str, Any]]] = {}
        """What reads a payload with these first five bytes, if it fits its schema; made by `decode` as they are needed."""
        self.holds_personal = False
        """Whether some known type has personal fields; see `eventspine.schemas.privacy`."""

    def add(self, pinned: Iterable[PinnedType]) -> None:
        """Learn event types. The highest version of a name is the one that events without a schema version get."""
        for entry in pinned:
            name, version = entry.event_type.name, entry.event_type.schema_version
            self._by_id[entry.schema_id] = entry
            self.holds_personal = self.holds_personal or bool(entry.event_type.personal)
            self._by_name[name, version] = entry
            newest = self._by_name.get((name, 0))
            if newest is None or newest.event_type.schema_version <= version:
                self._by_name[name, 0] = entry

    def event_type(self, name: str, schema_version: int) -> EventType | None:
        """Return an event type in a version, 0 = the newest; None if it is not known."""
        entry = self._by_name.get((name, schema_version))
        return None if entry is None else entry.event_type

    def knows(self, event_type: str, schema_version: int) -> bool:
        return (event_type, schema_version) in self._by_name

    def knows_id(self, schema_id: int) -> bool:
        return schema_id in self._by_id

    def pinned(self) -> list[PinnedType]:
        """All event types known, by schema id."""
        return [self._by_id[schema_id] for schema_id in sorted(self._by_id)]

    def encode(self, event_type: str, schema_version: int, data: Mapping[str, Any]) -> Encoded:
        """Validate data by encoding it; `schema_version` 0 is the newest.

        The bytes are decoded again at once: it proves that they can be read, gives the caller what readers will see, and
        finds what Avro's encoder would change in silence (5.5 in a long becomes 5, any object in a boolean becomes true).

        Raises:
            UnknownEventType: no such type or version.
            InvalidEvent: the data does not fit; the field is named.
        """
        pinned = self._by_name.get((event_type, schema_version))
        if pinned is None:
            raise UnknownEventType(self._advice(event_type, schema_version), event_type=event_type)
        schema = pinned.event_type.parsed
        buffer = BytesIO(_HEADER.pack(0, pinned.schema_id))
        buffer.seek(5)
        try:
            schemaless_writer(buffer, schema, data, strict_allow_default=True)
            payload = buffer.getvalue()
            decoded = self.decode(payload)
            # 2**31 in an "int" is written, and read again by fastavro; readers in other languages refuse it.
            if decoded != data or (pinned.event_type.holds_int and _holds_large_int(decoded)):
                _explain_difference(data, decoded, schema)
            text = _json.encode(decoded)
        except InvalidEvent as refused:
            raise InvalidEvent(refused.reason, event_type=event_type) from refused.__cause__
        except Exception as error:  # fastavro raises whatever the conversion of a value raises
            raise InvalidEvent(_explain(data, schema, error), event_type=event_type) from error
        if has_nul(text, decoded):
            raise InvalidEvent("a text in data contains a NUL character, which Postgres can't store", event_type=event_type)
        return Encoded(payload, text.decode(), decoded, pinned.event_type.schema_version)

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Read bytes in the Confluent wire format by the schema that wrote them.

        Raises:
            DecodeError: foreign or truncated bytes, or a schema id that is not known here.
        """
        read = self.readers.get(payload[:5])
        if read is not None:
            try:
                return read(payload)
            except Exception:  # noqa: S110 - fastavro says what is wrong, below
                pass
        schema_id = schema_id_of(payload)
        pinned = self._by_id.get(schema_id)
        if pinned is None:
            raise UnknownSchemaId(f"schema id {schema_id} is not registered in this store")
        by_fastavro = partial(_read, schema_id, pinned.event_type.parsed)
        if read is None:
            self.readers[payload[:5]] = compile_reader(pinned.event_type.parsed, offset=5) or by_fastavro
        return by_fastavro(payload)

    def _advice(self, event_type: str, schema_version: int) -> str:
        versions = sorted(version for name, version in self._by_name if name == event_type and version)
        if versions:
            return f"schema version {schema_version} is not registered; registered are {versions}"
        return (
            "no schema is registered for this event type; give it to eventspine.connect(…, event_types=[…]) "
            "or register it with `eventspine schema register FILE.avsc`"
        )


def _read(schema_id: int, schema: Any, payload: bytes) -> dict[str, Any]:
    buffer = BytesIO(payload)
    buffer.seek(5)
    try:
        data = schemaless_reader(buffer, schema, None)
    except Exception as error:  # fastavro raises EOFError, IndexError, UnicodeDecodeError, struct.error, …
        raise DecodeError(f"{len(payload)} bytes do not fit schema id {schema_id}: {error!r}") from error
    if buffer.tell() != len(payload):
        raise DecodeError(f"{len(payload) - buffer.tell()} bytes are left over behind the data of schema id {schema_id}")
    assert isinstance(data, dict)
    return data


def json_of(data: Mapping[str, Any]) -> bytes:
    """Return decoded data as JSON, as `event_data` holds it for people."""
    return _json.encode(data)


def schema_id_of(payload: bytes) -> int:
    """Return the schema id in front of Confluent-framed bytes.

    Raises:
        DecodeError: the bytes are not in that format.
    """
    if len(payload) < 5 or payload[0] != 0:
        raise DecodeError(f"not in the Confluent wire format: {len(payload)} bytes starting with {payload[:5].hex()!r}")
    return int.from_bytes(payload[1:5], "big")


def _explain(data: Any, schema: Any, error: Exception) -> str:
    """Say which field does not fit; fall back on the encoder's own words."""
    try:
        validate(data, schema, raise_errors=True, strict=False)
    except ValidationError as invalid:
        return "data does not fit its schema: " + "; ".join(
            f"{fault.field}: {fault.datum!r} is no {fault.schema}" for fault in invalid.errors[:3]
        )
    except Exception as other:  # values that even the validator can't look at
        return f"data does not fit its schema: {other}"
    return f"data does not fit its schema: {error}"


def _explain_difference(data: Any, decoded: Any, schema: Any) -> None:
    """Let pass what encoding may change (defaults, float precision, tuples); refuse what it would falsify.

    Raises:
        InvalidEvent: a value that is not of its field's type, or that would mean something else.
    """
    # Without errors to raise it takes a tenth of the time: with them, each branch of a union that does not fit makes one.
    if not validate(data, schema, raise_errors=False, strict=False):
        raise InvalidEvent(_explain(data, schema, InvalidEvent("a value is not of its field's type")))
    falsified = _falsified(data, decoded, "")
    if falsified:
        raise InvalidEvent(f"data does not fit its schema: {falsified}")


def _falsified(data: Any, decoded: Any, path: str) -> str:
    """Return the path of the first value that means something else after encoding, and why; "" if there is none.

    fastavro takes a naive datetime for local time, so that the stored instant would depend on the machine; it drops the
    offset of an aware one in a local time, and the time of a datetime in a date.
    """
    inner: list[tuple[Any, Any, str]] = []
    if isinstance(data, (datetime, time)) and isinstance(decoded, (datetime, time)):
        if data.tzinfo is None and decoded.tzinfo is not None:
            return f"{path} is a naive datetime; use an aware one"
        if data.tzinfo is not None and decoded.tzinfo is None:
            return f"{path} is an aware {type(data).__name__}, and its field holds local time; use a naive one"
    elif isinstance(data, datetime) and isinstance(decoded, date):
        return f"{path} is a datetime, and its field holds a date; use datetime.date()"
    elif isinstance(data, (int, float)) and isinstance(decoded, float):
        if data != decoded and (isinstance(data, int) or isinf(decoded)):  # 0.1 may become the nearest float
            return f"{path} is a number that its field, a float, can't hold"
    elif isinstance(data, Mapping) and isinstance(decoded, Mapping):
        inner = [(value, decoded.get(key), f"{path}.{key}".lstrip(".")) for key, value in data.items()]
    elif isinstance(data, (list, tuple)) and isinstance(decoded, (list, tuple)):
        inner = [(*pair, f"{path}[{n}]") for n, pair in enumerate(zip(data, decoded, strict=False))]
    return next(filter(None, (_falsified(*each) for each in inner)), "")


def _holds_large_int(value: Any) -> bool:
    """Tell whether some number is beyond 32 bits."""
    if isinstance(value, int):
        return not -(2**31) <= value < 2**31
    if isinstance(value, dict):
        return any(map(_holds_large_int, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_large_int, value))


def has_nul(text: bytes, value: Any) -> bool:
    """Tell whether a value, whose JSON is `text`, contains a NUL character, which jsonb can't hold."""
    return b"\\" in text and b"\\u0000" in text and _contains_nul(value)


def _contains_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, Mapping):
        return any(_contains_nul(key) or _contains_nul(inner) for key, inner in value.items())
    return isinstance(value, (list, tuple)) and any(map(_contains_nul, value))


def check_new_definition(known: EventType, offered: EventType) -> None:
    """Check that an event type offered under a registered name and version is the registered one.

    Raises:
        SchemaError: the definitions differ.
    """
    if known.fingerprint != offered.fingerprint:
        raise SchemaError(
            f"{offered.name} version {offered.schema_version} is registered with another schema; events that were written "
            f"with it must stay readable: give the changed schema version {known.schema_version + 1}"
        )
