"""The envelope in the value: encoded by hand, read by fastavro, and taken apart again."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any
from uuid import UUID

import msgspec
import pytest
from fastavro import parse_schema, schemaless_reader, schemaless_writer
from hypothesis import given, settings
from hypothesis import strategies as st

from eventspine import DecodeError, Event, EventType, InvalidEvent
from eventspine.relay.router import SUBJECT_NAMES
from eventspine.schemas import Codec, PinnedType, StoredEvent
from eventspine.schemas.cloudevents import HeaderWriter, event_of
from eventspine.schemas.codec import UnknownSchemaId
from eventspine.schemas.envelope import PinnedEnvelope, RecordReader, envelop, envelope_schema, split_envelope
from eventspine.schemas.event import normalise_metadata, rfc3339
from tests.event_types import EVERYTHING, ORDER_PAID, ORDER_PLACED, record

_ID = "0192d5a0-0000-7000-8000-000000000001"
_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_HEADER = PinnedEnvelope(7, "OrderPlacedEnvelope").header
_SCHEMA = parse_schema(envelope_schema(ORDER_PLACED.definition), named_schemas={})

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
moments = st.datetimes(timezones=st.just(UTC))
numbers = st.one_of(st.integers(1, 200), st.integers(1, 2**63 - 1))
values = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), texts, st.lists(texts, max_size=3))
metadata = st.builds(
    lambda own, known, moment: {**own, **known} | ({"timestamp": rfc3339(moment)} if moment else {}),
    st.dictionaries(texts, values, max_size=4),
    st.dictionaries(st.sampled_from(["correlation_id", "causation_id", "user_id", "traceparent", "tracestate"]), texts),
    st.none() | moments,
)


def codec() -> Codec:
    codec = Codec()
    codec.add([PinnedType(5, ORDER_PLACED)])
    return codec


def stored(*, data: dict[str, Any] | None = None, **fields: Any) -> StoredEvent:
    payload = codec().encode("OrderPlaced", 1, data or {"customer_id": "c1", "total_cents": 100}).payload
    event = StoredEvent(
        global_position=42,
        event_id=_ID,
        stream_id="Order-ü",
        stream_type="Order",
        event_type="OrderPlaced",
        version=7,
        schema_version=1,
        payload=payload,
        created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        metadata="{}",
    )
    return event._replace(**fields)


@settings(deadline=None)
@given(metadata, texts, numbers, numbers, moments)
def test_what_is_written_by_hand_is_what_avro_reads_and_writes(
    given_: dict[str, Any], stream_id: str, version: int, position: int, created_at: datetime
) -> None:
    event = stored(
        stream_id=stream_id,
        version=version,
        global_position=position,
        created_at=created_at,
        metadata=msgspec.json.encode(given_).decode(),
    )
    value, _ = envelop(event, _HEADER)
    assert value[:5] == b"\0\0\0\0\x07"
    assert value.endswith(event.payload[5:])
    buffer = BytesIO(value[5:])
    fields: Any = schemaless_reader(buffer, _SCHEMA, None)
    assert buffer.read() == b""
    again = BytesIO()
    schemaless_writer(again, _SCHEMA, fields)
    assert again.getvalue() == value[5:]

    rest = {} if fields["metadata"] is None else json.loads(fields.pop("metadata"))
    told = {name: fields[name] for name in ("correlation_id", "causation_id", "user_id") if fields[name] is not None}
    moment = {} if fields["timestamp"] is None else {"timestamp": rfc3339(fields["timestamp"])}
    assert {**rest, **told, **moment} == given_
    assert fields["data"] == {"customer_id": "c1", "total_cents": 100, "note": None}
    assert (fields["event_id"], fields["event_type"], fields["schema_version"]) == (_ID, "OrderPlaced", 1)
    assert (fields["stream_id"], fields["version"], fields["global_position"], fields["recorded_at"]) == (
        stream_id,
        version,
        position,
        created_at,
    )

    envelope, data = split_envelope(value)
    assert data == event.payload[5:]
    assert envelope._asdict() == {**{name: fields[name] for name in fields if name != "data"}, "metadata": envelope.metadata}


@settings(deadline=None)
@given(metadata, texts)
def test_both_forms_and_the_log_carry_the_same_event(given_: dict[str, Any], customer_id: str) -> None:
    event = stored(data={"customer_id": customer_id, "total_cents": 3}, metadata=msgspec.json.encode(given_).decode())
    read: list[Event] = []
    for value, headers in [(event.payload, HeaderWriter("/shop").headers(event)), envelop(event, _HEADER)]:
        arrived = dict(headers)
        reader = RecordReader(codec())
        read += [reader.event(arrived, value) for _ in range(2)]  # the second one by the reader that the first one made
    read.append(event.decoded(codec().decode(event.payload)))
    assert read == [read[0]] * 5
    assert read[0].metadata == given_
    assert read[0].data == {"customer_id": customer_id, "total_cents": 3, "note": None}
    assert read[0].event_id == UUID(_ID)


@pytest.mark.parametrize(
    "timestamp", [5, None, "soon", "2026-13-01T00:00:00.000000Z", "2026-01-01T00:00:00Z", "٢٠٢٦-01-01T00:00:00.000000Z"]
)
def test_a_timestamp_in_another_form_stays_in_the_metadata(timestamp: Any) -> None:
    value, _ = envelop(stored(metadata=json.dumps({"timestamp": timestamp})), _HEADER)
    envelope, _ = split_envelope(value)
    assert (envelope.timestamp, json.loads(envelope.metadata or "")) == (None, {"timestamp": timestamp})


def test_headers_beside_an_envelope() -> None:
    _, headers = envelop(stored(metadata=json.dumps({"traceparent": _TRACEPARENT, "tracestate": "a=1", "user_id": "u"})), _HEADER)
    assert headers == [
        ("ce_type", b"OrderPlaced"),
        ("ce_globalposition", b"42"),
        ("content-type", b"application/avro"),
        ("traceparent", _TRACEPARENT.encode()),
        ("tracestate", b"a=1"),
    ]


def test_trace_context_has_headers_of_its_own() -> None:
    headers = dict(HeaderWriter("/").headers(stored(metadata=json.dumps({"traceparent": _TRACEPARENT, "tracestate": "a=1"}))))
    assert (headers["traceparent"], headers["tracestate"], "ce_metadata" in headers) == (_TRACEPARENT.encode(), b"a=1", False)
    arrived = headers
    assert event_of(arrived, {}).metadata == {"traceparent": _TRACEPARENT, "tracestate": "a=1"}


@pytest.mark.parametrize("size", range(0, 110, 3))
def test_half_an_envelope_is_refused(size: int) -> None:
    value, headers = envelop(stored(metadata=json.dumps({"note": "x" * 50})), _HEADER)
    assert size < len(value)
    with pytest.raises(DecodeError):
        RecordReader(codec()).event(dict(headers), value[:size])


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_foreign_bytes_are_refused(noise: bytes) -> None:
    with pytest.raises(DecodeError):
        RecordReader(codec()).event({"ce_type": b"OrderPlaced", "ce_globalposition": b"42"}, b"\0\0\0\0\x07" + noise)


def test_an_envelope_of_another_event_than_the_headers_name_is_refused() -> None:
    value, _ = envelop(stored(), _HEADER)
    with pytest.raises(DecodeError, match="its headers name"):
        RecordReader(codec()).event({"ce_type": b"OrderPlaced", "ce_globalposition": b"41"}, value)


def test_a_value_with_the_wrong_schema_id_harms_no_other() -> None:
    """Two types whose data is laid out alike, and a writer that mixes up their envelopes' ids."""
    both = Codec()
    both.add([PinnedType(5, ORDER_PAID), PinnedType(6, EventType.from_schema(record("OrderRefunded", ("refunded", "long"))))])
    reader = RecordReader(both)
    for event_type, expected in [("OrderPaid", {"amount_cents": 8}), ("OrderRefunded", {"refunded": 8})]:
        event = stored(event_type=event_type, payload=both.encode(event_type, 1, expected).payload)
        value, headers = envelop(event, _HEADER)
        arrived = dict(headers)
        assert [reader.event(arrived, value).data for _ in range(2)] == [expected] * 2


