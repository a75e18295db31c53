"""The envelope in the value: one Avro record that holds an event and its data, for readers that see no headers.

The record's last field, `data`, is the event's own record, so its stored bytes are appended untouched:

    0x00, schema id of the envelope, Avro of the fields before `data`, the stored bytes behind their own first five

The fields before `data` are the same for every event type, so they can be read without a schema; type and version say which
schema the data has. Headers beside it: `ce_type` and `ce_globalposition`, by which our consumers choose and count, `traceparent`,
`tracestate` and `content-type`.

Source: https://avro.apache.org/docs/1.12.0/specification/#binary-encoding
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from fastavro import parse_schema

from .cloudevents import CONTENT_TYPE, Header, event_of
from .codec import Codec, UnknownSchemaId, schema_id_of
from .errors import DecodeError
from .event import Event, StoredEvent, rfc3339
from .opaque import OPAQUE
from .pins import ids_from_registry, pin_schema
from .postgres import load_sql, translated
from .reader import compile_reader
from .registry_client import RegistryClient

__all__ = ["Envelope", "PinnedEnvelope", "RecordReader", "envelop", "envelope_schema", "pin_envelopes", "split_envelope"]

_SQL = "eventspine.schemas"
_LOCK = load_sql(_SQL, "sql/lock_registration")
_LOAD = load_sql(_SQL, "sql/load_envelopes")
_LOAD_DEFINITIONS = load_sql(_SQL, "sql/load_definitions")
_REGISTER = load_sql(_SQL, "sql/register_envelope")

_MICROS: Final = {"type": "long", "logicalType": "timestamp-micros"}
_TEXT: Final = ["null", "string"]
# For ever: schemas that were registered from these are kept under their ids, and values are read by these.
_FIELDS: Final = [
    {"name": "event_id", "type": "string", "doc": "a UUID"},
    {"name": "event_type", "type": "string"},
    {"name": "stream_id", "type": "string"},
    {"name": "version", "type": "long", "doc": "place in the stream, counted from 1"},
    {"name": "global_position", "type": "long", "doc": "place in the log, counted from 1"},
    {"name": "schema_version", "type": "int", "doc": "version of the event type's schema"},
    {"name": "timestamp", "type": ["null", _MICROS], "default": None, "doc": "when it happened, as its author says"},
    {"name": "recorded_at", "type": _MICROS, "doc": "when the store recorded it"},
    {"name": "correlation_id", "type": _TEXT, "default": None},
    {"name": "causation_id", "type": _TEXT, "default": None},
    {"name": "user_id", "type": _TEXT, "default": None},
    {"name": "metadata", "type": _TEXT, "default": None, "doc": "all other metadata, as a JSON object"},
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_ABSENT: Final = b"\0"
_PRESENT: Final = b"\x02"
_IDENTIFIERS = ("correlation_id", "causation_id", "user_id")
_TRACE = ("traceparent", "tracestate")
_read_json = msgspec.json.Decoder(dict[str, Any])
_write_json = msgspec.json.Encoder()


class PinnedEnvelope(NamedTuple):
    """The schema of an envelope, under the id that it keeps for ever, and its record's name with the namespace."""

    schema_id: int
    full_name: str

    @property
    def header(self) -> bytes:
        """The first five bytes of each value with this schema."""
        return b"\0" + self.schema_id.to_bytes(4, "big")


class Envelope(NamedTuple):
    """The fields before `data`."""

    event_id: str
    event_type: str
    stream_id: str
    version: int
    global_position: int
    schema_version: int
    timestamp: datetime | None
    recorded_at: datetime
    correlation_id: str | None
    causation_id: str | None
    user_id: str | None
    metadata: str | None


def envelope_schema(definition: str) -> dict[str, Any]:
    """Return the schema of the envelope around data of this schema: `shop.OrderPlacedEnvelope` around `shop.OrderPlaced`.

    It is in the namespace of the data's record, because names inside inherit it.
    """
    data = json.loads(definition)
    name = _full_name(data)
    namespace, _, short = name.rpartition(".")
    short += "Envelope"
    while f'"{short}"' in definition:  # the data has a type of that name itself
        short += "_"
    named = {"namespace": namespace} if namespace else {}
    return {"type": "record", "name": short, **named, "fields": [*_FIELDS, {"name": "data", "type": data}]}


