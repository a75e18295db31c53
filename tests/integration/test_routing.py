"""Routings on real servers: where events go, what is made of them, and what happens when a function of the user's fails."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from eventspine import Event, EventspineError, EventType, PostgresEventStore, Relay, Routing, SchemaError
from eventspine.relay.cursor import cursor_topic, read_cursor
from eventspine.relay.router import Routed, Router
from eventspine.relay.state import RelayState
from eventspine.relay.topics import TopicSettings
from eventspine.schemas import Codec
from eventspine.schemas.cloudevents import event_of
from eventspine.schemas.envelope import RecordReader
from eventspine.schemas.privacy import KeyRing, reveal_events
from tests.event_types import ORDER_SHIPPED, paid, placed, record
from tests.oracle import read_committed
from tests.processes import processes
from tests.registry import serving
from tests.waiting import wait_for

ORDER_ACCEPTED = EventType.from_schema(
    record("OrderAccepted", ("customer", "string"), ("euros", "double"), namespace="org.example.public")
)
_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def accepted(event: Event) -> Event | None:
    """Make of an internal event a public one; small orders are nobody's business."""
    if event.data["total_cents"] < 100:
        return None
    return Event(
        event_type="OrderAccepted",
        data={"customer": event.data["customer_id"], "euros": event.data["total_cents"] / 100},
        metadata={"shop": "Zürich"},
    )


def router(store: PostgresEventStore, routing: Routing, **options: Any) -> Router:
    return Router(store.log, **({"prefix": "events.", "source": "/shop"} | options), routing=routing)


async def routed(store: PostgresEventStore, routing: Routing, **options: Any) -> list[Routed | None]:
    """Route all events of a log."""
    events = await store.log.read_stored(0, 1000, 10**7)
    asked = router(store, routing, **options)
    await asked.prepare(events)
    return [asked.route(event) for event in events]


def arrived(headers: Any) -> dict[str, bytes]:
    return {name: value if isinstance(value, bytes) else str(value).encode() for name, value in headers}


async def read_back(store: PostgresEventStore, record: Routed) -> Event:
    """Return what a consumer makes of a record, which knows what is registered."""
    codec = Codec()
    codec.add(await store.log.pinned_types())
    return RecordReader(codec).event(arrived(record.headers), record.value)


@asynccontextmanager
async def relaying(store: PostgresEventStore, kafka: str, prefix: str, routing: Routing, **options: Any) -> AsyncIterator[Relay]:
    relay = Relay(
        store.log,
        kafka,
        topic_prefix=prefix,
        router=router(store, routing, prefix=prefix, **options),
        topics=TopicSettings(partitions=3),
        lease_s=2.0,
    )
    running = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await running


async def relay_all(store: PostgresEventStore, kafka: str, prefix: str, routing: Routing, **options: Any) -> int:
    """Relay until the cursor is behind the whole log; return how many records that took."""
    last = await store.last_position()
    async with relaying(store, kafka, prefix, routing, **options) as relay:
        await wait_for(lambda: relay.position, lambda position: position == last)
    cursor = await asyncio.to_thread(read_cursor, kafka, cursor_topic(prefix), "relay")
    assert cursor.position == last
    return relay.published


async def records(kafka: str, topic: str) -> list[Any]:
    return await asyncio.to_thread(read_committed, kafka, topic)


def confluents_view(url: str, prefix: str, message: Any) -> tuple[list[str], Any]:
    """Return the subjects below a prefix, and a record's value, as Confluent's client has them."""
    with SchemaRegistryClient({"url": url, "timeout": 30}) as client:
        subjects = [each for each in client.get_subjects() if each.startswith(prefix)]
        context = SerializationContext(message.topic(), MessageField.VALUE)
        return subjects, AvroDeserializer(client)(message.value(), context)


def positions(messages: list[Any]) -> list[int]:
    return [int(dict(message.headers())["ce_globalposition"]) for message in messages]


@pytest.mark.parametrize("value_format", ["data", "envelope"])
async def test_a_public_event_is_one_of_its_own_type_at_the_place_of_its_source(
    store: PostgresEventStore, value_format: str
) -> None:
    events = [placed("c1", 1990, correlation_id="k", causation_id="b", user_id="u1", note="secret", traceparent=_TRACE)]
    [source] = await store.append("Order-1", "Order", events, 0)
    await store.append("Order-2", "Order", [placed("c2", 50), paid(50)], 0)
    routing = Routing(transform={"OrderPlaced": accepted}, public_types=[ORDER_ACCEPTED])
    public, small, as_it_is = await routed(store, routing, value_format=value_format)
    assert public is not None
    assert as_it_is is not None
    assert (public.topic, public.key, small) == ("events.Order", b"Order-1", None)
    kept = {name: value for name, value in source.metadata.items() if name not in ("user_id", "note")}
    expected = msgspec.structs.replace(
        source,
        event_type="OrderAccepted",
        schema_version=1,
        data={"customer": "c1", "euros": 19.9},
        metadata={**kept, "shop": "Zürich"},
    )
    assert await read_back(store, public) == expected
    assert (await read_back(store, as_it_is)).event_type == "OrderPaid"