def test_a_version_that_is_not_known_yet_is_told_apart() -> None:
    value, _ = envelop(stored(schema_version=2), _HEADER)
    with pytest.raises(UnknownSchemaId, match="OrderPlaced version 2"):
        RecordReader(codec()).event({"ce_type": b"OrderPlaced", "ce_globalposition": b"42"}, value)


def test_the_schema_keeps_the_names_inside() -> None:
    schema = envelope_schema(EVERYTHING.definition)
    assert (schema["name"], schema["namespace"]) == ("EverythingHappenedEnvelope", "org.example.shop")
    assert [field["name"] for field in schema["fields"]][-1] == "data"
    parsed: Any = parse_schema(schema, named_schemas={})
    names = set(parsed["__named_schemas"])
    assert names - set(EVERYTHING.parsed["__named_schemas"]) == {"org.example.shop.EverythingHappenedEnvelope"}
    plain = envelope_schema(ORDER_PLACED.definition)
    assert (plain["name"], "namespace" in plain) == ("OrderPlacedEnvelope", False)
    dotted = EventType.from_schema(record("shop.OrderPlaced"))
    assert envelope_schema(dotted.definition)["namespace"] == "shop"


def test_the_schema_of_data_that_has_a_type_of_the_envelopes_name() -> None:
    inner = record("PacketEnvelope", ("weight", "long"))
    schema = envelope_schema(EventType.from_schema(record("Packet", ("content", inner))).definition)
    assert schema["name"] == "PacketEnvelope_"
    assert parse_schema(schema, named_schemas={})


