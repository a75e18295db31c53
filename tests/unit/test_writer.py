"""The writers made for a schema write what fastavro writes, say what will be read, and take nothing that would be changed."""

from __future__ import annotations

import enum
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from io import BytesIO
from typing import Any
from uuid import UUID

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventspine.schemas import Codec, EventType, InvalidEvent, PinnedType
from eventspine.schemas.reader import compile_reader
from eventspine.schemas.writer import compile_writer
from tests.event_types import EVERYTHING, logical, record
from tests.unit.test_codec import AWARE, DEFINITIONS, EVERYTHING_DATA, NAIVE, event_types_and_data


class Text(str):
    """What is equal to a str and is not one."""


class Level(enum.StrEnum):
    A = "A"


IN_UTC = AWARE.astimezone(UTC)
EARLY = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=3)))
NUMBERS = [0, 1, -1, 5.0, 5.5, math.nan, math.inf, -0.0, 1e300, 2**31, -(2**31) - 1, 2**53 + 1, 2**63, -(2**63), 10**30]
TEXTS = ["", "A", "ü\0", "\ud800", "2026-01-01", "x" * 9000, Text("A"), Level.A, b"", b"ab", bytearray(b"ab"), str(UUID(int=5))]
INSTANTS = [
    AWARE,
    NAIVE,
    IN_UTC,
    IN_UTC.replace(microsecond=1000),
    IN_UTC.replace(fold=1),
    EARLY,
    datetime.max.replace(tzinfo=UTC),
]
TIMES = [time(1, 2, 3, 4), time(1, 2, 3, 4000), time(1, tzinfo=UTC), time(1, fold=1), date(2026, 1, 1), date.min]
DECIMALS = [
    "1.5",
    "1.50",
    "1.500",
    "-0",
    "-1.28",
    "1E+3",
    "NaN",
    "-Infinity",
    "0E+9",
    "9999.99",
    "10000.00",
    "1E+999999",
    "0.000",
]
COLLECTIONS = [[], ["A"], [1], [1, "A"], ("A",), ("string", "A"), {}, {"a": 1}, {"a": 1, "b": 2}, {1: 2}, {"f0": 1}, range(3)]
ODD: list[Any] = [
    None,
    True,
    False,
    *NUMBERS,
    *TEXTS,
    *INSTANTS,
    *TIMES,
    *map(Decimal, DECIMALS),
    *COLLECTIONS,
    UUID(int=5),
    object(),
]
COLUMNS: dict[str, Any] = {
    "null": "null",
    "boolean": "boolean",
    "int": "int",
    "long": "long",
    "float": "float",
    "double": "double",
    "bytes": "bytes",
    "string": "string",
    **DEFINITIONS,
    "time-millis": logical("int", "time-millis"),
    "timestamp-millis": logical("long", "timestamp-millis"),
    "local-timestamp-millis": logical("long", "local-timestamp-millis"),
    "whole numbers": logical("bytes", "decimal", precision=4),
    "unknown logical type": logical("string", "nobody knows it"),
    "numbers": ["null", "int", "long", "float", "double"],
    "float first": ["float", "string", "double"],
    "double first": ["double", "long"],
    "dates": ["null", logical("int", "date"), "string", logical("long", "timestamp-micros")],
    "instants": ["string", logical("long", "timestamp-micros"), logical("int", "date")],
    "texts": [{"type": "enum", "name": "E2", "symbols": ["A", "B"]}, "null", "string"],
    "identities": ["null", DEFINITIONS["uuid"], "bytes"],
    "sequences": [{"type": "array", "items": "int"}, "bytes"],
    "sizes": ["null", {"type": "fixed", "name": "F2", "size": 2}, "bytes", DEFINITIONS["longs"]],
    "dicts": ["null", record("One", ("a", "long")), record("Two", ("a", "long"), ("b", "long"))],
    "dict or map": [record("Three", ("a", "long")), {"type": "map", "values": "long"}],
    "decimals": ["null", DEFINITIONS["decimal"], "string"],
    "nested": {"type": "array", "items": {"type": "map", "values": ["null", DEFINITIONS["decimal"]]}},
}


