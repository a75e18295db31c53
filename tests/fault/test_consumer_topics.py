"""Topics that do what they should not: records twice, records that are not ours or can't be read, a topic that is another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.fault.conftest import Spine
from tests.fault.topics import delete_topic, make_topic
from tests.oracle import read_committed
from tests.waiting import wait_for


def produce(bootstrap: str, topic: str, messages: list[Any], change: Callable[[Any], dict[str, Any]] = lambda _: {}) -> None:
    """Produce records again, as anybody could."""
    producer = Producer({"bootstrap.servers": bootstrap})
    for message in messages:
        record = {"key": message.key(), "value": message.value(), "headers": message.headers(), "partition": message.partition()}
        producer.produce(topic, **record | change(message))
    assert producer.flush(30) == 0


def position(message: Any) -> int:
    return int(dict(message.headers())["ce_globalposition"])


async def test_records_that_are_there_twice_are_dropped(spine: Spine) -> None:
    """Copies at the end, between what is published meanwhile, and of copies."""
    topic = f"{spine.topic_prefix}Order"
    await spine.append(50)
    relay, consumer = spine.run.relay(), spine.run.consumer()
    await spine.relayed(relay)
    for _ in range(3):
        records = await asyncio.to_thread(read_committed, spine.bootstrap, topic)
        parts = [records[start : start + 30] for start in range(0, len(records), 30)]
        publishing = asyncio.create_task(spine.append(100, at_once=5))
        for part in parts:
            await asyncio.to_thread(produce, spine.bootstrap, topic, part)
        await publishing
        await spine.relayed(relay)
    await spine.caught_up(relay, consumer)
    ends = {message.partition(): message.offset() for message in await asyncio.to_thread(read_committed, spine.bootstrap, topic)}
    behind = "SELECT partition, next_offset FROM projection_offsets WHERE next_offset > 0"
    await wait_for(
        lambda: spine.pool.fetch(behind), lambda rows: all(row[1] > ends[row[0]] for row in rows) and rows, timeout_s=30
    )
    await relay.stop()
    await consumer.stop()
    await spine.check(at_least_once=True)


async def test_strange_records_harm_no_other_stream(spine: Spine) -> None:
    """Without a value, without a header, with a position that is no position of the log; keys tell nothing that headers don't."""
    await spine.append(8, at_once=1)
    relay = spine.run.relay()
    await spine.relayed(relay)
    await relay.stop()
    changes: dict[int, dict[str, Any]] = {1: {"value": None}, 5: {"key": b"\xff\xfe"}, 9: {"key": None}}
    other = f"{spine.topic_prefix}strange."
    await make_topic(spine.bootstrap, f"{other}Order", partitions=6)

    def change(message: Any) -> dict[str, Any]:
        if position(message) == 13:
            return {"headers": [(name, value) for name, value in message.headers() if name != "ce_id"]}
        return changes.get(position(message), {})

    records = await asyncio.to_thread(read_committed, spine.bootstrap, f"{spine.topic_prefix}Order")
    await asyncio.to_thread(produce, spine.bootstrap, f"{other}Order", records, change)
    consumer = spine.run.command(["consume", "tests.projections:OrderTotals"], topic_prefix=other)
    await spine.caught_up(consumer)
    parked = await spine.pool.fetch("SELECT global_position, state, reason FROM projection_parked ORDER BY 1")
    assert [tuple(row)[:2] for row in parked] == [(1, "parked"), (2, "waiting"), (13, "parked"), (14, "waiting")]
    states = {row["stream_id"] for row in await spine.pool.fetch("SELECT stream_id FROM order_states")}
    assert states == {f"Order-{number}" for number in range(8)} - {"Order-0", "Order-6"}
    await consumer.stop()


async def test_a_record_of_somebody_else_halts_the_projection(spine: Spine) -> None:
    """Without our position nobody can say what it is: perhaps one of ours that lost its headers on a way of its own."""
    topic = f"{spine.topic_prefix}Order"
    await spine.append(5)
    relay, consumer = spine.run.relay(), spine.run.consumer()
    await spine.caught_up(relay, consumer)
    records = await asyncio.to_thread(read_committed, spine.bootstrap, topic)
    await asyncio.to_thread(produce, spine.bootstrap, topic, records[:1], lambda _: {"headers": []})
    assert await consumer.ended() == 1
    where = f"{topic}[{records[0].partition()}] offset"
    said = " ".join(consumer.said.split())
    assert where in said, said
    assert "Nothing behind it was taken" in said, said
    await relay.stop()
    assert await spine.applied() == 10


@pytest.mark.parametrize("running", [False, True], ids=["away", "running"])
async def test_a_topic_that_was_made_anew_halts_the_projection(spine: Spine, running: bool) -> None:
    """Even where the new one has a record at the next offset: it is another one."""
    topic = f"{spine.topic_prefix}Order"
    await spine.append(30)
    relay, consumer = spine.run.relay(), spine.run.consumer()
    await spine.caught_up(relay, consumer)
    await relay.stop()
    records = await asyncio.to_thread(read_committed, spine.bootstrap, topic)
    if not running:
        await consumer.stop()
    await delete_topic(spine.bootstrap, topic)
    await wait_until_gone(spine.bootstrap, topic)
    await make_topic(spine.bootstrap, topic, partitions=6)
    await asyncio.to_thread(produce, spine.bootstrap, topic, records * 3)
    if not running:
        consumer = spine.run.consumer()
    assert await consumer.ended(60) == 1
    said = " ".join(consumer.said.split())
    assert "was deleted and made anew" in said, said
    assert "eventspine projections reset" in said, said
    assert await spine.applied() == 60


async def wait_until_gone(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    await wait_for(lambda: topic not in admin.list_topics(timeout=10).topics)
