"""Which schema can read what: Avro's rules with their reasons, what they do not see, and the gate on top."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from eventspine import EventType, SchemaError, upcaster
from eventspine.schemas.compatibility import Level, _for_avro, _Rules, can_read, changes_meaning, incompatibilities
from eventspine.schemas.diff import differences, verdicts
from eventspine.schemas.gate import breaches, check_new_version, find_counterexample
from eventspine.schemas.shape import shape_of
from tests.event_types import logical, record


def enum(name: str, *symbols: str, **more: Any) -> dict[str, Any]:
    return {"type": "enum", "name": name, "symbols": list(symbols), **more}


def fixed(size: int, **more: Any) -> dict[str, Any]:
    return {"type": "fixed", "name": "Digest", "size": size, **more}


def array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def values(inner: Any) -> dict[str, Any]:
    return {"type": "map", "values": inner}


def with_aliases(schema: dict[str, Any], *aliases: str) -> dict[str, Any]:
    schema["fields"][-1]["aliases"] = list(aliases)
    return schema


LINE = record("Line", ("price", "long"))
LONG_LINE = record("Line", ("price", "long"), ("count", "int"))
TREE = record("Tree", ("left", ["null", "Tree"], None), ("value", "long"))


@pytest.mark.parametrize(
    ("reader", "writer", "kind", "path", "said"),
    [
        (
            record("E", ("a", "int"), ("currency", "string")),
            record("E", ("a", "int")),
            "reader_field_missing_default_value",
            "currency",
            "field 'currency' is new and has no default: events written before can't be read; give it a default, "
            'e.g. "type": ["null", "string"], "default": null',
        ),
        (
            record("E", ("sum", "long")),
            record("E", ("total", "long")),
            "reader_field_missing_default_value",
            "sum",
            'if it is \'total\' under another name, give it "aliases": ["total"]',
        ),
        (
            record("E", ("a", ["string", "null"])),
            record("E"),
            "reader_field_missing_default_value",
            "a",
            'put "null" first among its types and give it the default null',
        ),
        (record("E", ("a", "string")), record("E", ("a", "long")), "type_mismatch", "a", "long became string; keep the type"),
        (record("E", ("a", "int")), record("E", ("a", "long")), "type_mismatch", "a", "long became int"),
        (record("E", ("a", "long")), record("E", ("a", ["null", "long"])), "type_mismatch", "a", "it can't be null any more"),
        (
            record("E", ("a", ["null", "long"])),
            record("E", ("a", ["null", "long", "string"])),
            "missing_union_branch",
            "a",
            "string is no longer among its types",
        ),
        (record("E", ("a", ["null", "long"])), record("E", ("a", "string")), "missing_union_branch", "a", "string is no longer"),
        (
            record("E", ("a", enum("X", "A"))),
            record("E", ("a", enum("X", "A", "B"))),
            "missing_enum_symbols",
            "a",
            "symbol B of enum X is gone",
        ),
        (
            record("E", ("a", enum("X", "A"))),
            record("E", ("a", enum("X", "A", "B", "C"))),
            "missing_enum_symbols",
            "a",
            "symbols B, C of enum X are gone",
        ),
        (
            record("E", ("a", fixed(8))),
            record("E", ("a", fixed(4))),
            "fixed_size_mismatch",
            "a",
            "fixed Digest went from 4 to 8 bytes",
        ),
        (record("E", ("a", enum("X", "A"))), record("E", ("a", enum("Y", "A"))), "name_mismatch", "a", "enum Y is now called X"),
        (record("New"), record("Old"), "name_mismatch", "", "record Old is now called New"),
        (record("E", ("a", array("int"))), record("E", ("a", array("long"))), "type_mismatch", "a[]", "long became int"),
        (
            record("E", ("a", values(array("int")))),
            record("E", ("a", values(array("long")))),
            "type_mismatch",
            "a{}[]",
            "long became",
        ),
        (
            record("E", ("items", array(LONG_LINE))),
            record("E", ("items", array(LINE))),
            "reader_field_missing_default_value",
            "items[].count",
            "field 'count' is new",
        ),
        (
            record("E", ("work", ["null", LONG_LINE])),
            record("E", ("work", ["null", LINE])),
            "missing_union_branch",
            "work.count",
            "field 'count' is new",
        ),
        (
            record("Tree", ("left", ["null", "Tree"]), ("value", "int")),
            record("Tree", ("left", ["null", "Tree"]), ("value", "long")),
            "type_mismatch",
            "value",
            "long became int",
        ),
        # An enum's own default is none of the field: Avro refuses this, with another name for it.
        (
            record("E", ("a", enum("X", "A", default="A"))),
            record("E"),
            "type_mismatch",
            "a",
            "field 'a' is new and has no default",
        ),
    ],
)
def test_what_can_not_be_read_is_named(reader: Any, writer: Any, kind: str, path: str, said: str) -> None:
    found = can_read(reader, writer)
    assert [(each.kind, each.path) for each in found] == [(kind, path)]
    assert said in found[0].said


@pytest.mark.parametrize(
    ("reader", "writer"),
    [
        (record("E", ("a", "long"), ("b", "string", "")), record("E", ("a", "int"), ("gone", "bytes"))),
        (record("E", ("a", "double")), record("E", ("a", "float"))),
        (record("E", ("a", "string")), record("E", ("a", "bytes"))),
        (record("E", ("a", ["null", "long"])), record("E", ("a", "long"))),
        (record("E", ("a", ["null", "double"])), record("E", ("a", ["long", "null"]))),
        (record("E", ("a", "long")), record("E", ("a", ["int", "long"]))),
        (record("E", ("a", enum("X", "A", default="A"))), record("E", ("a", enum("X", "A", "B")))),
        (with_aliases(record("E", ("sum", "long")), "total"), record("E", ("total", "long"))),
        (record("New", aliases=["Old"]), record("Old")),
        (record("New", aliases=["Old"], namespace="shop"), record("Old", namespace="shop")),
        (record("New", aliases=["sales.Old"], namespace="shop"), record("Old", namespace="sales")),
        (record("E", namespace="shop"), record("E", namespace="sales")),
        (TREE, TREE),
        ({"type": {"type": "string"}}, "string"),
        (record("E", ("a", logical("long", "timestamp-micros"))), record("E", ("a", logical("long", "timestamp-millis")))),
    ],
)
def test_what_avro_reads_is_let_pass(reader: Any, writer: Any) -> None:
    assert can_read(reader, writer) == []


def test_every_fault_is_found_at_its_own_place() -> None:
    reader = record("E", ("a", "string"), ("b", "int"), ("c", "int"))
    writer = record("E", ("a", "long"), ("b", "long"))
    assert [each.path for each in can_read(reader, writer)] == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(8))
def test_our_reasons_agree_with_the_verdict_of_avro(seed: int) -> None:
    """Apache's package decides; what explains it must have something to say exactly where it refuses."""
    chance = random.Random(seed)
    checker: Any = ReaderWriterCompatibilityChecker
    refused = 0
    for _ in range(150):
        writer = _random_schema(chance, 3, [0])
        reader = _changed(chance, writer)
        shapes = shape_of(reader), shape_of(writer)
        verdict = checker().get_compatibility(_for_avro(shapes[0]), _for_avro(shapes[1]))
        reasons = _Rules(forward=False).conflicts(*shapes)
        assert bool(reasons) == (verdict.compatibility is not SchemaCompatibilityType.compatible), (reader, writer, reasons)
        assert {each.kind for each in reasons} <= {kind.name for kind in verdict.incompatibilities}, (reader, writer)
        refused += bool(reasons)
    assert 20 < refused < 145