async def pin_envelopes(
    pool: asyncpg.Pool, data_schema_ids: Collection[int], *, registry: RegistryClient | None = None
) -> dict[int, PinnedEnvelope]:
    """Return the envelopes around schemas of data, by those schemas' ids; those that have none yet are registered.

    With a `registry`, they are registered there first, and keep the ids that it gives.

    Raises:
        DecodeError: there is no schema with such an id.
        SchemaError, Unavailable: as for event types, see `register_event_types`.
    """
    ids = sorted(set(data_schema_ids))
    found = await _load(pool, ids)
    missing = [each for each in ids if each not in found]
    if not missing:
        return found
    given: dict[bytes, int] = {}
    if registry is not None:
        async with translated():
            rows = await pool.fetch(_LOAD_DEFINITIONS, missing)
        schemas = [envelope_schema(row["definition"]) for row in rows]
        given = await ids_from_registry(pool, registry, [(_full_name(each), _text_of(each)) for each in schemas])
    async with translated(), pool.acquire() as connection, connection.transaction(isolation="read_committed"):
        await connection.execute(_LOCK)
        found |= await _load(connection, missing)  # another process may have been faster
        missing = [each for each in missing if each not in found]
        definitions = {row["schema_id"]: row["definition"] for row in await connection.fetch(_LOAD_DEFINITIONS, missing)}
        for data_schema_id in missing:
            if data_schema_id not in definitions:
                raise DecodeError(f"schema id {data_schema_id} is not registered in this store")
            schema = envelope_schema(definitions[data_schema_id])
            schema_id = await pin_schema(connection, _text_of(schema), given, _full_name(schema))
            await connection.execute(_REGISTER, schema_id, data_schema_id)
            found[data_schema_id] = PinnedEnvelope(schema_id, _full_name(schema))
    return found


def envelop(stored: StoredEvent, header: bytes) -> tuple[bytes, list[Header]]:
    """Return value and headers of the record of an event; `header` is the first five bytes, see `PinnedEnvelope`."""
    metadata = _read_json.decode(stored.metadata)
    headers: list[Header] = [
        ("ce_type", stored.event_type.encode()),
        ("ce_globalposition", b"%d" % stored.global_position),
        ("content-type", CONTENT_TYPE),
    ]
    headers += [(name, metadata[name].encode()) for name in _TRACE if isinstance(metadata.get(name), str)]
    micros = _micros_of(metadata.get("timestamp"))
    if micros is not None:
        del metadata["timestamp"]
    value = [
        header,
        _text(stored.event_id),
        _text(stored.event_type),
        _text(stored.stream_id),
        _long(stored.version),
        _long(stored.global_position),
        _long(stored.schema_version),
        _ABSENT if micros is None else _PRESENT + _long(micros),
        _long(_since_epoch(stored.created_at)),
    ]
    for name in _IDENTIFIERS:
        known = isinstance(metadata.get(name), str)
        value.append(_PRESENT + _text(metadata.pop(name)) if known else _ABSENT)
    value.append(_PRESENT + _sized(_write_json.encode(metadata)) if metadata else _ABSENT)
    value.append(stored.payload[5:])
    return b"".join(value), headers


def split_envelope(payload: bytes) -> tuple[Envelope, bytes]:
    """Return the fields of an envelope, and the Avro bytes of the data behind them. Needs no schema.

    Raises:
        DecodeError: the bytes do not begin like an envelope.
    """
    schema_id_of(payload)
    reader = _Reader(payload, 5)
    try:
        envelope = Envelope(
            reader.text(),
            reader.text(),
            reader.text(),
            reader.long(),
            reader.long(),
            reader.long(),
            _EPOCH + timedelta(microseconds=reader.long()) if reader.present() else None,
            _EPOCH + timedelta(microseconds=reader.long()),
            reader.text() if reader.present() else None,
            reader.text() if reader.present() else None,
            reader.text() if reader.present() else None,
            reader.text() if reader.present() else None,
        )
    except (IndexError, ValueError, OverflowError) as error:
        raise DecodeError(f"{len(payload)} bytes end early or hold no such fields: {error!r}") from error
    return envelope, payload[reader.place :]


