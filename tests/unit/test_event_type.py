from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eventspine import EventType, SchemaError, load_event_types
from tests.event_types import EVERYTHING, logical, record

PLACED = record("OrderPlaced", ("customer_id", "string"))


def nested(depth: int) -> dict[str, Any]:
    schema: Any = "long"
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return record("A", ("x", schema))


def test_the_records_name_is_the_event_types_name() -> None:
    assert EventType.from_schema(PLACED).name == "OrderPlaced"
    assert EventType.from_schema(PLACED).schema_version == 1
    assert EventType.from_schema(PLACED | {"namespace": "shop"}).name == "OrderPlaced"
    assert EventType.from_schema(PLACED | {"namespace": "shop"}).full_name == "shop.OrderPlaced"
    assert EventType.from_schema(PLACED | {"name": "shop.OrderPlaced"}).name == "OrderPlaced"
    assert EventType.from_schema(PLACED).full_name == "OrderPlaced"
    assert EVERYTHING.full_name == "org.example.shop.EverythingHappened"


def test_texts_that_say_the_same_have_one_fingerprint() -> None:
    shuffled = json.loads(json.dumps(dict(reversed(PLACED.items())), indent=3))
    assert EventType.from_schema(shuffled) == EventType.from_schema(PLACED)
    assert EventType.from_schema(shuffled).fingerprint == EventType.from_schema(PLACED).fingerprint
    assert len(EventType.from_schema(PLACED).fingerprint) == 32


@pytest.mark.parametrize(
    "other",
    [
        record("OrderPlaced", ("customer_id", "string", "")),
        record("OrderPlaced", ("customer_id", logical("string", "uuid"))),
        record("OrderPlaced", ("customer_id", "bytes")),
        record("OrderPlaced", ("customer_id", "string"), namespace="shop"),
        record("OrderPlaced", ("customer_id", "string"), doc="words"),
        record("OrderPlaced", ("customer_id", "string"), aliases=["Ordered"]),
        record("OrderPlaced", ("a", "string"), ("customer_id", "string")),
        record("OrderPlaced", ("customer_id", "string"), ("a", "string")),
    ],
    ids=["default", "logical type", "type", "namespace", "doc", "aliases", "field before", "field behind"],
)
def test_whatever_differs_changes_the_fingerprint(other: dict[str, Any]) -> None:
    assert EventType.from_schema(other).fingerprint != EventType.from_schema(PLACED).fingerprint


def test_the_order_of_fields_matters() -> None:
    ab, ba = record("A", ("a", "long"), ("b", "long")), record("A", ("b", "long"), ("a", "long"))
    assert EventType.from_schema(ab).fingerprint != EventType.from_schema(ba).fingerprint


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (None, "an Avro record with a name"),
        ("string", "an Avro record with a name"),
        ({"type": "enum", "name": "A", "symbols": ["B"]}, "an Avro record with a name"),
        ({"type": "record", "fields": []}, "an Avro record with a name"),
        ({"type": "record", "name": 5, "fields": []}, "an Avro record with a name"),
        (record("A", ("x", "nope")), "nope"),
        (record("A", ("x", object())), "not JSON"),
        (record("A", ("x", "long", "s")), "Default value"),
        ({"type": "record", "name": "A", "fields": 5}, "no list"),
        ({"type": "record", "name": "A", "fields": [5]}, "5"),
        ({"type": "record", "name": "A", "fields": [{"name": "x"}]}, "type"),
        (record("A", ("x", {"type": "array"})), "items"),
        (record("A", ("x", {"type": "enum", "name": "E", "symbols": ["A", "A"]})), "unique"),
        # fastavro lets these pass; other Avro libraries don't
        (record("1A"), "'1A' is no name"),
        (record(""), "'' is no name"),
        (record("A."), "no name"),
        (record("a-b.A", ("x", "long")), "no name"),
        (record("A", ("1 x", "long")), "1 x"),
        (record("A", ("x", "long"), ("x", "long")), "repeated"),
        (record("A", ("x", record("B", ("y y", "long")))), "y y"),
        (record("A", ("x", {"type": "map", "values": {"type": "fixed", "name": "F", "size": "a"}})), "size"),
        (record("A", ("x", ["null", ["null"]])), "union"),
        (record("A", ("x", ["long", logical("long", "timestamp-micros")])), "twice"),
        # these would let data end the process
        (record("A", ("x", {"type": "array", "items": "A"})), "A contains itself"),
        (record("A", ("x", ["null", record("B", ("y", {"type": "map", "values": "A"}))])), "A contains itself"),
        (record("A", ("x", record("B", ("y", ["null", "B"]))), namespace="n"), "n.B contains itself"),
        (record("A", ("x", {"type": "array", "items": "null"})), "no bytes"),
        (record("A", ("x", {"type": "array", "items": record("B", ("y", "null"))})), "no bytes"),
        (nested(100_000), "A"),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, str) else "",
)
def test_invalid_schemas_are_refused(schema: Any, says: str) -> None:
    with pytest.raises(SchemaError) as caught:
        EventType.from_schema(schema)
    assert says in str(caught.value)


