"""Examples of a schema: every branch, symbol and bound, and nothing that the store would refuse."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from io import BytesIO
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer

from eventspine import EventType, SchemaError
from eventspine.schemas import Codec, PinnedType
from eventspine.schemas.examples import examples_of
from tests.event_types import EVENT_TYPES, EVERYTHING, logical, record

TREE = record("Tree", ("value", "long"), ("children", {"type": "array", "items": "Tree"}), ("twin", ["null", "Tree"], None))


@pytest.mark.parametrize("event_type", EVENT_TYPES, ids=lambda each: f"{each.name}{each.schema_version}")
def test_the_store_takes_every_example(event_type: EventType) -> None:
    codec = Codec()
    codec.add([PinnedType(1, event_type)])
    for data in examples_of(event_type.schema):
        assert codec.encode(event_type.name, 0, data).data == data


def test_every_branch_symbol_and_bound_is_taken() -> None:
    found = list(examples_of(EVERYTHING.schema))
    assert {type(each["choice"]) for each in found} == {type(None), int, str, bool}
    assert {each["level"] for each in found} == {"LOW", "HIGH"}
    assert {each["work"] is None for each in found} == {True, False}
    assert {len(each["places"]) for each in found} == {0, 1, 2}
    assert {len(each["counts"]) for each in found} == {0, 1, 2}
    assert {2**31 - 1, -(2**31), 0} <= {each["small"] for each in found}
    assert {Decimal("9999999999.99"), Decimal("-9999999999.99"), Decimal("0.01")} <= {each["price"] for each in found}
    assert datetime(1970, 1, 1, tzinfo=UTC) in {each["at"] for each in found}


def test_they_are_the_same_each_time_and_the_smallest_is_first() -> None:
    found = list(examples_of(EVERYTHING.schema))
    assert found == list(examples_of(EVERYTHING.schema))
    small = record("E", ("a", {"type": "array", "items": "string"}), ("b", ["null", "long"], None))
    sizes = [len(json.dumps(each, ensure_ascii=False, separators=(",", ":"))) for each in examples_of(small)]
    assert sizes == sorted(sizes)
    assert next(iter(examples_of(small))) == {"a": [], "b": 0}


def test_their_number_grows_with_the_schema_not_with_its_combinations() -> None:
    wide = record("Wide", *((f"f{number}", ["null", "long", "string"]) for number in range(50)))
    assert len(list(examples_of(wide))) == 1 + 50 * 9


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        ("boolean", [True, False]),
        ({"type": "fixed", "name": "F", "size": 2}, [b"\x00\x00", b"\xff\xff"]),
        ({"type": "enum", "name": "E", "symbols": ["LONG", "S"]}, ["S", "LONG"]),
        ({"type": "map", "values": "null"}, [{}, {"k": None}, {"k": None, "ö": None}]),
        (logical("bytes", "decimal", precision=1), [Decimal(0), Decimal(1), Decimal(9), Decimal(-1), Decimal(-9)]),
        (record("Empty"), [{}]),
        (record("Nothing", ("x", ["null"])), [{"x": None}]),
    ],
)
def test_values(schema: Any, values: list[Any]) -> None:
    assert list(examples_of(schema)) == values


@pytest.mark.parametrize(
    "schema",
    [
        logical("int", "date"),
        logical("int", "time-millis"),
        logical("long", "time-micros"),
        logical("long", "timestamp-millis"),
        logical("long", "timestamp-micros"),
        logical("long", "local-timestamp-millis"),
        logical("long", "local-timestamp-micros"),
        logical("string", "uuid"),
        logical("long", "unknown-to-us"),
        {"type": "fixed", "name": "F", "size": 3, "logicalType": "decimal", "precision": 6, "scale": 1},
    ],
    ids=str,
)
def test_logical_types_are_python_values_that_can_be_written(schema: Any) -> None:
    parsed = parse_schema(schema)
    for value in examples_of(schema):
        schemaless_writer(BytesIO(), parsed, value)


def test_a_type_that_contains_itself_is_entered_twice() -> None:
    found = list(examples_of(TREE))
    assert found[0] == {"value": 0, "children": [], "twin": None}
    assert any(each["children"] for each in found)
    assert any(each["twin"] for each in found)
    assert all(child["children"] == [] for each in found for child in each["children"])


def test_a_type_without_a_finite_value_is_refused() -> None:
    with pytest.raises(SchemaError, match="contains itself without an end"):
        list(examples_of(record("Endless", ("next", "Endless"))))
