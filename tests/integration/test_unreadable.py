"""Records that can't be read: cut off, of an unknown schema, altered. Their streams are parked; the others are applied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from confluent_kafka import Producer

from eventspine import PostgresEventStore
from tests.event_types import paid, placed
from tests.fault.topics import make_topic
from tests.integration.test_relay_and_consumer import consuming, relaying
from tests.oracle import read_committed
from tests.waiting import wait_for

_PARKED = "SELECT stream_id, state, reason FROM projection_parked ORDER BY global_position"


@pytest.mark.parametrize("envelope", [False, True])
async def test_streams_of_unreadable_records_are_parked(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, envelope: bool
) -> None:
    for number in range(6):
        await store.append(f"Order-{number}", "Order", [placed(f"c{number}", number), paid(number)], expected_version=0)
    async with relaying(store, kafka, topic_prefix, value_format="envelope" if envelope else "data") as relay:
        await wait_for(lambda: relay.position, lambda position: position == 12)
    damage: dict[int, Callable[[bytes], bytes]] = {
        1: lambda value: value[:-1],
        3: lambda value: b"\0\x7f\xff\xff\xff" + value[5:],
        5: lambda value: b"",
    }
    other = f"{topic_prefix}damaged."
    await make_topic(kafka, f"{other}Order", partitions=3)

    def copy(messages: list[Any]) -> None:
        producer = Producer({"bootstrap.servers": kafka})
        for message in messages:
            position = int(dict(message.headers())["ce_globalposition"])
            value = damage[position](message.value()) if position in damage else message.value()
            producer.produce(f"{other}Order", value, message.key(), message.partition(), headers=message.headers())
        assert producer.flush(30) == 0

    await asyncio.to_thread(copy, await asyncio.to_thread(read_committed, kafka, f"{topic_prefix}Order"))
    async with consuming(store, pool, kafka, other) as consumer:
        await wait_for(lambda: sum(place.events for place in consumer.places.values()), lambda count: count == 12, timeout_s=30)
    parked = [tuple(row) for row in await pool.fetch(_PARKED)]
    unreadable = {1: "Order-0", 5: "Order-2"} if envelope else {1: "Order-0", 3: "Order-1", 5: "Order-2"}
    assert [(stream, state) for stream, state, _ in parked] == [
        each for stream in unreadable.values() for each in ((stream, "parked"), (stream, "waiting"))
    ]
    assert all(reason for _, _, reason in parked)
    left = {row["customer_id"] for row in await pool.fetch("SELECT customer_id FROM order_totals")}
    assert left == {f"c{number}" for number in range(6) if f"Order-{number}" not in unreadable.values()}