def test_types_that_share_parts_are_looked_at_once() -> None:
    """2**25 paths lead to the innermost type: walking them all would not end."""

    def nested(kind: str) -> dict[str, Any]:
        schema: Any = record("R25", ("a", kind))
        for number in range(24, -1, -1):
            schema = record(f"R{number}", ("x", schema), ("y", f"R{number + 1}"))
        return dict(schema)

    assert can_read(nested("long"), nested("long")) == []
    found = can_read(nested("int"), nested("long"))
    assert found[0].path == ".".join("x" * 25) + ".a"
    assert len(found) < 100
    assert changes_meaning(nested("double"), nested("long"))[0].path == found[0].path


def test_too_deep_a_schema_is_refused() -> None:
    schema: Any = "int"
    for _ in range(3000):
        schema = array(schema)
    with pytest.raises(SchemaError, match="nested too deeply"):
        can_read(schema, schema)
    for depth in range(100, 1000, 50):  # wherever the limit is met: never a RecursionError
        schema = {"type": "fixed", "name": "F", "size": 1}
        for _ in range(depth):
            schema = array(schema)
        for judge in (can_read, changes_meaning):
            with contextlib.suppress(SchemaError):
                assert judge(schema, schema) == []


@pytest.mark.parametrize(
    "schema", [{"type": "record"}, {"type": "nothing"}, 7, None, {"type": "fixed", "name": "F", "size": "x"}, "Unknown"]
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaError, match="invalid Avro schema"):
        can_read(schema, "int")