async def test_topic_and_key_are_those_of_the_public_event(store: PostgresEventStore) -> None:
    await store.append("Order-1", "Order", [placed("c1", 200), paid(1)], 0)
    public, other = await routed(
        store,
        Routing(
            topic=lambda event: f"{event.category}.{event.event_type}",
            key=lambda event: event.data.get("customer", event.stream_id),
            transform={"OrderPlaced": accepted},
            public_types=[ORDER_ACCEPTED],
        ),
    )
    assert public is not None
    assert other is not None
    assert (public.topic, public.key) == ("events.Order.OrderAccepted", b"c1")
    assert (other.topic, other.key) == ("events.Order.OrderPaid", b"Order-1")


async def test_functions_see_the_version_that_the_program_declares(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    data = {"carrier": "post"}
    shipped = [Event(event_type="OrderShipped", data=data, schema_version=1)]
    shipped += [Event(event_type="OrderShipped", data={**data, "tracking_code": "t"}, schema_version=2)]
    await store.append("Order-1", "Order", shipped, 0)
    for declared, expected in [((), [(2, ""), (2, "t")]), ((ORDER_SHIPPED,), [(1, None), (1, None)])]:
        seen: list[Any] = []

        def look(event: Event, seen: list[Any] = seen) -> bool:
            seen.append((event.schema_version, event.data.get("tracking_code")))
            return True

        published = await routed(store, Routing(include=look), event_types=declared)
        assert seen == expected
        stored = await store.log.read_stored(0, 10, 10**6)
        assert [each and each.value for each in published] == [event.payload for event in stored]  # as they were written


async def test_a_type_that_is_registered_later_is_learnt(store: PostgresEventStore) -> None:
    asked = router(store, Routing(key="name"))
    await asked.prepare(await store.log.read_stored(0, 10, 10**6))
    await store.register([EventType.from_schema(record("CustomerNamed", ("name", "string")))])
    await store.append("Customer-1", "Customer", [Event(event_type="CustomerNamed", data={"name": "Zoë"})], 0)
    events = await store.log.read_stored(0, 10, 10**6)
    await asked.prepare(events)
    made = asked.route(events[0])
    assert made is not None
    assert made.key == "Zoë".encode()


async def test_personal_values_stay_encrypted_and_can_be_read_under_their_own_name(
    store: PostgresEventStore, pool: asyncpg.Pool
) -> None:
    def personal(name: str) -> EventType:
        fields = [{"name": "customer", "type": "string"}, {"name": "email", "type": "string", "personal": True}]
        return EventType.from_schema({"type": "record", "name": name, "subject": "customer", "fields": fields})

    await store.register([personal("CustomerCame")])
    data = {"customer": "c1", "email": "zoe@example.org"}
    await store.append("Customer-1", "Customer", [Event(event_type="CustomerCame", data=data)], 0)
    routing = Routing(
        transform={"CustomerCame": lambda event: Event(event_type="ContactKnown", data=event.data)},
        public_types=[personal("ContactKnown")],
    )
    [public] = await routed(store, routing)
    assert public is not None
    event = await read_back(store, public)
    assert event.data["email"].startswith("enc:1:")
    codec = Codec()
    codec.add(await store.log.pinned_types())
    [revealed] = await reveal_events(codec, KeyRing(pool), [event])
    assert (revealed.event_type, revealed.data) == ("ContactKnown", data)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda event: {}, "returned dict; it returns an Event, or None"),
        (lambda event: paid(), "type 'OrderPaid'; name its EventType in the routing's public_types"),
        (lambda event: msgspec.structs.replace(event, data={}), "type 'OrderPlaced'; name its EventType"),
        (lambda event: Event(event_type="OrderAccepted", data={"customer": 5}), "OrderAccepted"),
        (lambda event: Event(event_type="OrderAccepted", data={}, schema_version=7), "schema version 7"),
        (lambda event: 1 / 0, "transform of OrderPlaced function raised ZeroDivisionError"),
    ],
)
async def test_what_can_not_be_a_public_event(store: PostgresEventStore, made: Any, said: str) -> None:
    await store.append("Order-1", "Order", [placed()], 0)
    with pytest.raises(EventspineError, match=said):
        await routed(store, Routing(transform={"OrderPlaced": made}, public_types=[ORDER_ACCEPTED]))