@pytest.mark.parametrize("version", [0, -1])
def test_versions_count_from_1(version: int) -> None:
    with pytest.raises(SchemaError, match="count from 1"):
        EventType.from_schema(PLACED, schema_version=version)


def test_a_type_may_be_used_twice_without_containing_itself() -> None:
    EventType.from_schema(record("A", ("x", record("B", ("y", "long"))), ("z", "B"), ("maybe", ["null", "B"])))


def test_two_types_may_give_one_name_different_meanings() -> None:
    one = EventType.from_schema(record("One", ("inner", record("Inner", ("a", "long")))))
    two = EventType.from_schema(record("Two", ("inner", record("Inner", ("b", "string")))))
    assert one.parsed["fields"][0]["type"]["fields"][0]["name"] == "a"
    assert two.parsed["fields"][0]["type"]["fields"][0]["name"] == "b"


def write(folder: Path, name: str, content: Any) -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def test_avsc_files_name_type_and_version(tmp_path: Path) -> None:
    assert EventType.from_avsc(write(tmp_path, "OrderPlaced.avsc", PLACED)) == EventType.from_schema(PLACED)
    v12 = EventType.from_avsc(write(tmp_path, "OrderPlaced.v12.avsc", PLACED))
    assert (v12.name, v12.schema_version) == ("OrderPlaced", 12)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("order-placed.avsc", PLACED, "OrderPlaced.v2.avsc for version 2"),
        ("OrderPlaced.v0.avsc", PLACED, "name it like the event type"),
        ("OrderPlaced.v2.json", PLACED, "name it like the event type"),
        ("OrderPaid.avsc", PLACED, "the record inside is called 'OrderPlaced'"),
        ("OrderPlaced.avsc", "{", "not JSON"),
        ("OrderPlaced.avsc", [PLACED], "an Avro record"),
    ],
)
def test_wrong_avsc_files_are_refused(tmp_path: Path, name: str, content: Any, says: str) -> None:
    with pytest.raises(SchemaError) as caught:
        EventType.from_avsc(write(tmp_path, name, content))
    assert says in str(caught.value)


def test_a_folder_is_read_sorted_by_name_and_version(tmp_path: Path) -> None:
    for name in ("B.v10.avsc", "B.v2.avsc", "B.avsc", "A.avsc"):
        write(tmp_path, name, record(name[0], ("x", "long")))
    write(tmp_path, "README.md", "not a schema")
    found = [(event_type.name, event_type.schema_version) for event_type in load_event_types(tmp_path)]
    assert found == [("A", 1), ("B", 1), ("B", 2), ("B", 10)]


def test_a_folder_without_schemas_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"no \.avsc file"):
        load_event_types(tmp_path)


def test_a_dataclass_gives_name_and_schema() -> None:
    pytest.importorskip("dataclasses_avroschema", reason="needs the extra eventspine[dataclasses]")

    @dataclass
    class OrderPlaced:
        customer_id: str
        total_cents: int
        note: str | None = None

    event_type = EventType.from_dataclass(OrderPlaced, schema_version=3)
    assert (event_type.name, event_type.schema_version) == ("OrderPlaced", 3)
    fields = {field["name"]: field for field in json.loads(event_type.definition)["fields"]}
    assert [fields[name]["type"] for name in ("customer_id", "total_cents", "note")] == ["string", "long", ["null", "string"]]
    assert fields["note"]["default"] is None
    assert EventType.from_dataclass(OrderPlaced, schema_version=3) == event_type


def test_what_has_no_schema_is_refused() -> None:
    pytest.importorskip("dataclasses_avroschema", reason="needs the extra eventspine[dataclasses]")

    @dataclass
    class Odd:
        value: object

    class Plain:
        pass

    with pytest.raises(SchemaError, match="Odd: no Avro schema"):
        EventType.from_dataclass(Odd)
    others: list[Any] = [Plain, 5, Odd(1)]
    for model in others:
        with pytest.raises(SchemaError, match="is no dataclass"):
            EventType.from_dataclass(model)
