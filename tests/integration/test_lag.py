"""How stale projections are: exact at the end of a topic, where marks of transactions lie, and told in seconds."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import asyncpg
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from eventspine import PostgresEventStore
from eventspine.consumers.places import Partition
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from eventspine.relay.offsets import next_offsets
from eventspine.staleness import Lag, LagReader, Staleness, read_staleness
from eventspine.store.postgres.published import Published
from tests.event_types import placed
from tests.integration.test_projection_sources import append, make_log_consumer, right, running
from tests.integration.test_relay_and_consumer import make_consumer, relaying
from tests.processes import processes
from tests.waiting import wait_for


async def staleness(pool: asyncpg.Pool, kafka: str | None, prefix: str) -> list[Staleness]:
    admin = PostgresProjectionAdmin(pool)
    return await read_staleness(await admin.places("order_totals"), Published(pool, topic_prefix=prefix), kafka)


def lags(told: list[Staleness]) -> list[Lag | None]:
    return [each.lag for each in told]


async def test_a_partition_that_is_caught_up_lags_nothing_behind_marks_and_aborted_records(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}Order"
    async with relaying(store, kafka, topic_prefix):
        async with running(make_consumer(store, pool, kafka, topic_prefix)):
            await append(store, "a", 10)
            await right(pool)
        producer = Producer({"bootstrap.servers": kafka, "transactional.id": f"{topic_prefix}aborts"})
        await asyncio.to_thread(producer.init_transactions, 30)
        producer.begin_transaction()
        producer.produce(topic, b"never to be read", partition=0)
        await asyncio.to_thread(producer.flush, 30)
        await asyncio.to_thread(producer.abort_transaction, 30)
        admin, partitions = AdminClient({"bootstrap.servers": kafka}), [(topic, number) for number in range(3)]
        ends = await wait_for(  # the mark of an end of a transaction comes a moment behind the end
            lambda: next_offsets(admin, partitions, committed=True),
            lambda ends: ends == next_offsets(admin, partitions, committed=False),
        )
        told = await staleness(pool, kafka, topic_prefix)
        assert all(ends[each.place.partition] > each.place.next_offset for each in told if each.place.events)
        assert lags(told) == [Lag(0, 0.0)] * 3

        before = time.time()
        [event] = await store.append("Order-late", "Order", [placed("b")], 0)
        waiting = await wait_for(
            lambda: staleness(pool, kafka, topic_prefix), lambda told: any(each.lag and each.lag.events for each in told)
        )
        [(place, lag)] = [each for each in waiting if each.lag != Lag(0, 0.0)]
        assert lag is not None
        assert lag.seconds is not None
        assert 1 <= lag.events <= 5
        assert 0 <= lag.seconds <= time.time() - before
        older = next(each.lag for each in await staleness(pool, kafka, topic_prefix) if each.place.partition == place.partition)
        assert older is not None
        assert older.seconds is not None
        assert older.seconds > lag.seconds
        async with running(make_consumer(store, pool, kafka, topic_prefix)):
            await wait_for(
                lambda: staleness(pool, kafka, topic_prefix), lambda told: lags(told) == [Lag(0, 0.0)] * 3, timeout_s=30
            )
        assert event.global_position == await pool.fetchval("SELECT max(last_position) FROM projection_offsets")
        assert lags(await staleness(pool, None, topic_prefix)) == [None] * 3


async def test_a_record_that_is_gone_has_no_age(store: PostgresEventStore, kafka: str, topic_prefix: str) -> None:
    async with relaying(store, kafka, topic_prefix) as relay:
        await append(store, "a", 5)
        await wait_for(lambda: relay.position, lambda position: position == 10)
    partition = Partition(f"{topic_prefix}Order", 0)
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.delete_records([TopicPartition(*partition, 1)])[TopicPartition(*partition, 1)].result(20)
    reader = LagReader(kafka)
    try:
        told = reader.read({partition: 0, Partition(f"{topic_prefix}Nothing", 0): 0})
        assert told.keys() == {partition}
        assert told[partition].events > 1
        assert told[partition].seconds is None
        assert reader.read({partition: 10_000_000}) == {partition: Lag(0, 0.0)}  # a topic that was made anew
        assert (await asyncio.to_thread(reader.read, {partition: 1}))[partition].seconds is not None
    finally:
        reader.close()


async def test_of_the_log_by_positions_and_the_databases_clock(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    async with running(make_log_consumer(store, pool)):
        await append(store, "a", 5)
        await right(pool)
    assert lags(await staleness(pool, None, topic_prefix)) == [Lag(0, 0.0)]
    await append(store, "b", 2)
    [(_, lag)] = await staleness(pool, None, topic_prefix)
    assert lag is not None
    assert lag.events == 4
    assert lag.seconds is not None
    assert 0 < lag.seconds < 10
    async with relaying(store, kafka, topic_prefix), running(make_consumer(store, pool, kafka, topic_prefix)):
        await right(pool)
        assert (await staleness(pool, kafka, topic_prefix))[0].lag is None  # it is read from the log no longer


async def test_list_and_status_show_it(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, database: str, tmp_path: Path
) -> None:
    async with processes(database, kafka, topic_prefix, tmp_path) as run, relaying(store, kafka, topic_prefix) as relay:

        async def command(*arguments: str, bootstrap: str | None = None) -> str:
            process = run.command(["projections", *arguments], bootstrap=bootstrap)
            assert await process.ended(60) == 0, process.said
            return process.said

        async with running(make_consumer(store, pool, kafka, topic_prefix)):
            await append(store, "a", 5)
            await right(pool)
        await append(store, "b", 5)
        await wait_for(lambda: relay.position, lambda position: position == 20)
        (summary,) = json.loads(await command("list", "--json"))
        assert summary["lag"] >= 10
        assert 0 < summary["lag s"] < 60
        by_partition = json.loads(await command("status", "order_totals", "--json"))
        assert sum(each["lag"] for each in by_partition) == summary["lag"]
        assert max(each["lag s"] for each in by_partition) > 0
        table = await command("status", "order_totals")
        assert "lag s" in table
        assert "None" not in table