class Ways:
    """Both ways to write an event type: by the function made for its schema, and by fastavro."""

    def __init__(self, event_type: EventType) -> None:
        self._pinned = PinnedType(1, event_type)
        self._codec = Codec()
        self._codec.add([self._pinned])
        self._write = compile_writer(event_type.parsed, header=b"\0\0\0\0\1")
        self._read = compile_reader(event_type.parsed, offset=5)

    def take(self, data: Any) -> bool:
        """Tell whether the function takes the data, after a look that fastavro writes the same, and reads that."""
        assert self._write is not None
        assert self._read is not None
        try:
            payload, value = self._write(data)
        except Exception:
            return False
        expected = self._codec._encode_and_read_back(self._pinned, data)
        assert payload == expected[0]
        assert repr(value) == repr(expected[1])  # NaN is not NaN, and True is 1
        assert repr(self._read(payload)) == repr(value)
        return True


@pytest.mark.parametrize("column", COLUMNS)
def test_each_type_beside_fastavro_on_odd_values(column: str) -> None:
    ways = Ways(EventType.from_schema(record("T", ("x", COLUMNS[column]))))
    taken = [ways.take({"x": value}) for value in ODD]
    assert any(taken) or column == "dict or map"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("long", 5.0),
        ("long", True),
        ("int", 2**31),
        ("int", -(2**31) - 1),
        ("long", 2**63),
        ("boolean", 1),
        ("string", Text("A")),
        ("enum", Level.A),
        ("float", 2**24 + 1),
        ("double", 2**53 + 1),
        ("bytes", bytearray(b"a")),
        ("strings", ("a",)),
        ("decimal", Decimal("1.005")),
        ("decimal", Decimal("1E+6")),
        ("timestamp-micros", NAIVE),
        ("timestamp-millis", AWARE),
        ("local-timestamp-micros", AWARE),
        ("time-micros", time(1, tzinfo=UTC)),
        ("date", AWARE),
        ("dates", "2026-01-01"),
        ("dicts", {"a": 1}),
        ("longs", range(3)),
    ],
    ids=repr,
)
def test_what_reading_would_not_give_back_is_left_to_the_careful_way(column: str, value: Any) -> None:
    write = compile_writer(EventType.from_schema(record("T", ("x", COLUMNS[column]))).parsed)
    assert write is not None
    with pytest.raises(Exception):  # noqa: B017 - any exception sends the data the other way
        write({"x": value})


@settings(max_examples=60, deadline=None)
@given(event_types_and_data())
def test_generated_schemas_beside_fastavro(drawn: tuple[EventType, dict[str, Any]]) -> None:
    Ways(drawn[0]).take(drawn[1])


@settings(max_examples=80, deadline=None)
@given(event_types_and_data(), st.data())
def test_generated_schemas_with_an_odd_value_somewhere(drawn: tuple[EventType, dict[str, Any]], draw: st.DataObject) -> None:
    Ways(drawn[0]).take(_damaged(drawn[1], draw))


def _damaged(value: Any, draw: st.DataObject) -> Any:
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inner or draw.draw(st.integers(0, 3)) == 0:
        return draw.draw(st.sampled_from(ODD))
    key = draw.draw(st.sampled_from(inner))
    copied = value.copy()
    copied[key] = _damaged(value[key], draw)
    return copied


def test_all_types_at_once_and_named_types_take_the_quick_way() -> None:
    write = compile_writer(EVERYTHING.parsed)
    assert write is not None
    payload, value = write(EVERYTHING_DATA)
    buffer = BytesIO()
    fastavro.schemaless_writer(buffer, EVERYTHING.parsed, EVERYTHING_DATA)
    assert payload == buffer.getvalue()
    assert value == EVERYTHING_DATA


