"""Both forms of a record, our topics read by other people's clients, and theirs by ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import uvicorn
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient, topic_record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from eventspine import Consumer, DecodeError, Event, PostgresEventStore, PostgresSink, Relay, SettingsError
from eventspine.relay.topics import TopicSettings, ensure_topic
from eventspine.schemas import Codec
from eventspine.schemas.cloudevents import event_of
from eventspine.schemas.codec import UnknownSchemaId
from eventspine.schemas.envelope import RecordReader, pin_envelopes
from eventspine.schemas.foreign import ForeignSchemas
from eventspine.schemas.pins import load_pinned_types
from eventspine.schemas.registry import registry_app
from tests.event_types import ORDER_PLACED, paid, placed, record
from tests.jvm import run_java
from tests.npm import run_node
from tests.oracle import check_read_model, check_topics, read_committed
from tests.projections import OrderTotals
from tests.waiting import wait_for

_TRACE: dict[str, Any] = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=1"}


@pytest.fixture
async def registry(pool: asyncpg.Pool) -> AsyncIterator[str]:
    """URL of the registry over the test's database."""
    server = uvicorn.Server(uvicorn.Config(registry_app(pool), port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    await wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


async def append_orders(store: PostgresEventStore, first: int, orders: int) -> None:
    for number in range(first, first + orders):
        shipped = Event(event_type="OrderShipped", data={"carrier": "post", "tracking_code": f"t{number}"})
        events = [placed(f"c{number % 3}", number, correlation_id="k", shop="Zürich", **_TRACE), paid(number), shipped]
        await store.append(f"Order-{number}", "Order", events, 0)


async def relay_all(store: PostgresEventStore, kafka: str, prefix: str, **options: Any) -> None:
    """Run a relay until it has published all that is in the log."""
    last = await store.log.last_position()
    relay = Relay(store.log, kafka, topic_prefix=prefix, topics=TopicSettings(partitions=3), **options)
    running = asyncio.create_task(relay.run())
    await wait_for(lambda: relay.position, lambda position: position == last)
    relay.stop()
    await running


async def consume_all(pool: asyncpg.Pool, kafka: str, prefix: str, events: int) -> None:
    """Run the projection over the topics of a prefix until it has applied so many events."""
    consumer = Consumer(
        OrderTotals(), PostgresSink(pool), kafka, load_event_types=lambda: load_pinned_types(pool), topic_prefix=prefix
    )
    running = asyncio.create_task(consumer.run())
    try:
        await wait_for(
            lambda: -1 if running.done() else sum(place.events for place in consumer.places.values()),
            lambda seen: seen in (events, -1),
            timeout_s=30,
        )
    finally:
        consumer.stop()
        await running


async def test_a_topic_that_changes_its_form(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    """Relays of either form follow each other on one log; nothing is lost or repeated, and consumers see no difference."""
    for number, value_format in enumerate(["data", "envelope"]):
        await append_orders(store, number * 5, 5)
        await store.append(f"Refund-{number}", "Refund", [paid(number)], 0)
        await relay_all(store, kafka, topic_prefix, value_format=value_format)
    assert await check_topics(pool, kafka, topic_prefix) == 32
    await consume_all(pool, kafka, topic_prefix, 32)
    await check_read_model(pool)

    codec = Codec()
    codec.add(await load_pinned_types(pool))
    records = [*read_committed(kafka, f"{topic_prefix}Order"), *read_committed(kafka, f"{topic_prefix}Refund")]
    reader = RecordReader(codec)
    events = [reader.event(dict(each.headers()), each.value()) for each in records]
    assert sorted(events, key=lambda event: event.global_position) == await store.read_all(0, 100)
    traced = [dict(each.headers()) for each in records if dict(each.headers())["ce_type"] == b"OrderPlaced"]
    assert {(headers["traceparent"].decode(), headers["tracestate"].decode()) for headers in traced} == {tuple(_TRACE.values())}
    assert {"ce_id" in headers for headers in traced} == {True, False}


async def test_envelopes_keep_their_ids(pool: asyncpg.Pool, store: PostgresEventStore) -> None:
    ids = {pin.schema_id for pin in await load_pinned_types(pool)}
    one, two = await asyncio.gather(pin_envelopes(pool, ids), pin_envelopes(pool, ids))
    assert one == two == await pin_envelopes(pool, ids)
    assert len({envelope.schema_id for envelope in one.values()} | ids) == 2 * len(ids)
    assert [pin.schema_id for pin in await load_pinned_types(pool)] == sorted(ids)
    with pytest.raises(DecodeError, match="987654"):
        await pin_envelopes(pool, [987654])


@pytest.mark.parametrize(
    ("strategy", "value_format", "subjects"),
    [
        ("RecordNameStrategy", "data", ["OrderPaid"]),
        ("TopicNameStrategy", "envelope", ["{}Order-value", "{}Refund-value"]),
    ],
)
async def test_subjects(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, strategy: str, value_format: str, subjects: Any
) -> None:
    await store.append("Order-1", "Order", [paid()], 0)
    await store.append("Refund-1", "Refund", [paid()], 0)
    await relay_all(store, kafka, topic_prefix, subject_strategy=strategy, value_format=value_format)
    listed = [row["subject"] for row in await pool.fetch("SELECT subject FROM subjects ORDER BY subject")]
    assert listed == [subject.format(topic_prefix) for subject in subjects]
    categories = await store.log.categories_of_types(topic_prefix)
    assert categories == {"Order": ["OrderPaid"], "Refund": ["OrderPaid"]}


@pytest.mark.parametrize("option", [{"value_format": "json"}, {"subject_strategy": "topic_record"}])
async def test_options_that_do_not_exist(store: PostgresEventStore, option: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(option))):
        Relay(store.log, "nowhere:1", **option)  # type: ignore[arg-type]


async def test_clients_read_envelopes_by_the_registry_alone(
    registry: str, store: PostgresEventStore, kafka: str, topic_prefix: str
) -> None:
    """Confluent's Python client, and Kafka's and Avro's Java libraries: all that they need is in the value."""
    await append_orders(store, 0, 4)
    await relay_all(store, kafka, topic_prefix, value_format="envelope")
    topic = f"{topic_prefix}Order"
    expected = {
        str(event.event_id): (event.event_type, event.stream_id, event.version, event.global_position, event.data)
        for event in await store.read_all(0, 100)
    }

    def told(values: list[Any]) -> dict[str, Any]:
        names = ("event_type", "stream_id", "version", "global_position", "data")
        assert {value["correlation_id"] for value in values if value["event_type"] == "OrderPlaced"} == {"k"}
        return {value["event_id"]: tuple(value[name] for name in names) for value in values}

    def read() -> list[Any]:
        with SchemaRegistryClient({"url": registry, "timeout": 30}) as client:
            deserialize = AvroDeserializer(client)
            context = SerializationContext(topic, MessageField.VALUE)
            return [deserialize(each.value(), context) for each in read_committed(kafka, topic)]

    by_python = await asyncio.to_thread(read)
    assert told(by_python) == expected
    created_at = {str(event.event_id): event.created_at for event in await store.read_all(0, 100)}
    assert {value["event_id"]: value["recorded_at"] for value in by_python} == created_at
    lines = (await asyncio.to_thread(run_java, "ReadTopic", kafka, registry, topic)).splitlines()
    by_java = [json.loads(line)["data"] for line in lines if line.startswith("{")]
    assert told(by_java) == expected


def foreign_headers(number: int) -> dict[str, str]:
    """What a program of other people gives a record, by docs/topics.md."""
    return {
        "ce_specversion": "1.0",
        "ce_id": str(uuid4()),
        "ce_source": "/theirs",
        "ce_type": "OrderPlaced",
        "ce_subject": f"Order-{number}",
        "ce_time": "2026-01-02T03:04:05.000006Z",
        "ce_recordedtime": "2026-01-02T03:04:06Z",
        "ce_globalposition": str(number),
        "ce_streamversion": "1",
        "ce_schemaversion": "1",
        "content-type": "application/avro",
        **_TRACE,
    }


async def check_foreign_order(pool: asyncpg.Pool, kafka: str, prefix: str, headers: dict[str, str]) -> None:
    """Check that the one record of a topic is an event to us, and that our consumer applies it."""
    codec = Codec()
    codec.add(await load_pinned_types(pool))
    (message,) = await asyncio.to_thread(read_committed, kafka, f"{prefix}Order")
    event = event_of(dict(message.headers()), codec.decode(message.value()))
    assert event.data == {"customer_id": "theirs", "total_cents": 2**40, "note": None}
    assert (event.event_id, event.stream_id) == (UUID(headers["ce_id"]), headers["ce_subject"])
    assert event.metadata == {"timestamp": headers["ce_time"], **_TRACE}
    await consume_all(pool, kafka, prefix, 1)
    assert [tuple(row) for row in await pool.fetch("SELECT * FROM order_totals")] == [("theirs", 1, 2**40)]


@pytest.fixture
async def theirs(topic_prefix: str, kafka: str) -> str:
    """Prefix of a topic that other people's programs write to."""
    prefix = f"{topic_prefix}theirs."
    await asyncio.to_thread(ensure_topic, kafka, f"{prefix}Order", partitions=3, replication=-1, settings={})
    return prefix


async def test_what_confluents_python_client_writes(
    registry: str, store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, theirs: str
) -> None:
    headers = foreign_headers(7)

    def write() -> None:
        with SchemaRegistryClient({"url": registry, "timeout": 30}) as client:
            options = {"auto.register.schemas": True, "subject.name.strategy": topic_record_subject_name_strategy}
            serialize = AvroSerializer(client, ORDER_PLACED.definition, conf=options)
            context = SerializationContext(f"{theirs}Order", MessageField.VALUE)
            value = serialize({"customer_id": "theirs", "total_cents": 2**40}, context)
            assert client.get_subjects() == [f"{theirs}Order-OrderPlaced"]
        producer = Producer({"bootstrap.servers": kafka})
        producer.produce(f"{theirs}Order", value, headers["ce_subject"], headers=list(headers.items()))
        assert producer.flush(30) == 0

    await asyncio.to_thread(write)
    await check_foreign_order(pool, kafka, theirs, headers)


async def test_what_a_java_client_writes(
    registry: str, store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, theirs: str
) -> None:
    headers = foreign_headers(8)
    value = {"customer_id": "theirs", "total_cents": 2**40, "note": None}
    subject, definition = f"{theirs}Order-OrderPlaced", ORDER_PLACED.definition
    arguments = [kafka, registry, f"{theirs}Order", subject, definition, json.dumps(headers), json.dumps(value)]
    await asyncio.to_thread(run_java, "WriteTopic", *arguments)
    await check_foreign_order(pool, kafka, theirs, headers)


async def test_a_node_client(
    registry: str, store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, theirs: str
) -> None:
    """KafkaJS with its registry client reads our topic, and writes a record that our consumer reads."""
    await append_orders(store, 0, 5)
    await relay_all(store, kafka, topic_prefix, compression="gzip")
    headers, data = foreign_headers(9), {"customer_id": "theirs", "total_cents": 2**40, "note": None}
    topic, subject = f"{topic_prefix}Order", f"{topic_prefix}Order-OrderPlaced"
    arguments = [kafka, registry, topic, "15", f"{theirs}Order", subject, json.dumps(headers), json.dumps(data)]
    printed = await asyncio.to_thread(run_node, "wire.cjs", *arguments)
    records = [json.loads(line) for line in printed.splitlines()]
    events = await store.read_all(0, 100)
    assert {each["headers"]["ce_id"]: each["data"] for each in records} == {str(event.event_id): event.data for event in events}
    assert {each["key"] for each in records} == {event.stream_id for event in events}
    await check_foreign_order(pool, kafka, theirs, headers)


async def test_apicurios_java_serdes(
    registry: str, store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, theirs: str
) -> None:
    """They read our topic and write what our consumer reads. They register a type inside a record under a subject of its own."""
    await append_orders(store, 0, 4)
    await relay_all(store, kafka, topic_prefix)
    topic, other = f"{topic_prefix}Order", f"{topic_prefix}customers"
    await asyncio.to_thread(ensure_topic, kafka, other, partitions=1, replication=-1, settings={})
    headers, order = foreign_headers(10), {"customer_id": "theirs", "total_cents": 2**40, "note": None}
    home = record("Address", ("street", "string"), namespace="crm")
    customer = record("Customer", ("name", "string"), ("home", home), ("work", "crm.Address"))
    ada = {"name": "Ada", "home": {"street": "A1"}, "work": {"street": "B2"}}
    records = [
        [f"{theirs}Order", ORDER_PLACED.definition, json.dumps(headers), json.dumps(order)],
        [other, json.dumps(customer), "{}", json.dumps(ada)],
    ]
    arguments = [kafka, registry, f"{topic},{other}", *(argument for each in records for argument in each)]
    printed = await asyncio.to_thread(run_java, "ApicurioSerdes", *arguments, lock="apicurio-serde.lock")
    read = [json.loads(line) for line in printed.splitlines()]
    events = await store.read_all(0, 100)
    assert sorted(str(each["data"]) for each in read if each["topic"] == topic) == sorted(str(event.data) for event in events)
    assert [each["data"] for each in read if each["topic"] == other] == [ada]
    assert {
        row["subject"] for row in await pool.fetch("SELECT subject FROM subjects WHERE subject NOT LIKE $1", f"{topic}-%")
    } == {
        f"{theirs}Order-OrderPlaced",
        f"{other}-Customer",
        "crm.Address",
    }
    (message,) = await asyncio.to_thread(read_committed, kafka, other)
    assert await ForeignSchemas(pool).decode(message.value()) == ada
    await check_foreign_order(pool, kafka, theirs, headers)


async def test_records_without_our_headers(registry: str, store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    """Any id of the registry can be decoded, also of a schema that refers to others and is no event type."""
    address = record("Address", ("street", "string"), namespace="crm")
    customer = record("Customer", ("name", "string"), ("home", "crm.Address"), ("work", ["null", "crm.Address"], None))

    def write() -> bytes:
        with SchemaRegistryClient({"url": registry, "timeout": 30}) as client:
            client.register_schema("crm.Address", Schema(json.dumps(address), "AVRO"))
            references = [SchemaReference("crm.Address", "crm.Address", 1)]
            serialize = AvroSerializer(client, Schema(json.dumps(customer), "AVRO", references))
            value = {"name": "Ada", "home": {"street": "A1"}, "work": {"street": "B2"}}
            written = serialize(value, SerializationContext("customers", MessageField.VALUE))
            assert isinstance(written, bytes)
            return written

    payload = await asyncio.to_thread(write)
    foreign = ForeignSchemas(pool)
    for _ in range(2):
        assert await foreign.decode(payload) == {"name": "Ada", "home": {"street": "A1"}, "work": {"street": "B2"}}
    codec = Codec()
    codec.add(await load_pinned_types(pool))
    with pytest.raises(UnknownSchemaId):
        codec.decode(payload)
    with pytest.raises(UnknownSchemaId, match="987654"):
        await foreign.load(987654)
    for damaged in (payload[:-1], payload + b"x"):
        with pytest.raises(DecodeError):
            await foreign.decode(damaged)