ADDED = record("E", ("a", "int"), ("b", "int"))
ADDED_WITH_DEFAULT = record("E", ("a", "int"), ("b", "int", 0))
BASE = record("E", ("a", "int"))


@pytest.mark.parametrize(
    ("new", "earlier", "holds"),
    [
        (ADDED, [BASE], {Level.FORWARD, Level.FORWARD_TRANSITIVE}),
        (BASE, [ADDED], {Level.BACKWARD, Level.BACKWARD_TRANSITIVE}),
        (ADDED_WITH_DEFAULT, [BASE], set(Level) - {Level.NONE}),
        (record("E", ("a", "string")), [BASE], set()),
        # What counts beside the last version only under the transitive levels.
        (ADDED, [BASE, ADDED_WITH_DEFAULT], set(Level) - {Level.NONE, Level.BACKWARD_TRANSITIVE, Level.FULL_TRANSITIVE}),
        (BASE, [ADDED, ADDED_WITH_DEFAULT], set(Level) - {Level.NONE, Level.FORWARD_TRANSITIVE, Level.FULL_TRANSITIVE}),
        (ADDED, [], set(Level) - {Level.NONE}),
    ],
)
def test_levels(new: Any, earlier: list[Any], holds: set[Level]) -> None:
    assert {level for level in Level if not incompatibilities(new, earlier, level)} == holds | {Level.NONE}


def test_forward_is_said_from_the_old_reader_s_side() -> None:
    (found,) = incompatibilities(BASE, [ADDED], Level.FORWARD)
    assert found.path == "b"
    assert "field 'b' is gone, and the earlier schema has no default for it" in found.said
    (found,) = incompatibilities(record("E", ("a", ["null", "int"])), [BASE], Level.FORWARD)
    assert "it can be null now" in found.said
    (found,) = incompatibilities(record("E", ("a", enum("X", "A", "B"))), [record("E", ("a", enum("X", "A")))], Level.FORWARD)
    assert "symbol B of enum X is new" in found.said


def test_a_rename_by_alias_is_backward_only() -> None:
    renamed = with_aliases(record("E", ("sum", "long")), "total")
    old = record("E", ("total", "long"))
    assert incompatibilities(renamed, [old], Level.BACKWARD) == []
    assert [each.path for each in incompatibilities(renamed, [old], Level.FORWARD)] == ["total"]


@pytest.mark.parametrize(
    ("new", "old", "path", "said"),
    [
        (
            logical("bytes", "decimal", precision=9, scale=3),
            logical("bytes", "decimal", precision=9, scale=2),
            "a",
            "decimal(9, 2) became decimal(9, 3)",
        ),
        (
            logical("bytes", "decimal", precision=12, scale=2),
            logical("bytes", "decimal", precision=9, scale=2),
            "a",
            "decimal(9, 2) became decimal(12, 2)",
        ),
        (
            logical("long", "timestamp-micros"),
            logical("long", "timestamp-millis"),
            "a",
            "long (timestamp-millis) became long (timestamp-micros)",
        ),
        ("long", logical("long", "timestamp-millis"), "a", "long (timestamp-millis) became long"),
        (logical("string", "uuid"), "string", "a", "string became string (uuid)"),
        ("double", "long", "a", "long became double: numbers beyond 2**53 lose digits"),
        ("float", "int", "a", "int became float: numbers beyond 2**24 lose digits"),
        ("bytes", "string", "a", "string became bytes: programs get another type"),
        (
            enum("X", "A", default="A"),
            enum("X", "A", "B"),
            "a",
            "symbol B of enum X is gone: events that hold it would read as A",
        ),
        (["null", logical("int", "date")], ["null", "int"], "a", "int became int (date)"),
        (["null", "int"], logical("int", "date"), "a", "int (date) became int"),
        (array(logical("int", "date")), array("int"), "a[]", "int became int (date)"),
        (record("Line", ("price", "double")), record("Line", ("price", "long")), "a.price", "lose digits"),
        (fixed(4, logicalType="decimal", precision=4), fixed(4), "a", "fixed Digest became"),
    ],
)
def test_what_changes_the_meaning_of_the_same_bytes(new: Any, old: Any, path: str, said: str) -> None:
    after, before = record("E", ("a", new)), record("E", ("a", old))
    assert can_read(after, before) == []
    (found,) = changes_meaning(after, before)
    assert (found.kind, found.path) == ("meaning_changed", path)
    assert said in found.said