def test_numbers_of_every_length() -> None:
    parsed = EventType.from_schema(record("T", ("x", "long"))).parsed
    write = compile_writer(parsed)
    assert write is not None
    for number in (sign * ((1 << bits) + more) for bits in range(63) for more in (-1, 0, 1) for sign in (1, -1)):
        buffer = BytesIO()
        fastavro.schemaless_writer(buffer, parsed, {"x": number})
        assert write({"x": number})[0] == buffer.getvalue()


def test_defaults_are_filled_in_at_any_depth() -> None:
    inner = record("Inner", ("count", "int", 7), ("raw", "bytes", "\u00ff"), ("tags", DEFINITIONS["strings"], ["a"]))
    price = logical("bytes", "decimal", precision=6, scale=2)
    event_type = EventType.from_schema(
        record(
            "T",
            ("x", inner),
            ("y", "Inner", {"count": 1}),
            ("at", DEFINITIONS["timestamp-micros"], 0),
            ("price", price, "\u0001"),
        )
    )
    codec = Codec()
    codec.add([PinnedType(1, event_type)])
    encoded = codec.encode("T", 0, {"x": {"count": 3}})
    assert encoded.data == {
        "x": {"count": 3, "raw": b"\xff", "tags": ["a"]},
        "y": {"count": 1, "raw": b"\xff", "tags": ["a"]},
        "at": datetime(1970, 1, 1, tzinfo=UTC),
        "price": Decimal("0.01"),
    }
    assert codec.decode(encoded.payload) == encoded.data
    encoded.data["x"]["tags"].append("b")  # it is the caller's own
    assert codec.encode("T", 0, {"x": {"count": 3}}).data["x"]["tags"] == ["a"]


def test_data_shares_nothing_that_can_change() -> None:
    data: Any = {"x": [1], "y": {"a": {"b": 1}}}
    schema = record("T", ("x", DEFINITIONS["longs"]), ("y", {"type": "map", "values": {"type": "map", "values": "long"}}))
    codec = Codec()
    codec.add([PinnedType(1, EventType.from_schema(schema))])
    encoded = codec.encode("T", 0, data)
    data["x"].append(2)
    data["y"]["a"]["b"] = 2
    assert encoded.data == {"x": [1], "y": {"a": {"b": 1}}}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"items": [{"price": Decimal(1)}, {"price": Decimal(2)}, {"price": "3"}]}, "items[2].price: '3' is no decimal"),
        ({"items": [{"price": Decimal("1E+999999999")}]}, "items[0].price: Decimal('1E+999999999') is beyond the precision"),
        ({"items": [{"price": Decimal("1E+4")}]}, "items[0].price: Decimal('1E+4') is beyond the precision"),
        ({"items": [{}]}, "items[0].price is missing"),
        ({"items": [{"price": Decimal(1), "cost": 1}]}, "items[0] has more fields than Item: ['cost']"),
        ({"items": {}}, "items: {} is no array"),
        ({"items": [], "counts": {"a": {"b": "c"}}}, "counts.a.b: 'c' is no long"),
        ({"items": [], "maybe": {"price": 5.5}}, "maybe.price: 5.5 is no decimal"),
        ({"items": [], "maybe": 5}, "maybe: 5 is no null or Item"),
    ],
)
def test_errors_name_the_place(data: Any, says: str) -> None:
    item = record("Item", ("price", logical("bytes", "decimal", precision=6, scale=2)))
    counts = {"type": "map", "values": {"type": "map", "values": "long"}}
    schema = record("T", ("items", {"type": "array", "items": item}), ("counts", counts, {}), ("maybe", ["null", "Item"], None))
    codec = Codec()
    codec.add([PinnedType(1, EventType.from_schema(schema))])
    with pytest.raises(InvalidEvent) as caught:
        codec.encode("T", 0, data)
    assert says in str(caught.value)


def test_large_schemas_are_left_to_fastavro() -> None:
    event_type = EventType.from_schema(record("T", *((f"f{n}", "long") for n in range(4_000))))
    assert compile_writer(event_type.parsed) is None
    codec = Codec()
    codec.add([PinnedType(1, event_type)])
    data = {f"f{n}": n for n in range(4_000)}
    assert codec.decode(codec.encode("T", 0, data).payload) == data
