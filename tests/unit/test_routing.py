"""Routings: what their rules come to, and which can't be right. Without servers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventspine import Event, EventspineError, InvalidEvent, Routing, SettingsError
from eventspine.relay.router import Router
from eventspine.relay.routing import apply, check_topic, key_of, matches, topic_name, unmatched
from eventspine.routing_module import load_routing
from eventspine.schemas import StoredEvent
from eventspine.store.postgres import PostgresLog

_ID = UUID("0192d5a0-0000-7000-8000-000000000001")


def stored(event_type: str = "OrderPlaced", stream_id: str = "Order-1") -> StoredEvent:
    category = stream_id.partition("-")[0]
    return StoredEvent(1, str(_ID), stream_id, category, event_type, 1, 1, b"\0\0\0\0\x05x", datetime.now(UTC), "{}")


def router(routing: Routing | None, prefix: str = "shop.") -> Router:
    """A router that is asked nothing for which it would need the log."""
    return Router(PostgresLog(cast(Any, None)), prefix=prefix, source="/", routing=routing)


def topic_and_key(routing: Routing | None, event: StoredEvent) -> tuple[str, bytes] | None:
    """Return where an event goes, and check that this is known before it is routed, and that its bytes are as they were."""
    asked = router(routing)
    routed = asked.route(event)
    assert asked.by_stream
    assert asked.place(event) == (None if routed is None else (routed.topic, routed.key))
    assert routed is None or routed.value is event.payload
    return None if routed is None else (routed.topic, routed.key)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("OrderPlaced", True),
        ("Order", True),
        ("orderplaced", False),
        ("Placed", False),
        ("*Placed", True),
        ("Order?laced", True),
        ("Order[PQ]laced", True),
        ("*", True),
        ("Order/OrderPlaced", True),
        ("Order/*", True),
        ("*/OrderPlaced", True),
        ("OrderPlaced/*", False),
        ("*/Order", False),
        ("", False),
    ],
)
def test_a_pattern_names_a_type_or_a_category(pattern: str, expected: bool) -> None:
    assert matches([pattern], "Order", "OrderPlaced") is expected
    assert matches(["Nothing", pattern], "Order", "OrderPlaced") is expected
    assert not matches([], "Order", "OrderPlaced")


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("category", "Order"),
        ("type", "OrderPlaced"),
        ({"OrderPlaced": "placed", "*": "rest"}, "placed"),
        ({"*": "rest", "OrderPlaced": "placed"}, "rest"),
        ({"Order/*": "orders.v1"}, "orders.v1"),
        ({"Invoice": "bills"}, "Order"),
        ({"*": "{category}.{type}"}, "Order.OrderPlaced"),
        ({}, "Order"),
    ],
)
def test_topics(topic: Any, expected: str) -> None:
    assert topic_name(topic, "Order", "OrderPlaced") == expected
    assert topic_and_key(Routing(topic=topic), stored()) == (f"shop.{expected}", b"Order-1")


def test_without_a_routing_it_is_topic_by_category_and_key_by_stream() -> None:
    for routing in (None, Routing()):
        assert topic_and_key(routing, stored(stream_id="Order-ü")) == ("shop.Order", "Order-ü".encode())


@pytest.mark.parametrize(
    ("include", "exclude", "published"),
    [
        ("*", (), {"OrderPlaced", "OrderPaid", "CardCharged"}),
        (["OrderP*"], (), {"OrderPlaced", "OrderPaid"}),
        ("Order", (), {"OrderPlaced", "OrderPaid"}),
        ("*", "*Paid", {"OrderPlaced", "CardCharged"}),
        (("OrderPlaced", "Card"), {"Card/*"}, {"OrderPlaced"}),
        ("Order", "Order", set()),
    ],
)
def test_what_is_included_and_not_excluded_is_published(include: Any, exclude: Any, published: set[str]) -> None:
    routing = Routing(include=include, exclude=exclude)
    events = [stored(), stored("OrderPaid"), stored("CardCharged", "Card-1")]
    assert {event.event_type for event in events if topic_and_key(routing, event)} == published


@pytest.mark.parametrize(
    ("routing", "by_stream"),
    [
        (Routing(topic="type", exclude="X"), True),
        (Routing(include=lambda event: True), True),
        (Routing(transform={"X": lambda event: None}), True),
        (Routing(transform={"X": lambda event: None}, topic="type"), False),
        (Routing(topic=lambda event: "x"), False),
        (Routing(key="customer_id"), False),
        (Routing(key=lambda event: "x"), False),
    ],
)
def test_whether_a_place_is_known_without_the_payload(routing: Routing, by_stream: bool) -> None:
    assert router(routing).by_stream is by_stream


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"topic": "Category"}, r"topic is 'Category'; it is 'category', 'type'.*\{'\*': 'Category'\} is one topic for all"),
        ({"topic": 5}, "topic is 5"),
        ({"topic": {"*": "a b"}}, "topic for '\\*' is 'a b': 'a b' can't be a topic"),
        ({"topic": {"*": "{stream}"}}, "may hold {category} and {type}"),
        ({"topic": {"*": "{0}"}}, "may hold {category} and {type}"),
        ({"topic": {"*": 5}}, "may hold {category} and {type}"),
        ({"key": ""}, "key is ''"),
        ({"key": "customer..id"}, "key is 'customer..id'"),
        ({"key": None}, "key is None"),
        ({"include": ()}, "nothing would be published"),
        ({"include": [5]}, "include is \\[5\\]"),
        ({"exclude": 5}, "exclude is 5"),
        ({"exclude": [""]}, "exclude is \\[''\\]"),
        ({"transform": {"A": "B"}}, "transform\\['A'\\] is 'B'"),
        ({"public_types": ["OrderAccepted"]}, "no EventType"),
    ],
)
def test_rules_that_can_not_be_right_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Routing(**options)


async def _later(event: Event) -> Any:
    """No function of a routing can wait for something."""


@pytest.mark.parametrize(
    "options", [{name: _later} for name in ("topic", "key", "include", "exclude")] + [{"transform": {"A": _later}}]
)
def test_async_functions_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="async function"):
        Routing(**options)


@pytest.mark.parametrize("name", ["a", "A.b_c-1", "x" * 249, "...", "-"])
def test_topics_that_kafka_takes(name: str) -> None:
    assert check_topic(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "x" * 250, "a b", "ü", "a/b", "a\n", None, 5, b"a"])
def test_topics_that_kafka_refuses(name: object) -> None:
    with pytest.raises(SettingsError, match="can't be a topic"):
        check_topic(name)


def test_a_type_that_can_not_be_a_topic_is_refused_each_time() -> None:
    asked = router(Routing(topic="type"))
    for _ in range(2):
        with pytest.raises(SettingsError, match="can't be a topic"):
            asked.route(stored("$opened"))
    assert asked.route(stored()) is not None


def test_the_topic_of_the_cursors_is_not_for_events() -> None:
    with pytest.raises(SettingsError, match="the relay's cursors"):
        router(Routing(topic={"*": "-cursors"})).route(stored())


def event_with(**data: Any) -> Event:
    return Event(event_type="OrderPlaced", data=data)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("name", "Zoë".encode()),
        ("number", b"7"),
        ("uuid", str(_ID).encode()),
        ("customer.id", b"c1"),
        (lambda event: event.data["customer"]["id"], b"c1"),
        (lambda event: b"\xff", b"\xff"),
    ],
)
def test_keys(key: Any, expected: bytes) -> None:
    assert key_of(key, event_with(name="Zoë", number=7, uuid=_ID, customer={"id": "c1"})) == expected


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("absent", "no field 'absent'"),
        ("customer.absent", "no field 'customer.absent'"),
        ("name.first", "no field 'name.first'"),
        ("empty", "is ''"),
        ("nothing", "is None"),
        ("yes", "is True"),
        ("price", "is 1.5"),
        ("customer", "is {}"),
    ],
)
def test_fields_that_can_not_be_keys(key: str, said: str) -> None:
    event = event_with(name="a", empty="", nothing=None, yes=True, price=1.5, customer={})
    with pytest.raises(InvalidEvent, match=said):
        key_of(key, event)


@pytest.mark.parametrize("said", [None, 5, "", b"", True])
def test_functions_that_return_no_key(said: Any) -> None:
    with pytest.raises(SettingsError, match="key function returned"):
        key_of(lambda event: said, event_with())


def test_what_a_function_raises_is_said() -> None:
    with pytest.raises(EventspineError, match="topic function raised KeyError: 'tenant'"):
        apply("topic", lambda event: event.data["tenant"], event_with())


@given(st.text())
def test_a_text_is_its_own_key(text: str) -> None:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return
    if text:
        assert key_of("name", event_with(name=text)) == encoded


def test_slips_of_the_pen_are_found() -> None:
    routing = Routing(
        topic={"Ordr": "x", "Order/*": "y", "Refund/*": "z"},
        include=("Order*", "Order/OrderPaid"),
        exclude=["OrderPlacd", "*"],
        transform={"OrderPad": lambda event: event, "OrderPlaced": lambda event: event},
    )
    assert unmatched(routing, {"OrderPlaced", "OrderPaid"}, {"Order"}) == ["OrderPad", "OrderPlacd", "Ordr", "Refund/*"]
    assert unmatched(Routing(), {"OrderPlaced"}, {"Order"}) == []


def test_a_routing_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "routing_of_a_test.py").write_text('from eventspine import Routing\n\nmine = Routing(topic="type")\nother = 5\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_routing("routing_of_a_test:mine") == Routing(topic="type")
    for path, said in [
        ("routing_of_a_test:absent", "has no 'absent'"),
        ("routing_of_a_test:other", "is int; it must be an eventspine.Routing"),
        ("routing_of_a_test", "MODULE:NAME"),
        (":mine", "MODULE:NAME"),
        ("no.such.module:x", "can't be imported"),
        ("no module:x", "is no name of a module"),
    ]:
        with pytest.raises(SettingsError, match=said):
            load_routing(path)
