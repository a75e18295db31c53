from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventspine import DecodeError, EventType, InvalidEvent, SchemaError, UnknownEventType
from eventspine.schemas import Codec, PinnedType, schema_id_of
from eventspine.schemas.codec import UnknownSchemaId, check_new_definition
from tests.event_types import EVENT_TYPES, EVERYTHING, ORDER_PLACED, ORDER_SHIPPED, ORDER_SHIPPED_V2, logical, record

HEADER_BYTES = 5
DEFINITIONS: dict[str, Any] = {
    "decimal": logical("bytes", "decimal", precision=6, scale=2),
    "timestamp-micros": logical("long", "timestamp-micros"),
    "local-timestamp-micros": logical("long", "local-timestamp-micros"),
    "time-micros": logical("long", "time-micros"),
    "date": logical("int", "date"),
    "uuid": logical("string", "uuid"),
    "enum": {"type": "enum", "name": "E", "symbols": ["A", "B"]},
    "fixed": {"type": "fixed", "name": "F", "size": 2},
    "longs": {"type": "array", "items": "long"},
    "strings": {"type": "array", "items": "string"},
    "counts": {"type": "map", "values": "long"},
    "inner": record("Inner", ("a", "long")),
    "maybe inner": ["null", record("Inner", ("a", "long"))],
    "maybe long": ["null", "long"],
    "maybe timestamp": ["null", logical("long", "timestamp-micros")],
    "timestamps": {"type": "array", "items": {"type": "map", "values": logical("long", "timestamp-micros")}},
}
NAIVE = datetime(2026, 1, 1, 5)  # noqa: DTZ001
AWARE = datetime(2026, 1, 1, 5, 6, 7, 89, timezone(timedelta(hours=3)))
EVERYTHING_DATA = {
    "id": UUID(int=7),
    "price": Decimal("19.90"),
    "at": AWARE,
    "day": date(2026, 2, 28),
    "level": "HIGH",
    "home": {"street": "Straße 1", "zip": None},
    "work": {"street": "B", "zip": "10115"},
    "choice": True,
    "counts": {"a": 1, "ü": -(2**63)},
    "places": [{"street": "C", "zip": "1"}, {"street": "", "zip": None}],
    "digest": b"\x00\xff\x01\x02",
    "ratio": 0.1,
    "small": -(2**31),
}


def named(value: object) -> str:
    """Name a test's parameter, equally in every process: without the address that some values tell."""
    return re.sub(r" at 0x\w+", "", repr(value))[:40]


def codec_of(*event_types: EventType) -> Codec:
    codec = Codec()
    codec.add(PinnedType(n, event_type) for n, event_type in enumerate(event_types, 1))
    return codec


def codec_for(type_: Any) -> Codec:
    """Return a codec for events `T` with one field `x`."""
    return codec_of(EventType.from_schema(record("T", ("x", DEFINITIONS.get(type_, type_) if isinstance(type_, str) else type_))))


def test_what_goes_in_comes_out() -> None:
    codec = codec_of(*EVENT_TYPES)
    encoded = codec.encode("EverythingHappened", 0, EVERYTHING_DATA)
    assert encoded.data == EVERYTHING_DATA
    assert codec.decode(encoded.payload) == EVERYTHING_DATA
    assert json.loads(encoded.json)["price"] == "19.90"
    assert json.loads(encoded.json)["at"] == "2026-01-01T02:06:07.000089Z"


def test_bytes_are_confluent_framed() -> None:
    codec = Codec()
    codec.add([PinnedType(0x01020304, ORDER_PLACED)])
    payload = codec.encode("OrderPlaced", 1, {"customer_id": "c", "total_cents": 1, "note": None}).payload
    assert payload == b"\0\x01\x02\x03\x04" + b"\x02c" + b"\x02" + b"\x00"
    assert schema_id_of(payload) == 0x01020304


@pytest.mark.parametrize("payload", [b"", b"\0\0\0\0", b"\x01\0\0\0\x01", b"{}   ", b"\xff" * 9])
def test_foreign_bytes_have_no_schema_id(payload: bytes) -> None:
    with pytest.raises(DecodeError, match="Confluent wire format"):
        schema_id_of(payload)


def test_defaults_are_filled_in() -> None:
    encoded = codec_of(*EVENT_TYPES).encode("OrderPlaced", 0, {"customer_id": "c", "total_cents": 1})
    assert encoded.data == {"customer_id": "c", "total_cents": 1, "note": None}