@pytest.mark.parametrize(
    ("routing", "said"),
    [
        (Routing(include=lambda event: None), "include function returned None; it returns True or False"),  # type: ignore[arg-type,return-value]
        (Routing(exclude=lambda event: None), "exclude function returned None; it returns True or False"),  # type: ignore[arg-type,return-value]
        (Routing(topic=lambda event: "a b"), "'events.a b' can't be a topic"),
        (Routing(topic=lambda event: None), "None can't be a topic"),  # type: ignore[arg-type,return-value]
        (Routing(topic=lambda event: "-cursors"), "the relay's cursors"),
    ],
)
async def test_functions_that_say_nothing_sensible(store: PostgresEventStore, routing: Routing, said: str) -> None:
    await store.append("Order-1", "Order", [placed()], 0)
    with pytest.raises(EventspineError, match=said):
        await routed(store, routing)


async def test_a_public_type_that_contradicts_a_registered_one_is_refused_at_the_start(store: PostgresEventStore) -> None:
    other = EventType.from_schema(record("OrderPlaced", ("customer", "string")))
    with pytest.raises(SchemaError, match="OrderPlaced version 1 is registered with another schema"):
        await router(store, Routing(public_types=[other])).start()
    later = EventType.from_schema(record("OrderPlaced", ("customer", "string")), schema_version=2)
    with pytest.raises(SchemaError, match="OrderPlaced version 2"):  # the gate
        await router(store, Routing(public_types=[later])).start()


async def test_slips_of_the_pen_are_told_at_the_start(store: PostgresEventStore, caplog: pytest.LogCaptureFixture) -> None:
    await store.append("Order-1", "Order", [placed()], 0)
    with caplog.at_level(logging.WARNING):
        await router(store, Routing(exclude=["OrderPlacd", "Order/OrderPaid"])).start()
    assert [each.getMessage() for each in caplog.records] == [
        "the routing names what is neither an event type nor a category yet: OrderPlacd"
    ]


async def test_by_type_and_rule_and_what_is_excluded(store: PostgresEventStore, kafka: str, topic_prefix: str) -> None:
    for number in range(4):
        await store.append(f"Order-{number}", "Order", [placed(), paid()], 0)
    shipped = [Event(event_type="OrderShipped", data={"carrier": carrier}) for carrier in ("post", "bike")]
    await store.append("Parcel-1", "Parcel", shipped, 0)
    routing = Routing(topic={"Parcel/*": "parcels-v1", "*": "{type}"}, exclude="OrderPaid")
    assert await relay_all(store, kafka, topic_prefix, routing) == 6
    assert sorted(positions(await records(kafka, f"{topic_prefix}OrderPlaced"))) == [1, 3, 5, 7]
    assert positions(await records(kafka, f"{topic_prefix}parcels-v1")) == [9, 10]
    topics = await store.log.topics_of_types(topic_prefix)
    assert topics == {"OrderPlaced": ["OrderPlaced"], "parcels-v1": ["OrderShipped"]}  # nothing is told of what stays in
    await store.append("Order-9", "Order", [paid()], 0)
    assert await relay_all(store, kafka, topic_prefix, routing) == 0  # the cursor moves also over what goes nowhere


async def test_keyed_by_a_field_the_order_is_that_of_the_key(store: PostgresEventStore, kafka: str, topic_prefix: str) -> None:
    for number in range(60):
        await store.append(f"Order-{number}", "Order", [placed(f"c{number % 7}", number)], 0)
    routing = Routing(topic=lambda event: "large" if event.data["total_cents"] >= 30 else "small", key="customer_id")
    await relay_all(store, kafka, topic_prefix, routing)
    for name, first in (("small", 1), ("large", 31)):
        messages = await records(kafka, f"{topic_prefix}{name}")
        by_key: dict[bytes, list[Any]] = {}
        for message in messages:
            by_key.setdefault(message.key(), []).append(message)
        assert sorted(positions(messages)) == list(range(first, first + 30))
        assert by_key.keys() == {f"c{number}".encode() for number in range(7)}
        for key, own in by_key.items():
            assert len({message.partition() for message in own}) == 1
            assert positions(own) == [n for n in range(first, first + 30) if f"c{(n - 1) % 7}".encode() == key]


