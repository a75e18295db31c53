"""Schemas and bytes made to crash, to hang or to fill the memory: refused, with the place named, in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventspine.schemas import Codec, DecodeError, EventType, InvalidEvent, PinnedType, SchemaError
from eventspine.schemas.avro_rules import MAX_DEFINITION_BYTES, MAX_DEPTH
from tests.event_types import EVERYTHING, logical, record
from tests.unit.test_codec import EVERYTHING_DATA, event_types_and_data

HEADER = b"\0\0\0\0\x01"
LARGEST = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # -(2**63)
HUGE = b"\x80\x80\x80\x80\x80\x80\x80\x80\x20"  # 2**60


def doubling(levels: int, *defaults: Any) -> dict[str, Any]:
    """Records that each hold two fields of the record before."""
    schema: Any = record("R0", ("x", "long", 0))
    for level in range(1, levels):
        schema = record(f"R{level}", ("a", schema, *defaults), ("b", f"R{level - 1}", *defaults))
    return record("A", ("x", schema, *defaults))


def arrays(depth: int) -> Any:
    return "long" if depth == 0 else {"type": "array", "items": arrays(depth - 1)}


WIDE = record("Wide", *((f"f{n}", "string", "x" * 500) for n in range(100)))
SCHEMAS: dict[str, tuple[Any, str]] = {
    "too long": (record("A", ("x", "long"), doc="d" * MAX_DEFINITION_BYTES), "longer than 1,000,000 bytes"),
    "too long a number": (record("A", ("x", "long"), more=10**2_500_000), "longer than"),
    "too many values": (record("A", ("x", "long"), more=[0] * 600_000), "longer than"),
    "too deep": (record("A", ("x", arrays(MAX_DEPTH))), "[]: nested deeper than 32 levels"),
    "too deep by names": (
        record(
            "A", ("x", record("B", ("y", arrays(20)))), ("z", {"type": "map", "values": {"type": "map", "values": arrays(9)}})
        ),
        "",
    ),
    "deep by reference": (record("A", ("x", record("B", ("y", arrays(25)))), ("deep", [{"type": "array", "items": "B"}])), ""),
    "too deep by reference": (
        record(
            "A", ("x", record("B", ("y", arrays(28)))), ("deep", [{"type": "array", "items": {"type": "map", "values": "B"}}])
        ),
        "deep[]{}: nested deeper",
    ),
    "too deep outside types": (record("A", ("x", "long"), more=json.loads("[" * 200 + "]" * 200)), "nested deeper"),
    "doubling": (doubling(30), "types, each counted as often as it is used"),
    "doubling defaults": (doubling(30, {}), "types, each counted as often as it is used"),
    "too many fields": (record("A", *((f"f{n}", "long") for n in range(10_001))), "more than 10,000"),
    "long default": (record("A", ("note", "string", "x" * 70_000)), "note: the default comes to more than 65,536 bytes"),
    "long list": (record("A", ("list", {"type": "array", "items": "long"}, [1] * 70_000)), "list: the default comes to more"),
    "defaults of defaults": (
        record("A", ("one", WIDE, {}), ("many", {"type": "array", "items": "Wide"}, [{}, {}])),
        "many: the default comes to more",
    ),
    "empty items by name": (
        record("A", ("x", record("B")), ("y", {"type": "array", "items": "B"})),
        "y: the items of an array take no bytes",
    ),
    "empty items": (record("A", ("y", {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}})), "y: the items"),
    "values without bytes": (
        record("A", ("x", {"type": "array", "items": record("B", *((f"f{n}", "null") for n in range(101)), ("y", "boolean"))})),
        "x[]: more than 100 values of B take no bytes",
    ),
    "recursive": (record("A", ("x", record("B", ("y", ["null", "B"])))), "x.y: B contains itself; give it a bounded depth"),
    "default of another type": (
        record("A", ("x", record("B", ("y", "int", 2**31)))),
        "x.y: Default value 2147483648 must match int",
    ),
    "boolean default": (record("A", ("x", "int", True)), "x: Default value True"),
    "default of a later branch": (
        record("A", ("x", ["null", "long"], 0)),
        "x: Default value 0 must match null; for a union, that",
    ),
    "default inside": (record("A", ("x", arrays(2), [[1], [2, "3"]])), "x[1][1]: Default value '3' must match long"),
    "default without a field": (
        record("A", ("x", record("B", ("y", "long")), {})),
        "x: Default value {} lacks the field 'y' of B",
    ),
    "default with a field more": (record("A", ("x", record("B"), {"y": 1})), "x: Default value {'y': 1} has fields that B lacks"),
    "default of bytes": (record("A", ("x", "bytes", "€")), "x: Default value '€' must match bytes"),
    "default of a fixed": (
        record("A", ("x", {"type": "fixed", "name": "F", "size": 2}, "a")),
        "x: Default value 'a' must match F",
    ),
    "default of an enum": (record("A", ("x", {"type": "enum", "name": "E", "symbols": ["B"]}, "C")), "x: Default value 'C'"),
    "default symbol": (
        record("A", ("x", {"type": "enum", "name": "E", "symbols": ["B"], "default": "C"})),
        "x: the default 'C' is",
    ),
    "no symbols": (record("A", ("x", {"type": "enum", "name": "E", "symbols": []})), "x: the symbols of E"),
    "symbol is no name": (
        record("A", ("x", {"type": "enum", "name": "E", "symbols": ["a b"]})),
        "x: the symbol 'a b' of E is no name",
    ),
    "name twice": (record("A", ("x", record("B")), ("y", record("B"))), "y: B is defined twice"),
    "name of a primitive": (record("A", ("x", record("long"))), "x: long is the name of a primitive type"),
    "namespace": (record("A", namespace="a b"), "the namespace 'a b' is no name"),
    "unknown name": (record("A", ("x", ["null", "B"]), namespace="shop"), "x: shop.B is no type that is known here"),
    "empty union": (record("A", ("x", [])), "x: a union without types"),
    "aliases": (record("A", ("x", record("B", aliases="C"))), "x: the aliases 'C' are no list of names"),
    "alias": (record("A", ("x", record("B", aliases=["c d"]))), "x: the alias 'c d' is no name"),
    "alias of a field": (
        {"type": "record", "name": "A", "fields": [{"name": "x", "type": "long", "aliases": ["a.b"]}]},
        "x: the alias",
    ),
    "order": ({"type": "record", "name": "A", "fields": [{"name": "x", "type": "long", "order": "up"}]}, "x: the order 'up'"),
    "no precision": (record("A", ("x", logical("bytes", "decimal"))), "x: a decimal needs a precision from 1 to 1,000, not None"),
    "precision": (record("A", ("x", logical("bytes", "decimal", precision=10**9))), "x: a decimal needs a precision"),
    "scale": (
        record("A", ("x", logical("bytes", "decimal", precision=2, scale=3))),
        "x: the scale of a decimal is from 0 to its",
    ),
    "small fixed": (
        record("A", ("x", logical("fixed", "decimal", name="F", size=2, precision=5))),
        "x: a fixed of 2 bytes holds decimals of 4 digits, not 5",
    ),
    "large fixed": (record("A", ("x", {"type": "fixed", "name": "F", "size": 2**31})), "x: the size of F is 2147483648"),
    "date in a long": (record("A", ("x", logical("long", "date"))), "x: the logical type date is for int, not long"),
    "uuid in a fixed": (record("A", ("x", logical("fixed", "uuid", name="F", size=8))), "needs a fixed of 16 bytes, not 8"),
    "reference in an object": (record("A", ("x", record("B")), ("y", {"type": "B"})), "y: 'B' is no type to describe here"),
    "not a number": (record("A", ("x", "double", float("nan"))), "not JSON: nan"),
}
PAYLOADS: dict[str, tuple[Any, bytes, str]] = {
    "claimed items": (arrays(1), HUGE, "x[0], at byte 14: the bytes end here"),
    "claimed items, negative": (arrays(1), LARGEST + b"\x02", "x[0], at byte 16: the bytes end here"),
    "claimed strings": ({"type": "array", "items": "string"}, HUGE + b"\x00" * 3, "x[3], at byte"),
    "claimed entries": ({"type": "map", "values": "null"}, HUGE + b"\x02a", "x{}, at byte"),
    "negative block": (arrays(1), b"\x01\x03\x02\x00", "x, at byte 7: a block of negative size"),
    "claimed text": ("string", HUGE + b"abc", "x, at byte 14: 1152921504606846976 bytes are claimed, and 3 follow"),
    "negative text": ("string", b"\x01", "x, at byte 6: a length of -1"),
    "claimed bytes": ("bytes", b"\x08abc", "x, at byte 6: 4 bytes are claimed, and 3 follow"),
    "long number": ("long", b"\xff" * 10 + b"\x00", "x, at byte 15: a number of more than 64 bits"),
    "too large a number": ("long", b"\xff" * 9 + b"\x7f", "x, at byte 15: a number of more than 64 bits"),
    "endless number": ("long", b"\xff" * 1_000_000, "a number of more than 64 bits"),
    "branch": (["null", "long"], b"\x04", "x, at byte 6: the union's type is number 2 of 2"),
    "negative branch": (["null", "long"], b"\x01\x02", "x, at byte 6: the union's type is number -1 of 2"),
    "symbol": ({"type": "enum", "name": "E", "symbols": ["B"]}, b"\x02", "x, at byte 6: the symbol is number 1 of 1"),
    "negative symbol": ({"type": "enum", "name": "E", "symbols": ["B"]}, b"\x01", "x, at byte 6: the symbol is number -1 of 1"),
    "no UTF-8": ("string", b"\x02\xff", "x, at byte 7: no UTF-8"),
    "key without UTF-8": ({"type": "map", "values": "long"}, b"\x02\x02\xff\x00\x00", "x{}, at byte 8: no UTF-8"),
    "fixed": ({"type": "fixed", "name": "F", "size": 4}, b"abc", "x, at byte 5: 4 bytes are claimed, and 3 follow"),
    "year": (logical("long", "timestamp-micros"), LARGEST, "T version 1 (schema id 1)"),
    "date": (logical("int", "date"), b"\xfe\xff\xff\xff\x0f", "T version 1 (schema id 1)"),
    "uuid": (logical("string", "uuid"), b"\x02a", "T version 1 (schema id 1)"),
    "inner": (
        {"type": "array", "items": record("I", ("price", ["null", "string"]))},
        b"\x04\x00\x02\x7f",
        "x[1].price, at byte 9: a length of -64",
    ),
}


def codec_for(type_: Any) -> Codec:
    codec = Codec()
    codec.add([PinnedType(1, EventType.from_schema(record("T", ("x", type_))))])
    return codec


@pytest.mark.parametrize("bomb", SCHEMAS)
def test_schemas(bomb: str) -> None:
    schema, says = SCHEMAS[bomb]
    if not says:
        assert EventType.from_schema(schema).parsed
        return
    with pytest.raises(SchemaError) as caught:
        EventType.from_schema(schema)
    assert says in str(caught.value)
    assert str(caught.value).startswith("A version 1: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "schema",
    [
        record("A", ("x", logical("string", "nobody knows it")), ("y", logical("bytes", "big-decimal"))),
        record("A", ("x", {"type": "enum", "name": "E", "symbols": ["B", "C"], "default": "C"}, "B"), aliases=["old.A"]),
        record("A", ("x", ["long", "null"], 1), ("y", record("B", ("z", "double", 1), ("w", "bytes", "\u00ff")), {})),
        record("A", ("x", logical("fixed", "decimal", name="F", size=2, precision=4, scale=4))),
        record("A", ("x", record("B", namespace="b")), ("y", "b.B"), namespace="a"),
        doubling(10, {}),
    ],
    ids=["unknown logical types", "enum", "defaults", "fixed", "namespaces", "shared types"],
)
def test_what_is_in_order_passes(schema: Any) -> None:
    assert EventType.from_schema(schema).parsed


@pytest.mark.parametrize("text", ["[" * 1_000_000, '{"a":' * 150_000, "{", "9" * 1_000_001, "NaN", "\ufeff{}"])
def test_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "A.avsc"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SchemaError):
        EventType.from_avsc(file)


@pytest.mark.parametrize("bomb", PAYLOADS)
def test_payloads(bomb: str) -> None:
    type_, payload, says = PAYLOADS[bomb]
    codec = codec_for(type_)
    for _ in range(2):  # before its reader is made, and after
        with pytest.raises(DecodeError) as caught:
            codec.decode(HEADER + payload)
        assert says in str(caught.value)
        assert "bytes do not fit T version 1 (schema id 1): " in str(caught.value)


_LIMITED = """
import resource, sys, time
from tests.unit.test_hostile import HEADER, LARGEST, PAYLOADS, SCHEMAS, codec_for
from eventspine.schemas import DecodeError, EventType, SchemaError

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for schema, says in SCHEMAS.values():
    try:
        EventType.from_schema(schema)
    except SchemaError:
        assert says
