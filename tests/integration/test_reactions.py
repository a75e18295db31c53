"""Reactions and process managers on real servers: what they record, once and in order; parking; where they begin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from eventspine import (
    Event,
    PostgresEventStore,
    PostgresSink,
    ReactionConsumer,
    Relay,
)
from eventspine.consumers.reactions import reaction_of
from eventspine.relay.topics import TopicSettings
from tests.event_types import paid, placed
from tests.reactions import Fulfilment, Shipper
from tests.waiting import wait_for


@pytest.fixture
async def relay(store: PostgresEventStore, kafka: str, topic_prefix: str) -> AsyncIterator[Relay]:
    relay = Relay(store.log, kafka, topic_prefix=topic_prefix, topics=TopicSettings(partitions=3))
    running = asyncio.create_task(relay.run())
    yield relay
    relay.stop()
    await running


class Bench:
    """Runs reactions against the test's servers."""

    def __init__(self, store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, prefix: str) -> None:
        self.store = store
        self.pool = pool
        self._kafka = kafka
        self._prefix = prefix

    @asynccontextmanager
    async def reacting(self, declared: Any, **options: Any) -> AsyncIterator[ReactionConsumer]:
        consumer = ReactionConsumer(
            reaction_of(declared), self.store, PostgresSink(self.pool), self._kafka, topic_prefix=self._prefix, **options
        )
        running = asyncio.create_task(consumer.run())
        try:
            yield consumer
        finally:
            consumer.stop()
            await running

    async def streams(self, category: str) -> dict[str, list[Event]]:
        rows = await self.pool.fetch("SELECT DISTINCT stream_id FROM events WHERE stream_type = $1", category)
        return {row["stream_id"]: await self.store.read_stream(row["stream_id"]) for row in rows}

    async def count(self, category: str) -> int:
        return int(await self.pool.fetchval("SELECT count(*) FROM events WHERE stream_type = $1", category))


@pytest.fixture
def bench(store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, relay: Relay) -> Bench:
    return Bench(store, pool, kafka, topic_prefix)


async def order(bench: Bench, number: int, **metadata: Any) -> list[Event]:
    stream = f"Order-{number}"
    first = await bench.store.append(stream, "Order", [placed("c", number, **metadata)], 0)
    return first + await bench.store.append(stream, "Order", [paid(number, **metadata)], 1)


async def test_each_event_has_its_effect_once_with_its_cause(bench: Bench) -> None:
    async with bench.reacting(Shipper) as consumer:
        for number in range(30):
            _, cause = await order(bench, number, correlation_id=f"talk-{number}", user_id="u1")
        await wait_for(lambda: bench.count("Parcel"), lambda n: n == 30, timeout_s=30)
        await wait_for(lambda: consumer.waiting, lambda n: n == 0)
    parcels = await bench.streams("Parcel")
    assert {stream: [event.data["carrier"] for event in events] for stream, events in parcels.items()} == {
        f"Parcel-{number}": [str(number)] for number in range(30)
    }
    [shipped] = parcels["Parcel-29"]
    assert shipped.correlation_id == "talk-29"
    assert shipped.user_id == "u1"
    assert shipped.causation_id == str(cause.event_id)


async def test_a_process_manager_decides_on_its_own_stream(bench: Bench) -> None:
    async with bench.reacting(Fulfilment):
        for number in range(10):
            await order(bench, number)
        await bench.store.append("Order-late", "Order", [placed("c", 5)], 0)
        await wait_for(lambda: bench.count("Fulfilment"), lambda n: n == 22, timeout_s=30)
    streams = await bench.streams("Fulfilment")
    assert {stream: [event.event_type for event in events] for stream, events in streams.items()} == {
        f"Fulfilment-{number}": ["OrderPlaced", "OrderPaid"] for number in range(10)
    } | {"Fulfilment-late": ["OrderPlaced", "OrderShipped"]}
    assert await bench.count("Stock") == 11
    assert await bench.pool.fetchval("SELECT count(*) FROM scheduled_events") == 0
