"""Relay and consumer inside this process: the sizes, the topics and the refusals that fault tests do not reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from eventspine import Consumer, Event, IntegrityError, PostgresEventStore, PostgresSink, Projection, Relay
from eventspine.relay.topics import TopicSettings
from tests.event_types import placed
from tests.oracle import check_read_model, check_topics, read_committed
from tests.projections import OrderTotals
from tests.waiting import wait_for


@asynccontextmanager
async def relaying(store: PostgresEventStore, kafka: str, prefix: str, **options: Any) -> AsyncIterator[Relay]:
    relay = Relay(store.log, kafka, topic_prefix=prefix, topics=TopicSettings(partitions=3), **options)
    running = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await running


@asynccontextmanager
async def consuming(store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, prefix: str) -> AsyncIterator[Consumer]:
    consumer = make_consumer(store, pool, kafka, prefix)
    running = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        consumer.stop()
        await running


def make_consumer(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, prefix: str, projection: Projection | None = None
) -> Consumer:
    sink = PostgresSink(pool)
    return Consumer(projection or OrderTotals(), sink, kafka, load_event_types=store.log.pinned_types, topic_prefix=prefix)


async def applied(consumer: Consumer, events: int) -> None:
    await wait_for(lambda: sum(place.events for place in consumer.places.values()), lambda count: count == events, timeout_s=30)


async def test_largest_event_passes_the_whole_path(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    """What append accepts, Kafka accepts: its limit is the higher one."""
    data = {"customer_id": "c", "total_cents": 1, "note": "é" * 499_950}
    largest = Event(event_type="OrderPlaced", data=data)
    await store.append("Order-1", "Order", [largest], 0)
    stored = (await store.log.read_stored(0, 1, 10**9))[0]
    assert len(stored.payload) + len(stored.metadata) > 999_900
    async with relaying(store, kafka, topic_prefix), consuming(store, pool, kafka, topic_prefix) as consumer:
        await applied(consumer, 1)
    await check_topics(pool, kafka, topic_prefix)


async def test_large_events_are_published_in_bounded_batches(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    for number in range(6):
        event = Event(event_type="OrderPlaced", data={"customer_id": "c", "total_cents": number, "note": "n" * 300_000})
        await store.append(f"Order-{number}", "Order", [event], 0)
    batch = await store.log.read_stored(0, 1000, 700_000)
    assert [event.global_position for event in batch] == [1, 2]
    assert len(await store.log.read_stored(0, 1000, 1)) == 1  # one at least, or nothing would ever move
    async with relaying(store, kafka, topic_prefix) as relay:
        await wait_for(lambda: relay.position, lambda position: position == 6)
    assert await check_topics(pool, kafka, topic_prefix) == 6


async def test_topic_of_a_new_category_is_found(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    """A projection that names no categories reads those that come later, too."""
    await store.append("Order-1", "Order", [placed("a")], 0)
    async with relaying(store, kafka, topic_prefix), consuming(store, pool, kafka, topic_prefix) as consumer:
        await applied(consumer, 1)
        await store.append("Quote-1", "Quote", [placed("b")], 0)
        await applied(consumer, 2)
        assert {partition.topic for partition in consumer.places} == {f"{topic_prefix}Order", f"{topic_prefix}Quote"}
        assert len(consumer.places) == 6
    await check_read_model(pool)


async def test_records_that_kafka_no_longer_has_halt_the_projection(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    """Retention was shorter than the projection was away: it must not go on behind the hole."""
    async with relaying(store, kafka, topic_prefix) as relay:
        for number in range(30):
            await store.append(f"Order-{number}", "Order", [placed(total_cents=number)], 0)
        await wait_for(lambda: relay.position, lambda position: position == 30)
    topic = f"{topic_prefix}Order"
    partition = (await asyncio.to_thread(read_committed, kafka, topic))[0].partition()
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.delete_records([TopicPartition(topic, partition, 1)])[TopicPartition(topic, partition, 1)].result(20)
    consumer = make_consumer(store, pool, kafka, topic_prefix)
    async with asyncio.timeout(60):
        with pytest.raises(IntegrityError, match="no longer has the next record"):
            await consumer.run()
    assert await pool.fetchval("SELECT next_offset FROM projection_offsets WHERE partition = $1", partition) == 0