for type_, payload, _ in PAYLOADS.values():
    for many in (payload, payload[:20] * 1000, payload + bytes(200_000), LARGEST * 10_000):
        try:
            codec_for(type_).decode(HEADER + many)
        except DecodeError:
            pass
print("bounded")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_all_of_it_in_100_megabytes() -> None:
    """A MemoryError, a crash and a minute of computing all end it."""
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("bounded\n", "")


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["string", "long", "array", "T"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "name", "fields", "items", "values", "symbols", "size", "default", "aliases", "logicalType"]
            ),
            inner | st.sampled_from(["record", "array", "map", "enum", "fixed", "decimal"]),
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(_json, st.sampled_from(["type", "default", "logicalType", "aliases"]))
def test_any_json_is_a_schema_or_an_error(value: Any, key: str) -> None:
    for schema in (value, {"type": "record", "name": "T", "fields": [{"name": "x", "type": "long", key: value}]}):
        try:
            event_type = EventType.from_schema(schema)
        except SchemaError:
            continue
        assert event_type.parsed


@settings(max_examples=80, deadline=None)
@given(event_types_and_data(), st.data())
def test_damaged_payloads(drawn: tuple[EventType, dict[str, Any]], draw: st.DataObject) -> None:
    """What is read of damaged bytes can be written: it is data of that type."""
    event_type, data = drawn
    codec = Codec()
    codec.add([PinnedType(1, event_type)])
    payload = bytearray(codec.encode("T", 0, data).payload)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(5, len(payload)))
        payload[at : at + draw.draw(st.integers(0, 2))] = draw.draw(
            st.sampled_from([b"", b"\x01", b"\xff", b"\x7f", HUGE, LARGEST])
        )
    _decode(codec, bytes(payload))


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=80), st.integers(5, 90))
def test_any_bytes(noise: bytes, at: int) -> None:
    codec = Codec()
    codec.add([PinnedType(1, EVERYTHING)])
    payload = codec.encode("EverythingHappened", 0, EVERYTHING_DATA).payload
    _decode(codec, HEADER + noise)
    _decode(codec, payload[:at] + noise + payload[at + len(noise) :])
    _decode(codec, noise)


def _decode(codec: Codec, payload: bytes) -> None:
    try:
        data = codec.decode(payload)
    except DecodeError:
        return
    [pinned] = codec.pinned()
    try:
        again = codec.encode(pinned.event_type.name, 0, data)
    except InvalidEvent as error:
        # Other libraries refuse such numbers when they read, this one when it writes.
        expected = any(words in str(error) for words in ("NUL", " is no int", "precision"))
        if not expected:
            raise
        return
    assert repr(codec.decode(again.payload)) == repr(data)