class RecordReader:
    """Makes events of Kafka records in either form: the same that the store returns. No I/O; the codec may learn meanwhile."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        # By a value's first five bytes: what reads it whole, and the event type and version that its data then has.
        self._readers: dict[bytes, tuple[Callable[[bytes], dict[str, Any]], str, int]] = {}

    def event(self, headers: Mapping[str, bytes], value: bytes) -> Event:
        """Return the recorded event that a record carries.

        Raises:
            UnknownSchemaId: the data's schema was registered after the codec learnt.
            DecodeError: the record is none of ours, or its bytes do not fit.
        """
        if "ce_id" in headers:
            return event_of(headers, self._codec.decode(value))
        known = self._readers.get(value[:5])
        if known is not None:
            read, event_type, schema_version = known
            try:
                *fields, data = read(value).values()
                envelope = Envelope(*fields)
                if (envelope.event_type, envelope.schema_version) == (event_type, schema_version):
                    return _event_of(headers, envelope, data)
            except Exception:  # noqa: S110 - what is wrong is said below
                pass
        try:
            envelope, avro = split_envelope(value)
        except DecodeError as error:
            raise DecodeError(f"the record has no header ce_id, and its value is no event's envelope: {error}") from error
        opaque = envelope.schema_version == 0
        kind = (OPAQUE.name, OPAQUE.schema_version) if opaque else (envelope.event_type, envelope.schema_version)
        pinned = self._codec.pinned_type(*kind)
        if pinned is None:
            raise UnknownSchemaId(f"{envelope.event_type} version {envelope.schema_version} is not registered in this store")
        event = _event_of(headers, envelope, self._codec.decode(pinned.schema_id.to_bytes(5, "big") + avro))
        if known is None and not opaque:
            reader = compile_reader(parse_schema(envelope_schema(pinned.event_type.definition), named_schemas={}), offset=5)
            if reader is not None:
                self._readers[value[:5]] = reader, envelope.event_type, envelope.schema_version
        return event


def _event_of(headers: Mapping[str, bytes], envelope: Envelope, data: dict[str, Any]) -> Event:
    told = (headers.get("ce_type"), headers.get("ce_globalposition"))
    if told != (envelope.event_type.encode(), b"%d" % envelope.global_position):
        raise DecodeError("the record has no header ce_id, and its value is not the envelope of the event that its headers name")
    try:
        metadata = _read_json.decode(envelope.metadata) if envelope.metadata else {}
        event_id = msgspec.convert(envelope.event_id, UUID)
    except (ValueError, msgspec.MsgspecError) as error:
        raise DecodeError(f"the value is not an event's envelope: {error!r}") from error
    if envelope.timestamp is not None:
        metadata["timestamp"] = rfc3339(envelope.timestamp)
    for name in _IDENTIFIERS:
        identifier = getattr(envelope, name)
        if identifier is not None:
            metadata[name] = identifier
    return Event(
        event_type=envelope.event_type,
        data=data,
        metadata=metadata,
        event_id=event_id,
        stream_id=envelope.stream_id,
        schema_version=envelope.schema_version,
        version=envelope.version,
        global_position=envelope.global_position,
        created_at=envelope.recorded_at,
    )


async def _load(database: Any, data_schema_ids: list[int]) -> dict[int, PinnedEnvelope]:
    async with translated():
        rows = await database.fetch(_LOAD, data_schema_ids)
    return {row["data_schema_id"]: PinnedEnvelope(row["schema_id"], _full_name(json.loads(row["definition"]))) for row in rows}


def _text_of(schema: dict[str, Any]) -> str:
    return json.dumps(schema, sort_keys=True, separators=(",", ":"))


def _full_name(schema: dict[str, Any]) -> str:
    name, namespace = str(schema["name"]), schema.get("namespace")
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _micros_of(timestamp: Any) -> int | None:
    """Return a time as the store writes it in microseconds; None for any other value, which stays as it is."""
    if not isinstance(timestamp, str) or _TIMESTAMP.fullmatch(timestamp) is None:
        return None
    try:
        return _since_epoch(datetime.fromisoformat(timestamp))
    except ValueError:
        return None


def _since_epoch(moment: datetime) -> int:
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _zigzag(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SMALL: Final = [_zigzag(number) for number in range(8192)]


def _long(number: int) -> bytes:
    return _SMALL[number] if 0 <= number < 8192 else _zigzag(number)


def _sized(value: bytes) -> bytes:
    return _long(len(value)) + value


def _text(value: str) -> bytes:
    return _sized(value.encode())


class _Reader:
    """Takes Avro values from bytes, one after the other."""

    def __init__(self, payload: bytes, place: int) -> None:
        self.payload = payload
        self.place = place

    def long(self) -> int:
        number = shift = 0
        while True:
            byte = self.payload[self.place]
            self.place += 1
            number |= (byte & 127) << shift
            if byte < 128:
                if number >> 64:
                    raise ValueError(number)
                return (number >> 1) ^ -(number & 1)
            shift += 7

    def present(self) -> bool:
        which = self.long()
        if which not in (0, 1):
            raise ValueError(which)
        return which == 1

    def text(self) -> str:
        size = self.long()
        end = self.place + size
        if size < 0 or end > len(self.payload):
            raise ValueError(size)
        value = self.payload[self.place : end].decode()
        self.place = end
        return value
