"""The readers made for a schema read what fastavro reads, and refuse what it refuses."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventspine.schemas.reader import compile_reader

_PRIMITIVES = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"]
_LOGICAL = [
    {"type": "long", "logicalType": "timestamp-millis"},
    {"type": "long", "logicalType": "timestamp-micros"},
    {"type": "int", "logicalType": "date"},
    {"type": "long", "logicalType": "time-micros"},
    {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2},
    {"type": "string", "logicalType": "uuid"},
    {"type": "string", "logicalType": "nobody knows it"},
]


def _record(fields: list[Any]) -> dict[str, Any]:
    return {"type": "record", "name": "Fact", "fields": [{"name": f"field{n}", "type": each} for n, each in enumerate(fields)]}


def _inner(types: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        # An array of nulls takes no bytes for its items: a few of them could claim 2**60. Event types can't have one.
        types.filter(lambda items: items != "null").map(lambda items: {"type": "array", "items": items}),
        types.map(lambda values: {"type": "map", "values": values}),
        st.sampled_from(_PRIMITIVES[1:]).map(lambda other: ["null", other]),
        st.sampled_from(_LOGICAL).map(lambda other: ["null", other, "boolean"]),
    )


_schemas = st.lists(st.recursive(st.sampled_from([*_PRIMITIVES, *_LOGICAL]), _inner, max_leaves=4), max_size=4).map(_record)
_special = _record(
    [
        {"type": "fixed", "name": "Four", "size": 4},
        {"type": "enum", "name": "Colour", "symbols": ["RED", "GREEN"]},
        {"type": "record", "name": "Inner", "fields": [{"name": "its", "type": "long"}]},
    ]
)


def _fastavro_reads(schema: Any, payload: bytes) -> Any:
    buffer = BytesIO(payload)
    value = fastavro.schemaless_reader(buffer, schema, None)
    if buffer.tell() != len(payload):
        raise ValueError("left over")
    return value


@given(schema=_schemas, draw=st.data())
def test_reads_what_was_written(schema: Any, draw: st.DataObject) -> None:
    parsed = fastavro.parse_schema(schema)
    read = compile_reader(parsed, offset=5)
    assert read is not None
    value = draw.draw(_values(schema))
    buffer = BytesIO()
    fastavro.schemaless_writer(buffer, parsed, value)
    assert repr(read(b"12345" + buffer.getvalue())) == repr(_fastavro_reads(parsed, buffer.getvalue()))  # NaN is not NaN


@given(schema=_schemas | st.just(_special), payload=st.binary(max_size=60))
def test_what_it_reads_of_any_bytes_is_what_fastavro_reads(schema: Any, payload: bytes) -> None:
    parsed = fastavro.parse_schema(schema)
    read = compile_reader(parsed)
    assert read is not None
    try:
        value = read(payload)
    except Exception:  # fastavro is asked then
        return
    assert repr(value) == repr(_fastavro_reads(parsed, payload))


@pytest.mark.parametrize("payload", [b"", b"1234", b"1234\x04\x02", b"1234\x03\x02", b"1234\x00\x02\x00"])
def test_refuses_bytes_that_do_not_fit(payload: bytes) -> None:
    read = compile_reader(fastavro.parse_schema(_special))
    assert read is not None
    assert read(b"1234\x00\x02") == {"field0": b"1234", "field1": "RED", "field2": {"its": 1}}
    with pytest.raises((LookupError, ValueError)):
        read(payload)


def test_knows_types_that_are_named() -> None:
    colour = {"type": "enum", "name": "Colour", "symbols": ["RED", "GREEN"]}
    read = compile_reader(fastavro.parse_schema(_record([colour, "Colour"])))
    assert read is not None
    assert read(b"\x00\x02") == {"field0": "RED", "field1": "GREEN"}


def test_leaves_large_schemas_to_fastavro() -> None:
    assert compile_reader(fastavro.parse_schema(_record(["long"] * 4_000))) is None


def _values(schema: Any) -> st.SearchStrategy[Any]:
    if isinstance(schema, list):
        return st.one_of([_values(each) for each in schema])
    kind = schema if isinstance(schema, str) else schema["type"]
    logical = None if isinstance(schema, str) else schema.get("logicalType")
    match logical or kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "int":
            return st.integers(-(2**31), 2**31 - 1)
        case "long":
            return st.integers(-(2**63), 2**63 - 1)
        case "float":
            return st.floats(width=32)
        case "double":
            return st.floats()
        case "bytes":
            return st.binary(max_size=200)
        case "array":
            return st.lists(_values(schema["items"]), max_size=3)
        case "map":
            return st.dictionaries(st.text(max_size=3), _values(schema["values"]), max_size=3)
        case "record":
            return st.fixed_dictionaries({field["name"]: _values(field["type"]) for field in schema["fields"]})
        case "timestamp-millis" | "timestamp-micros" | "time-micros":
            return st.integers(0, 80_000_000_000)
        case "date":
            return st.dates()
        case "decimal":
            return st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**8), max_value=10**8)
        case "uuid":
            return st.uuids()
    return st.text(max_size=200)