def test_data_may_be_any_mapping_and_stays_as_it_was() -> None:
    data: Mapping[str, Any] = MappingProxyType({"customer_id": "c", "total_cents": 1})
    encoded = codec_of(*EVENT_TYPES).encode("OrderPlaced", 0, data)
    assert type(encoded.data) is dict
    assert dict(data) == {"customer_id": "c", "total_cents": 1}


def test_version_0_is_the_newest_in_whatever_order_they_were_added() -> None:
    for types in ([ORDER_SHIPPED, ORDER_SHIPPED_V2], [ORDER_SHIPPED_V2, ORDER_SHIPPED]):
        codec = codec_of(*types)
        assert codec.encode("OrderShipped", 0, {"carrier": "c"}).schema_version == 2
        assert codec.encode("OrderShipped", 1, {"carrier": "c"}).schema_version == 1
        assert [pin.schema_id for pin in codec.pinned()] == [1, 2]
        assert codec.knows("OrderShipped", 2)
        assert not codec.knows("OrderShipped", 3)
        assert codec.knows_id(2)
        assert not codec.knows_id(3)


def test_old_bytes_are_read_by_the_schema_that_wrote_them() -> None:
    codec = codec_of(ORDER_SHIPPED, ORDER_SHIPPED_V2)
    assert codec.decode(codec.encode("OrderShipped", 1, {"carrier": "c"}).payload) == {"carrier": "c"}


def test_unknown_types_and_versions_are_told_apart() -> None:
    codec = codec_of(*EVENT_TYPES)
    with pytest.raises(UnknownEventType, match=r"no schema is registered .* register"):
        codec.encode("OrderLost", 0, {})
    with pytest.raises(UnknownEventType, match=r"schema version 3 is not registered; registered are \[1, 2\]"):
        codec.encode("OrderShipped", 3, {})