def test_a_time_before_1970_is_kept() -> None:
    value, _ = envelop(stored(created_at=datetime(1970, 1, 1, tzinfo=UTC) - timedelta(microseconds=1)), _HEADER)
    assert split_envelope(value)[0].recorded_at == datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


@pytest.mark.parametrize("traceparent", [_TRACEPARENT, "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"])
def test_a_trace_context_is_passed_on(traceparent: str) -> None:
    metadata = normalise_metadata({"traceparent": traceparent, "tracestate": "a=1,b=2"}, now="now")
    assert metadata == {"traceparent": traceparent, "tracestate": "a=1,b=2", "timestamp": "now"}
    caused = Event(event_type="X", data={}, metadata=metadata).as_cause()
    assert (caused["traceparent"], caused["tracestate"]) == (traceparent, "a=1,b=2")
    assert normalise_metadata({"traceparent": None, "tracestate": None}, now="now") == {"timestamp": "now"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("traceparent", _TRACEPARENT.upper()),
        ("traceparent", _TRACEPARENT[:-1]),
        ("traceparent", f"{_TRACEPARENT}-01"),
        ("traceparent", f"ff{_TRACEPARENT[2:]}"),
        ("traceparent", f"00-{'0' * 32}-b7ad6b7169203331-01"),
        ("traceparent", f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01"),
        ("traceparent", _TRACEPARENT.encode()),
        ("tracestate", "a=ü"),
        ("tracestate", ["a=1"]),
    ],
)
def test_a_trace_context_in_another_form_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidEvent, match=name):
        normalise_metadata({name: value}, now="now")


@pytest.mark.parametrize(
    ("strategy", "subject"),
    [
        ("TopicRecordNameStrategy", "events.Order-shop.Placed"),
        ("RecordNameStrategy", "shop.Placed"),
        ("TopicNameStrategy", "events.Order-value"),
    ],
)
def test_subjects_by_strategy(strategy: str, subject: str) -> None:
    assert SUBJECT_NAMES[strategy]("events.Order", "shop.Placed") == subject
