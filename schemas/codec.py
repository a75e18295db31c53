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
from typing import Any, NamedTuple, cast

import msgspec
from fastavro import schemaless_reader, schemaless_writer
from fastavro.validation import validate

from .errors import DecodeError, InvalidEvent, SchemaError, UnknownEventType
from .event import Event
from .event_type import EventType
from .faults import decimal_fault, fault_in_bytes, fault_in_data, path_of_nul
from .opaque import OPAQUE, Opaque, encode_opaque, readable
from .reader import compile_reader
from .upcasting import Upcaster, Upcasting
from .writer import compile_writer

__all__ = ["Codec", "Encoded", "PinnedType", "UnknownSchemaId", "check_new_definition", "has_nul", "json_of", "schema_id_of"]

Encoder = tuple[Callable[[Any], tuple[bytes, dict[str, Any]]], int]  # payload and decoded data of data; its schema version

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
    """The event types known to this process, by name and by schema id. No I/O: whoever owns it adds what it loads.

    What the program declares is today's shape: events without a schema version are written in the highest version that it
    declares of their type, and `upcast` reads all others as that one.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, PinnedType] = {}
        self._by_name: dict[tuple[str, int], PinnedType] = {}
        self.readers: dict[bytes, Callable[[bytes], dict[str, Any]]] = {}
        """What reads a payload with these first five bytes, if it fits its schema; made by `decode` as they are needed."""
        self._encoders: dict[tuple[str, int], Encoder] = {}
        self.holds_personal = False
        """Whether some known type has personal fields; see `eventspine.schemas.privacy`."""
        self._declared: dict[tuple[str, int], EventType] = {}
        self._upcasters: list[Upcaster] = []
        self._upcasting = Upcasting(())

    def add(
        self, pinned: Iterable[PinnedType], *, declared: Iterable[EventType] = (), upcasters: Iterable[Upcaster] = ()
    ) -> None:
        """Learn event types, and those among them (or learnt before) that the program declares, with their upcasters.

        Raises:
            SchemaError: the upcasters do not lead from each older version to the declared one; nothing is learnt then.
        """
        chosen = self._declared | {(each.name, each.schema_version): each for each in declared}
        targets: dict[str, int] = {}
        for name, version in chosen:
            targets[name] = max(targets.get(name, 0), version)
        steps = [*self._upcasters, *(each for each in upcasters if each not in self._upcasters)]
        by_name = {key: entry for key, entry in self._by_name.items() if key[1]}
        by_name |= {(entry.event_type.name, entry.event_type.schema_version): entry for entry in pinned}
        known = chosen | {key: entry.event_type for key, entry in by_name.items()}
        self._upcasting = Upcasting(known.values(), steps, targets)
        self._declared, self._upcasters = chosen, steps
        self._by_id = {entry.schema_id: entry for entry in by_name.values()}
        todays = {(name, 0): by_name.get((name, version)) for name, version in self._upcasting.targets.items()}
        self._encoders = {}
        self._by_name = by_name | {key: entry for key, entry in todays.items() if entry is not None}
        self.holds_personal = any(entry.event_type.personal for entry in by_name.values())

    def upcast(self, events: list[Event]) -> list[Event]:
        """Return events, as they were written, in today's shape; `schema_version` is then the one of that shape.

        Raises:
            SchemaError: a version can't be read as today's: a newer program wrote it, or an upcaster is missing.
            DecodeError: an upcaster failed.
        """
        outdated = self._upcasting.outdated
        if not outdated:
            return events
        return [self._upcast(event) if (event.event_type, event.schema_version) in outdated else event for event in events]

    def _upcast(self, event: Event) -> Event:
        try:
            version, data = self._upcasting.convert(event.event_type, event.schema_version, event.data)
        except DecodeError as error:
            raise DecodeError(f"{event.stream_id}@{event.version} (event {event.event_id}): {error}") from error.__cause__
        return msgspec.structs.replace(event, schema_version=version, data=data)

    def event_type(self, name: str, schema_version: int) -> EventType | None:
        """Return an event type in a version, 0 = today's; None if it is not known."""
        entry = self._by_name.get((name, schema_version))
        return None if entry is None else entry.event_type

    def pinned_type(self, name: str, schema_version: int) -> PinnedType | None:
        """Return an event type in a version with its schema id, None if it is not known."""
        return self._by_name.get((name, schema_version))

    def knows(self, event_type: str, schema_version: int) -> bool:
        return (event_type, schema_version) in self._by_name

    def knows_id(self, schema_id: int) -> bool:
        return schema_id in self._by_id

    def pinned(self) -> list[PinnedType]:
        """All event types known, by schema id."""
        return [self._by_id[schema_id] for schema_id in sorted(self._by_id)]

    def encode(self, event_type: str, schema_version: int, data: Mapping[str, Any]) -> Encoded:
        """Validate data by encoding it; `schema_version` 0 is today's.

        The caller gets what readers will see, from the same pass. Values of other types than a reader gives out are written by
        fastavro, and decoded again at once: it finds what Avro's encoder would change in silence (5.5 in a long becomes 5, any
        object in a boolean becomes true).

        Raises:
            UnknownEventType: no such type or version.
            InvalidEvent: the data does not fit; the field is named.
        """
        encoder = self._encoders.get((event_type, schema_version))
        if encoder is None and type(data) is Opaque and (event_type, schema_version) not in self._by_name:
            return self._encode_opaque(event_type, data)
        write, version = encoder or self._make_encoder(event_type, schema_version)
        try:
            payload, decoded = write(data)
        except Exception:  # it may be unusual, and all right
            payload, decoded = self._encode_and_read_back(self._by_name[event_type, schema_version], data)
        text = _json.encode(decoded).decode()
        if "\\" in text and "\\u0000" in text and (path := path_of_nul(decoded)):
            raise InvalidEvent(f"{path} contains a NUL character, which Postgres can't store", event_type=event_type)
        return Encoded(payload, text, decoded, version)

    def _encode_opaque(self, event_type: str, data: Opaque) -> Encoded:
        pinned = self._by_name.get((OPAQUE.name, OPAQUE.schema_version))
        if pinned is None or any(name == event_type and version for name, version in self._by_name):
            raise UnknownEventType(self._advice(event_type, 0), event_type=event_type)
        payload, text, decoded = encode_opaque(_HEADER.pack(0, pinned.schema_id), data)
        return Encoded(payload, text, decoded, 0)

    def _make_encoder(self, event_type: str, schema_version: int) -> Encoder:
        pinned = self._by_name.get((event_type, schema_version))
        if pinned is None:
            raise UnknownEventType(self._advice(event_type, schema_version), event_type=event_type)
        write = compile_writer(pinned.event_type.parsed, header=_HEADER.pack(0, pinned.schema_id))
        encoder = write or partial(self._encode_and_read_back, pinned), pinned.event_type.schema_version
        self._encoders[event_type, schema_version] = encoder
        return encoder

    def _encode_and_read_back(self, pinned: PinnedType, data: Any) -> tuple[bytes, dict[str, Any]]:
        """Return the payload and what it is read as; for data that the writer made for the schema does not take."""
        schema = pinned.event_type.parsed
        if pinned.event_type.defaults and isinstance(data, Mapping):
            data = {**pinned.event_type.defaults, **data}
        buffer = BytesIO(_HEADER.pack(0, pinned.schema_id))
        buffer.seek(5)
        try:
            fault = decimal_fault(data, schema) if '"decimal"' in pinned.event_type.definition else ""
            if fault:
                raise InvalidEvent(f"data does not fit its schema: {fault}")
            schemaless_writer(buffer, schema, data, strict_allow_default=True)
            payload = buffer.getvalue()
            decoded = self.decode(payload)
            # 2**31 in an "int" is written, and read again by fastavro; readers in other languages refuse it.
            if decoded != data or (pinned.event_type.holds_int and _holds_large_int(decoded)):
                _explain_difference(data, decoded, schema)
        except InvalidEvent as refused:
            raise InvalidEvent(refused.reason, event_type=pinned.event_type.name) from refused.__cause__
        except Exception as error:  # fastavro raises whatever the conversion of a value raises
            raise InvalidEvent(_explain(data, schema, error), event_type=pinned.event_type.name) from error
        return payload, decoded

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Read bytes in the Confluent wire format by the schema that wrote them.

        Raises:
            DecodeError: foreign or truncated bytes, or a schema id that is not known here.
        """
        read = self.readers.get(payload[:5])
        if read is None:
            schema_id = schema_id_of(payload)
            if schema_id not in self._by_id:
                raise UnknownSchemaId(f"schema id {schema_id} is not registered in this store")
            pinned = self._by_id[schema_id]
            compiled = compile_reader(pinned.event_type.parsed, offset=5)
            if compiled is not None and pinned.event_type.full_name == OPAQUE.full_name:
                compiled = partial(_read_opaque, compiled)
            read = compiled or partial(_read, pinned)
            self.readers[payload[:5]] = read
        try:
            return read(payload)
        except Exception:  # what is wrong is said here
            return _read(self._by_id[schema_id_of(payload)], payload)

    def _advice(self, event_type: str, schema_version: int) -> str:
        versions = sorted(version for name, version in self._by_name if name == event_type and version)
        if versions:
            return f"schema version {schema_version} is not registered; registered are {versions}"
        return (
            "no schema is registered for this event type; give it to eventspine.connect(…, event_types=[…]) "
            "or register it with `eventspine schema register FILE.avsc`"
        )


def _read(pinned: PinnedType, payload: bytes) -> dict[str, Any]:
    """Read bytes by fastavro, after a look at them: it takes -1 for the last type of a union, and cuts off long numbers."""
    schema = pinned.event_type.parsed
    buffer = BytesIO(payload)
    buffer.seek(5)
    try:
        fault: object = fault_in_bytes(payload, schema, 5)
        if not fault:
            data = cast(dict[str, Any], schemaless_reader(buffer, schema, None))
            return readable(data) if pinned.event_type.full_name == OPAQUE.full_name else data
        cause = None
    except Exception as error:  # fastavro raises whatever the conversion of a value raises
        fault, cause = repr(error), error
    name = f"{pinned.event_type.name} version {pinned.event_type.schema_version} (schema id {pinned.schema_id})"
    raise DecodeError(f"{len(payload)} bytes do not fit {name}: {fault}") from cause


def _read_opaque(read: Callable[[bytes], dict[str, Any]], payload: bytes) -> dict[str, Any]:
    return readable(read(payload))


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
        fault = fault_in_data(data, schema)
    except Exception as other:  # values that can't be looked at
        fault = str(other)
    return f"data does not fit its schema: {fault or error}"


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
    return b"\\" in text and b"\\u0000" in text and bool(path_of_nul(value, "it"))


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
