"""Paths between schema versions: found, refused, and walked."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from eventspine import DecodeError, Event, EventType, SchemaError, Upcaster, upcaster
from eventspine.examples.accounts.events import EVENT_TYPES, UPCASTERS
from eventspine.schemas import Codec, PinnedType
from eventspine.schemas.upcasting import Upcasting
from tests.event_types import logical, record


def versions(*fields: list[tuple[Any, ...]]) -> list[EventType]:
    """Return the versions 1, 2, … of an event type T."""
    return [EventType.from_schema(record("T", *each), schema_version=n) for n, each in enumerate(fields, 1)]


def step(from_version: int, to_version: int = 0, name: str = "T") -> Upcaster:
    """Return an upcaster that writes down that it ran."""
    mark = upcaster(name, from_version=from_version, to_version=to_version)
    return mark(lambda data: {"x": data["x"] * 10 + from_version})


LONG, TEXT = [("x", "long")], [("x", "string")]


def test_what_is_written_in_todays_version_is_left_alone() -> None:
    upcasting = Upcasting(versions(LONG))
    data = {"x": 1}
    assert upcasting.outdated == set()
    assert upcasting.convert("T", 1, data) == (1, data)
    assert upcasting.path("T", 1) == ()


def test_new_fields_take_their_defaults_and_old_ones_go() -> None:
    first: list[tuple[Any, ...]] = [("x", "long"), ("gone", "string", "")]
    second: list[tuple[Any, ...]] = [
        ("x", "long"),
        ("at", logical("long", "timestamp-micros"), 0),
        ("price", logical("bytes", "decimal", precision=4, scale=2), "\u00ff"),
        ("tags", {"type": "array", "items": "string"}, ["a"]),
        ("maybe", ["null", "long"], None),
        ("raw", "bytes", "ÿ"),
    ]
    upcasting = Upcasting(versions(first, second))
    version, data = upcasting.convert("T", 1, {"x": 1, "gone": "y"})
    assert version == 2
    assert data == {
        "x": 1,
        "at": datetime(1970, 1, 1, tzinfo=UTC),
        "price": Decimal("-0.01"),
        "tags": ["a"],
        "maybe": None,
        "raw": b"\xff",
    }
    data["tags"].append("b")
    assert upcasting.convert("T", 1, {"x": 1, "gone": "y"})[1]["tags"] == ["a"]


def test_avros_promotions_and_nested_fields() -> None:
    inner = record("Inner", ("a", "int"))
    wider = record("Inner", ("a", "long"), ("b", logical("string", "uuid"), str(UUID(int=1))))
    upcasting = Upcasting(versions([("inner", inner), ("n", "int")], [("inner", wider), ("n", "double")]))
    [only] = upcasting.path("T", 1)
    assert only.name == "T 1 → 2 by Avro's rules"
    assert only.apply({"inner": {"a": 1}, "n": 2}) == {"inner": {"a": 1, "b": UUID(int=1)}, "n": 2.0}


def test_steps_are_chained() -> None:
    upcasting = Upcasting(versions(LONG, LONG, LONG, LONG), [step(2), step(1), step(3)])
    assert [each.to_version for each in upcasting.path("T", 1)] == [2, 3, 4]
    assert upcasting.convert("T", 1, {"x": 1}) == (4, {"x": 1123})
    assert upcasting.convert("T", 3, {"x": 1}) == (4, {"x": 13})


def test_a_step_may_leap_and_pass_a_version_that_nobody_registered() -> None:
    first, *_, fourth = versions(LONG, LONG, LONG, TEXT)
    assert Upcasting([first, fourth], [step(1, 4)]).convert("T", 1, {"x": 1})[0] == 4
    assert [each.to_version for each in Upcasting([first, fourth], [step(1), step(2, 4)]).path("T", 1)] == [2, 4]


@pytest.mark.parametrize(
    ("types", "steps", "says"),
    [
        (versions(LONG, TEXT), [], r"T version 1 can't be read as version 2: .*@upcaster\('T', from_version=1\)"),
        (versions(LONG, LONG, TEXT), [step(1)], "T version 2 can't be read as version 3"),
        (versions(LONG, TEXT, LONG), [step(2)], "T version 1 can't be read as version 2"),
        (versions(LONG, LONG), [step(1), step(1)], "begin at the same version"),
        (versions(LONG, LONG), [step(2, 1)], "leads back"),
        (versions(LONG, LONG), [step(1, 1)], "leads back"),
        (versions(LONG, LONG), [step(1, name="U")], "there is no event type 'U'; known are T"),
        (versions(LONG, LONG)[:1] + versions(LONG, LONG, LONG)[2:], [step(1)], "version 2 is not registered"),
    ],
    ids=["no step", "hole behind", "hole before", "two from one", "back", "circle", "unknown type", "a step into nothing"],
)
def test_what_does_not_lead_to_today_is_refused_at_the_start(types: list[EventType], steps: list[Upcaster], says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        Upcasting(types, steps, {"T": max(each.schema_version for each in types)})


def test_what_nobody_declared_is_refused_only_when_it_is_read() -> None:
    upcasting = Upcasting(versions(LONG, TEXT))
    with pytest.raises(SchemaError, match="can't be read as version 2"):
        upcasting.convert("T", 1, {"x": 1})


def test_an_old_program_reads_new_events_where_there_is_a_way_back() -> None:
    there = step(1)
    there.downcaster(lambda data: {"x": len(data["x"])})
    upcasting = Upcasting(versions(LONG, TEXT), [there], {"T": 1})
    assert upcasting.convert("T", 2, {"x": "abc"}) == (1, {"x": 3})
    assert Upcasting(versions(LONG, [*LONG, ("y", "long", 0)]), (), {"T": 1}).convert("T", 2, {"x": 1, "y": 2}) == (1, {"x": 1})
    with pytest.raises(SchemaError, match="this program declares version 1: deploy one that knows version 2"):
        Upcasting(versions(LONG, TEXT), [step(1)], {"T": 1}).convert("T", 2, {"x": "abc"})
    with pytest.raises(SchemaError, match="has a way back already"):
        there.downcaster(lambda data: data)


def test_two_ways_back_from_one_version_are_refused() -> None:
    steps = [step(1, 3), step(2, 3)]
    for each in steps:
        each.downcaster(lambda data: data)
    with pytest.raises(SchemaError, match=r"the ways back of .* begin at the same version"):
        Upcasting(versions(LONG, LONG, LONG), steps)


def test_a_step_that_fails_is_named() -> None:
    @upcaster("T", from_version=1)
    def halve(data: dict[str, Any]) -> dict[str, Any]:
        return {"x": 1 / data["x"]}

    upcasting = Upcasting(versions(LONG, LONG), [halve])
    with pytest.raises(DecodeError, match=r"upcaster halve \(T 1 → 2\) failed: ZeroDivisionError.*its data: \{'x': 0\}"):
        upcasting.convert("T", 1, {"x": 0})
    assert halve({"x": 4}) == {"x": 0.25}
    nothing = upcaster("T", from_version=1)(lambda data: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(DecodeError, match="returned NoneType; it must return the event's data"):
        Upcasting(versions(LONG, LONG), [nothing]).convert("T", 1, {"x": 0})


def test_a_result_has_the_fields_of_its_version() -> None:
    wider: list[tuple[Any, ...]] = [("x", "long"), ("y", "long"), ("z", {"type": "array", "items": "long"}, [1])]

    def convert(result: dict[str, Any]) -> Any:
        steps = [upcaster("T", from_version=1)(lambda data: result)]
        return Upcasting(versions(LONG, wider), steps).convert("T", 1, {"x": 1})[1]

    assert convert({"x": 1, "y": 2, "z": []}) == {"x": 1, "y": 2, "z": []}
    assert convert({"x": 1, "y": 2}) == {"x": 1, "y": 2, "z": [1]}
    with pytest.raises(DecodeError, match=r"lacks \['y'\] and has \['w'\] beside the fields of version 2"):
        convert({"x": 1, "w": 2})


def test_the_codec_writes_and_reads_in_the_version_that_is_declared() -> None:
    first, second = versions(LONG, [*LONG, ("y", "long", 0)])
    pinned = [PinnedType(1, first), PinnedType(2, second)]
    old, new = (
        Event(event_type="T", schema_version=1, data={"x": 1}),
        Event(event_type="T", schema_version=2, data={"x": 1, "y": 5}),
    )

    def read_by(declared: list[EventType]) -> list[tuple[int, Any]]:
        codec = Codec()
        codec.add(pinned, declared=declared)
        return [(each.schema_version, each.data) for each in codec.upcast([old, new])]

    assert read_by([second]) == read_by([]) == [(2, {"x": 1, "y": 0}), (2, {"x": 1, "y": 5})]
    assert read_by([first]) == [(1, {"x": 1}), (1, {"x": 1})]
    codec = Codec()
    codec.add(pinned, declared=[first])
    assert codec.encode("T", 0, {"x": 1}).schema_version == 1
    codec = Codec()
    codec.add(pinned[:1], declared=[first, second])  # a reader that is deployed before the writer
    assert codec.upcast([old])[0].data == {"x": 1, "y": 0}


def test_the_example_reads_every_version_of_money_exactly() -> None:
    upcasting = Upcasting(EVENT_TYPES, UPCASTERS, {"MoneyDeposited": 5})
    for cents in [1, 10, 29, 115, 57_00, 10**13 + 1]:
        today = {"amount": Decimal(cents).scaleb(-2), "currency": "EUR", "reference": None, "channel": "COUNTER"}
        euros = float(Decimal(cents).scaleb(-2))
        written: list[tuple[int, dict[str, Any]]] = [
            (1, {"amount": euros}),
            (2, {"amount": euros, "reference": None}),
            (3, {"amount_cents": cents, "reference": None}),
            (4, {"amount_cents": cents, "reference": None, "channel": "COUNTER"}),
        ]
        for version, data in written:
            assert upcasting.convert("MoneyDeposited", version, data) == (5, today)
        assert Upcasting(EVENT_TYPES, UPCASTERS, {"MoneyDeposited": 4}).convert("MoneyDeposited", 5, today)[1] == {
            "amount_cents": cents,
            "reference": None,
            "channel": "COUNTER",
        }