def test_another_namespace_is_another_subject() -> None:
    (found,) = changes_meaning(record("E", namespace="shop"), record("E", namespace="sales"))
    assert "sales.E is now called shop.E" in found.said


@pytest.mark.parametrize(("new", "old"), [("long", "int"), ("double", "int"), ("double", "float"), (["null", "long"], "int")])
def test_promotions_that_lose_nothing_change_no_meaning(new: Any, old: Any) -> None:
    assert changes_meaning(record("E", ("a", new)), record("E", ("a", old))) == []


def version(number: int, *fields: Any, **more: Any) -> EventType:
    return EventType.from_schema(record("OrderPlaced", *fields, **more), schema_version=number)


V1 = version(1, ("total", "long"))
V2 = version(2, ("total", "long"), ("currency", "string"))
V3 = version(3, ("total", "long"), ("currency", "string"), ("note", "string", ""))


@upcaster("OrderPlaced", from_version=1)
def add_currency(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "currency": "EUR"}


def test_the_gate_says_what_is_wrong_shows_it_and_says_what_to_do() -> None:
    with pytest.raises(SchemaError) as refused:
        check_new_version(V2, [V1], Level.FULL_TRANSITIVE)
    assert str(refused.value) == (
        "OrderPlaced version 2 does not go with version 1 (FULL_TRANSITIVE): field 'currency' is new and has no default: events "
        'written before can\'t be read; give it a default, e.g. "type": ["null", "string"], "default": null; for example: '
        '{"total":0}, written by version 1, can\'t be read by version 2; or lead the earlier events over by a function: '
        '@upcaster("OrderPlaced", from_version=1); or give what is new an event type of its own'
    )


def test_an_upcaster_is_the_deliberate_choice_for_every_level() -> None:
    for level in Level:
        check_new_version(V2, [V1], level, [add_currency])
        check_new_version(V3, [V1, V2], level, [add_currency])  # 1 → 2 by hand, 2 → 3 by Avro's rules
    with pytest.raises(SchemaError):
        check_new_version(V2, [V1], Level.FULL, [upcaster("OrderPaid", from_version=1)(dict)])


def test_an_upcaster_from_one_version_does_not_open_the_gate_for_another() -> None:
    v0 = version(1, ("total", "string"))
    v2, v3 = version(2, ("total", "long")), version(3, ("total", "long"), ("currency", "string"))
    from_two = upcaster("OrderPlaced", from_version=2)(lambda data: {**data, "currency": "EUR"})
    assert [each.earlier for each in breaches(v3, [v0, v2], Level.FULL_TRANSITIVE, [from_two])] == [1]
    assert list(breaches(v3, [v0, v2], Level.FULL, [from_two])) == []


def test_steps_by_avro_alone_do_not_make_a_transitive_level() -> None:
    """v3 reads v2 and v2 reads v1, but v1's events lack what v3 asks for: v2's default would decide, unseen."""
    v2, v3 = version(2, ("total", "long"), ("b", "int", 0)), version(3, ("total", "long"), ("b", "int"))
    assert [each.earlier for each in breaches(v3, [V1, v2], Level.BACKWARD_TRANSITIVE)] == [1]
    assert list(breaches(v3, [V1, v2], Level.BACKWARD)) == []


def test_a_symbol_may_be_added_to_an_enum_with_a_default() -> None:
    """Programs that still read with the earlier schema take the default for it: that is what the default is for."""
    old, new = (version(1 + grown, ("size", enum("Size", *symbols, default="S"))) for grown, symbols in enumerate(("S", "SL")))
    check_new_version(new, [old], Level.FULL_TRANSITIVE)


def test_no_level_no_gate() -> None:
    check_new_version(version(2, ("total", "bytes")), [V1], Level.NONE)


def test_the_counterexample_is_the_smallest() -> None:
    old = version(1, ("at", logical("long", "timestamp-millis")), ("lines", array("string")))
    new = version(2, ("at", logical("long", "timestamp-micros")), ("lines", array("string")))
    found = find_counterexample(old, new)
    assert found is not None
    assert str(found) == (
        '{"at":"2024-02-29T23:59:59.999000Z","lines":[]}, written by version 1, '
        'reads as {"at":"1970-01-20T18:47:31.199999Z","lines":[]} by version 2'
    )
    assert find_counterexample(V1, V1) is None