async def test_public_events_are_read_by_confluents_client(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    await store.append("Order-1", "Order", [placed("c1", 1990), paid(5)], 0)
    routing = Routing(
        topic=lambda event: "public",
        include=["OrderPlaced"],
        transform={"OrderPlaced": accepted},
        public_types=[ORDER_ACCEPTED],
    )
    for value_format in ("data", "envelope"):
        prefix = f"{topic_prefix}{value_format}."
        await relay_all(store, kafka, prefix, routing, value_format=value_format)
        topic = f"{prefix}public"
        [message] = await records(kafka, topic)
        async with serving(pool) as url:
            subjects, read = await asyncio.to_thread(confluents_view, url, prefix, message)
        name = "org.example.public.OrderAccepted" + ("Envelope" if value_format == "envelope" else "")
        assert subjects == [f"{topic}-{name}"]
        assert read.get("data", read) == {"customer": "c1", "euros": 19.9}
        assert await store.log.topics_of_types(prefix) == {"public": ["OrderAccepted"]}


async def test_a_broken_function_parks_its_stream_and_a_retry_publishes_it_late(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    for number in range(4):
        await store.append(f"Order-{number}", "Order", [placed(f"c{number}", number), placed(f"c{number}", 7)], 0)

    def broken(event: Event) -> str:
        return f"orders{1 // event.data['total_cents']}" and "orders"

    async with relaying(store, kafka, topic_prefix, Routing(topic=broken)) as relay:
        await wait_for(lambda: relay.position, lambda position: position == 8)
        rows = await pool.fetch("SELECT global_position, stream_id, reason FROM relay_parked ORDER BY global_position")
    assert [(row["global_position"], row["stream_id"]) for row in rows] == [(1, "Order-0"), (2, "Order-0")]
    assert "topic function raised ZeroDivisionError" in rows[0]["reason"]
    assert "waits behind" in rows[1]["reason"]
    topic = f"{topic_prefix}orders"
    assert sorted(positions(await records(kafka, topic))) == [3, 4, 5, 6, 7, 8]
    async with relaying(store, kafka, topic_prefix, Routing(topic=lambda event: "orders")) as relay:
        await wait_for(lambda: relay.state, lambda state: state == "publishing")
        await RelayState(pool, f"{topic_prefix}relay").retry(None)
        await wait_for(lambda: pool.fetchval("SELECT count(*) FROM relay_parked"), lambda count: count == 0)
    messages = await records(kafka, topic)
    late = [message for message in messages if "ce_publishedafter" in dict(message.headers())]
    assert sorted(positions(messages)) == list(range(1, 9))
    assert [(position, message.key()) for position, message in zip(positions(late), late, strict=True)] == [
        (1, b"Order-0"),
        (2, b"Order-0"),
    ]
    assert {dict(message.headers())["ce_publishedafter"] for message in late} == {b"8"}


_MODULE = """
from eventspine import Event, EventType, Routing

ACCEPTED = EventType.from_schema({"type": "record", "name": "OrderAccepted", "fields": [{"name": "customer", "type": "string"}]})


def accepted(event):
    return Event(event_type="OrderAccepted", data={"customer": event.data["customer_id"]})


routing = Routing(
    topic={"OrderAccepted": "public.orders"},
    key="customer",
    include="OrderPlaced",
    transform={"OrderPlaced": accepted},
    public_types=[ACCEPTED],
)
"""


async def test_the_command_line_takes_the_routing_of_the_settings(
    store: PostgresEventStore, database: str, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "shop_relay.py").write_text(_MODULE)
    (folder / "eventspine.toml").write_text('relay_routing = "shop_relay:routing"\n')
    await store.append("Order-1", "Order", [placed("c1"), paid()], 0)
    async with processes(database, kafka, topic_prefix, tmp_path) as run:
        relay = run.command(["relay", "run"], folder=folder)

        async def listed() -> dict[str, list[str]]:
            relay.check_running()
            return await store.log.topics_of_types(topic_prefix)

        await wait_for(listed, timeout_s=30)
        topic = f"{topic_prefix}public.orders"
        await wait_for(lambda: asyncio.to_thread(lambda: _at_hand(kafka, topic)), timeout_s=30)
        await relay.stop()
        asyncapi = run.command(["schema", "asyncapi", "--output", str(folder / "asyncapi.json")], folder=folder)
        assert await asyncapi.ended() == 0, asyncapi.said
    [message] = await records(kafka, topic)
    event = event_of(arrived(message.headers()), {})
    assert (message.key(), event.event_type, event.stream_id, event.global_position) == (b"c1", "OrderAccepted", "Order-1", 1)
    document = json.loads((folder / "asyncapi.json").read_text())
    assert {name: channel["address"] for name, channel in document["channels"].items()} == {"public.orders": topic}
    assert list(document["components"]["messages"]) == ["OrderAccepted.v1"]
    key = document["components"]["messageBindings"]["keyed"]["kafka"]["key"]
    assert key == {"type": "string", "description": "the data's field customer"}


def _at_hand(kafka: str, topic: str) -> list[Any]:
    try:
        return read_committed(kafka, topic)
    except KeyError:  # no such topic yet
        return []