@pytest.mark.parametrize(
    ("type_", "value", "says"),
    [
        # fastavro's encoder changes or takes these without a word
        ("long", 5.5, "x: 5.5 is no long"),
        ("boolean", object(), "is no boolean"),
        ("boolean", "no", "x: 'no' is no boolean"),
        ("int", 2**31, "x: 2147483648 is no int"),
        ("int", -(2**31) - 1, "is no int"),
        ("float", 1e300, "x is a number that its field, a float, can't hold"),
        ("float", 2**24 + 1, "can't hold"),
        ("double", 2**53 + 1, "can't hold"),
        (["null", "double", "long"], 2**53 + 1, "can't hold"),
        ("null", 5, "x: 5 is no null"),
        ("date", AWARE, "x is a datetime"),
        ("local-timestamp-micros", AWARE, "x is an aware datetime"),
        ("time-micros", time(1, tzinfo=UTC), "x is an aware time"),
        ("timestamp-micros", NAIVE, "x is a naive datetime"),
        ("maybe timestamp", NAIVE, "x is a naive datetime"),
        ("timestamps", [{"a": AWARE}, {"b": AWARE, "c": NAIVE}], "x[1].c is a naive datetime"),
        ("strings", "abc", "x: 'abc' is no"),
        ("strings", {"a": 1}, "is no"),
        ("strings", {"a"}, "is no"),
        # these it refuses
        ("long", 2**63, "is no long"),
        ("long", "1", "is no long"),
        ("long", None, "x: None is no long"),
        ("double", "1.5", "is no double"),
        ("double", 10**400, "int too large"),
        ("string", 5, "is no string"),
        ("string", b"a", "is no string"),
        ("string", "\ud800", "surrogates"),
        ("bytes", "a", "is no bytes"),
        ("decimal", Decimal("1.005"), "Scale"),
        ("decimal", Decimal("12345.67"), "precision"),
        ("decimal", Decimal("NaN"), "data does not fit"),
        ("decimal", 1.5, "is no"),
        ("uuid", 42, "is no"),
        ("uuid", "not a uuid", "UUID"),
        ("date", "tomorrow", "data does not fit"),
        ("timestamp-micros", date(2026, 1, 1), "is no"),
        ("timestamp-micros", "2026-01-01T00:00:00Z", "is no"),
        ("timestamp-micros", 2**62, "out of range"),
        ("enum", "C", "is no"),
        ("fixed", b"a", "is no"),
        ("longs", [1, "2"], "is no long"),
        ("longs", (n for n in [1]), "is no"),
        ("counts", {1: 2}, "is no"),
        ("counts", {"a": None}, "is no long"),
        ("maybe long", 5.5, "x: 5.5 is no null or long"),
        ("inner", {}, "x.a is missing"),
        ("inner", {"a": 1, "b": 2}, "more fields"),
        ("maybe inner", {"a": 1, "b": 2}, "more fields"),
        ("inner", [("a", 1)], "is no"),
        # these Avro can hold and Postgres can't
        ("string", "a\0b", "x contains a NUL"),
        ("strings", ["a", "\0"], "x[1] contains a NUL"),
        ("counts", {"a\0": 1}, "a key of x contains a NUL"),
    ],
    ids=named,
)
def test_what_does_not_fit_is_refused_and_named(type_: Any, value: Any, says: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        codec_for(type_).encode("T", 0, {"x": value})
    assert says in str(caught.value)
    assert caught.value.event_type == "T"
    assert type(caught.value) is InvalidEvent


@pytest.mark.parametrize("data", [{}, {"y": 1}, {"x": 1, "y": 1}, None, [1], "x"], ids=repr)
def test_missing_and_extra_fields_are_refused(data: Any) -> None:
    with pytest.raises(InvalidEvent):
        codec_for("long").encode("T", 0, data)


@pytest.mark.parametrize(
    ("type_", "value", "becomes"),
    [
        ("long", 5.0, 5),
        ("double", 5, 5.0),
        ("float", 0.1, 0.10000000149011612),
        ("float", float("inf"), float("inf")),
        ("bytes", bytearray(b"q"), b"q"),
        ("strings", ("a", "b"), ["a", "b"]),
        ("decimal", Decimal("1.5"), Decimal("1.50")),
        ("uuid", "00000000-0000-0000-0000-000000000001", UUID(int=1)),
        ("date", "2026-01-01", date(2026, 1, 1)),
        ("local-timestamp-micros", NAIVE, NAIVE),
        ("timestamp-micros", AWARE, AWARE),
        (logical("long", "timestamp-millis"), AWARE, AWARE.replace(microsecond=0)),
        ("string", r"a\u0000b", r"a\u0000b"),
    ],
    ids=named,
)
def test_what_means_the_same_passes(type_: Any, value: Any, becomes: Any) -> None:
    codec = codec_for(type_)
    encoded = codec.encode("T", 0, {"x": value})
    assert encoded.data == {"x": becomes}
    assert type(encoded.data["x"]) is type(becomes)
    assert codec.decode(encoded.payload) == encoded.data


def test_bytes_of_an_unknown_schema_are_told_apart() -> None:
    with pytest.raises(UnknownSchemaId, match="schema id 9 is not registered"):
        codec_of(ORDER_PLACED).decode(b"\0\0\0\0\x09\x02c\x02\x00")


def test_left_over_bytes_are_refused() -> None:
    codec = codec_of(ORDER_PLACED)
    payload = codec.encode("OrderPlaced", 0, {"customer_id": "c", "total_cents": 1}).payload
    with pytest.raises(DecodeError, match="2 bytes are left over"):
        codec.decode(payload + b"\0\0")


def test_truncated_bytes_are_refused_wherever_they_end() -> None:
    codec = codec_of(EVERYTHING)
    payload = codec.encode("EverythingHappened", 0, EVERYTHING_DATA).payload
    for length in range(len(payload)):
        with pytest.raises(DecodeError):
            codec.decode(payload[:length])


def test_a_registered_version_keeps_its_definition() -> None:
    check_new_definition(ORDER_SHIPPED, ORDER_SHIPPED)
    with pytest.raises(SchemaError, match="give the changed schema version 2"):
        check_new_definition(ORDER_SHIPPED, EventType.from_schema(record("OrderShipped", ("carrier", "bytes"))))


# Properties over generated schemas

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
PRIMITIVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    ("null", st.none()),
    ("boolean", st.booleans()),
    ("int", st.integers(-(2**31), 2**31 - 1)),
    ("long", st.integers(-(2**63), 2**63 - 1)),
    ("float", st.floats(width=32, allow_nan=False)),
    ("double", st.floats(allow_nan=False)),
    ("bytes", st.binary(max_size=8)),
    ("string", texts),
    (DEFINITIONS["uuid"], st.uuids()),
    (DEFINITIONS["decimal"], st.decimals(-9999, 9999, places=2)),
    (DEFINITIONS["timestamp-micros"], st.datetimes(timezones=st.just(UTC))),
    (DEFINITIONS["local-timestamp-micros"], st.datetimes()),
    (DEFINITIONS["time-micros"], st.times()),
    (DEFINITIONS["date"], st.dates()),
]
UNIONS = ["null", "boolean", "long", "double", "string", "bytes"]  # of values that Python tells apart