def test_a_default_of_bytes_is_no_counterexample() -> None:
    assert find_counterexample(V1, version(2, ("total", "long"), ("digest", "bytes", "\u00ff"))) is None


def test_differences() -> None:
    old = record(
        "E",
        ("a", "long"),
        ("b", "string"),
        ("e", enum("X", "A", "B")),
        ("lines", array(LINE)),
        ("f", "int", 1),
        ("t", "int"),
    )
    new = record(
        "E",
        ("a", ["null", "long"], None),
        ("e", enum("X", "A", "C")),
        ("lines", array(LONG_LINE)),
        ("f", "int", 2),
        ("g", logical("bytes", "decimal", precision=9, scale=2)),
        ("u", "int"),
    )
    assert list(map(str, differences(old, with_aliases(new, "t")))) == [
        "~ a: long → [null, long]",
        "~ a: no default → default null",
        "- e: symbol B",
        "+ e: symbol C",
        "+ lines[].count: int",
        "~ f: default 1 → default 2",
        "+ g: decimal(9, 2)",
        "~ u: renamed from t",
        "- b: string",
    ]
    assert differences(new, new) == []
    assert differences(TREE, TREE) == []
    answers = verdicts(BASE, ADDED)
    assert [bool(answers[level]) for level in (Level.BACKWARD, Level.FORWARD, Level.FULL)] == [True, False, True]


def _random_schema(chance: random.Random, depth: int, names: list[int]) -> Any:
    kinds = ["int", "long", "float", "double", "string", "bytes", "boolean", "null"]
    choice = chance.random()
    if depth == 0 or choice < 0.25:
        return chance.choice(kinds)
    names[0] += 1
    name = f"N{names[0]}"
    if choice < 0.5:
        return record(name, *((f"f{n}", _random_schema(chance, depth - 1, names)) for n in range(chance.randint(1, 3))))
    if choice < 0.6:
        symbols = chance.sample(["A", "B", "C"], 2)
        return enum(name, *symbols, **({"default": symbols[0]} if chance.random() < 0.1 else {}))
    if choice < 0.65:
        return {"type": "fixed", "name": name, "size": chance.randint(1, 2)}
    if choice < 0.75:
        return array(_random_schema(chance, depth - 1, names))
    if choice < 0.8:
        return values(_random_schema(chance, depth - 1, names))
    inner = _random_schema(chance, depth - 1, names)
    others = [each for each in chance.sample(kinds, 2) if each != inner]
    return [*others, inner] if not isinstance(inner, list) else inner


def _changed(chance: random.Random, schema: Any) -> Any:
    """Return the schema with some places changed."""
    if chance.random() < 0.06:
        return _random_schema(chance, 1, [chance.randint(100, 1_000_000)])
    if isinstance(schema, list):
        branches = [_changed(chance, each) for each in schema]
        chance.shuffle(branches)
        kept = {
            str(each if isinstance(each, str) else each.get("name", each["type"])): each
            for each in branches
            if type(each) is not list
        }
        return list(kept.values())[: chance.randint(1, 4)] or ["null"]
    if not isinstance(schema, dict):
        return chance.choice([schema] * 8 + [[schema, "null"] if schema != "null" else schema, "string", "double"])
    changed = dict(schema)
    if "fields" in changed:
        changed["fields"] = [field | {"type": _changed(chance, field["type"])} for field in changed["fields"]]
        if chance.random() < 0.3:
            default = {"default": 1} if chance.random() < 0.5 else {}
            changed["fields"].append({"name": "added", "type": "int", **default})
        if chance.random() < 0.2:
            old = changed["fields"][0]
            changed["fields"][0] = old | {"name": "renamed"} | ({"aliases": [old["name"]]} if chance.random() < 0.5 else {})
    for key in ("items", "values"):
        if key in changed:
            changed[key] = _changed(chance, changed[key])
    if "symbols" in changed and chance.random() < 0.3:
        changed["symbols"] = ["A", "B", "C"] if chance.random() < 0.5 else ["A"]
        changed["default"] = "A"
    if "size" in changed and chance.random() < 0.3:
        changed["size"] = 3
    if "name" in changed and chance.random() < 0.1:
        changed |= {"aliases": [changed["name"]]} if chance.random() < 0.5 else {}
        changed["name"] += "x"
    return changed