def takes_no_bytes(type_: Any) -> bool:
    if isinstance(type_, dict) and "fields" in type_:
        return all(takes_no_bytes(field["type"]) for field in type_["fields"])
    return bool(type_ == "null")


@st.composite
def types_and_values(draw: st.DrawFn, names: st.SearchStrategy[str], depth: int = 0) -> tuple[Any, Any]:
    """Draw an Avro type and a value of it."""
    kind = draw(st.sampled_from(["primitive"] * 3 + ["enum", "fixed", "union", "maybe", "array", "map", "record"]))
    if depth > 2 or kind == "primitive":
        type_, values = draw(st.sampled_from(PRIMITIVES))
        return type_, draw(values)
    if kind == "enum":
        symbols = draw(st.lists(st.from_regex(r"[A-Z]{1,3}", fullmatch=True), min_size=1, max_size=3, unique=True))
        return {"type": "enum", "name": draw(names), "symbols": symbols}, draw(st.sampled_from(symbols))
    if kind == "fixed":
        value = draw(st.binary(min_size=1, max_size=4))
        return {"type": "fixed", "name": draw(names), "size": len(value)}, value
    if kind == "union":
        branches = draw(st.lists(st.sampled_from(UNIONS), min_size=1, unique=True))
        values = {t: v for t, v in PRIMITIVES if isinstance(t, str)}
        values["long"] = st.integers(-(2**53), 2**53)  # the double may take it
        return branches, draw(values[draw(st.sampled_from(branches))])
    if kind == "record":
        fields = draw(st.lists(types_and_values(names, depth + 1), max_size=4))
        types = [{"name": f"f{n}", "type": type_} for n, (type_, _) in enumerate(fields)]
        value_of = {f"f{n}": value for n, (_, value) in enumerate(fields)}
        return {"type": "record", "name": draw(names), "fields": types}, value_of
    type_, value = draw(types_and_values(names, depth + 1))
    if kind == "maybe" and type_ != "null" and not isinstance(type_, list):
        return ["null", type_], draw(st.sampled_from([None, value]))
    if kind == "map" or takes_no_bytes(type_):  # an array of nothing is refused
        return {"type": "map", "values": type_}, dict.fromkeys(draw(st.lists(texts, max_size=3)), value)
    return {"type": "array", "items": type_}, [value] * draw(st.integers(0, 3))


@st.composite
def event_types_and_data(draw: st.DrawFn) -> tuple[EventType, dict[str, Any]]:
    counter = iter(range(10**6))
    names = st.builds(lambda: f"N{next(counter)}")
    fields = draw(st.lists(types_and_values(names), min_size=1, max_size=4))
    schema = record("T", *((f"f{n}", type_) for n, (type_, _) in enumerate(fields)))
    return EventType.from_schema(schema), {f"f{n}": value for n, (_, value) in enumerate(fields)}


generously = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@generously
@given(event_types_and_data())
def test_round_trip(drawn: tuple[EventType, dict[str, Any]]) -> None:
    event_type, data = drawn
    codec = codec_of(event_type)
    encoded = codec.encode("T", 0, data)
    assert encoded.data == data
    assert codec.decode(encoded.payload) == data
    assert codec.encode("T", 1, encoded.data).payload == encoded.payload  # what was read can be written again, to the byte
    assert isinstance(msgspec.json.decode(encoded.json), dict)


@generously
@given(event_types_and_data(), event_types_and_data())
def test_data_of_another_type_is_refused_or_really_fits(
    one: tuple[EventType, dict[str, Any]], other: tuple[EventType, dict[str, Any]]
) -> None:
    codec = codec_of(one[0])
    try:
        encoded = codec.encode("T", 0, other[1])
    except InvalidEvent:
        return
    assert codec.decode(encoded.payload) == encoded.data


@generously
@given(event_types_and_data(), st.binary(max_size=64), st.data())
def test_whatever_the_bytes_decode_answers_or_raises_decode_error(
    drawn: tuple[EventType, dict[str, Any]], noise: bytes, data: st.DataObject
) -> None:
    event_type, values = drawn
    codec = codec_of(event_type)
    payload = codec.encode("T", 0, values).payload
    at = data.draw(st.integers(HEADER_BYTES, len(payload)))
    for damaged in (noise, payload[:HEADER_BYTES] + noise, payload[:at] + noise, payload[:at] + noise + payload[at:]):
        try:
            decoded = codec.decode(damaged)
        except DecodeError:
            continue
        assert isinstance(decoded, dict)
