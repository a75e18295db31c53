"""Verify against real topics: a good one, copies with planted mistakes; then what mends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from confluent_kafka import Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from eventspine import (
    Consumer,
    Event,
    EventspineError,
    Fenced,
    IntegrityError,
    PostgresEventStore,
    PostgresSink,
    Relay,
    SettingsError,
)
from eventspine.consumers.folding import fold
from eventspine.consumers.places import Partition, Place
from eventspine.consumers.sink import Work
from eventspine.relay.heal import Healed, heal_missing, repairing
from eventspine.relay.rebuild import rebuild_topic
from eventspine.relay.replay import Republished, replay
from eventspine.relay.router import Router
from eventspine.relay.state import RelayState
from eventspine.relay.topics import Topics, TopicSettings
from eventspine.relay.verify import Report, verify_topics
from eventspine.store.postgres.bulk import import_events
from tests.event_types import paid, placed
from tests.oracle import read_committed
from tests.processes import processes
from tests.projections import OrderTotals
from tests.waiting import wait_for

Plant = Callable[[list[Any]], Sequence[Any]]


class Spine:
    """A log with its topics, three partitions each."""

    def __init__(self, store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, prefix: str) -> None:
        self.store, self.pool, self.kafka, self.prefix = store, pool, kafka, prefix
        self.state = RelayState(pool, f"{prefix}relay")
        self.settings = TopicSettings(partitions=3)
        self.router = Router(store.log, prefix=prefix, source="/eventspine")
        self.topic = f"{prefix}Order"

    @asynccontextmanager
    async def relaying(self, **options: Any) -> AsyncIterator[Relay]:
        relay = Relay(self.store.log, self.kafka, topic_prefix=self.prefix, topics=self.settings, lease_s=1.0, **options)
        running = asyncio.create_task(relay.run())
        try:
            yield relay
        finally:
            relay.stop()
            await running

    async def publish(self, events: int, **options: Any) -> None:
        """Record events of 50 streams in two categories, and relay the log to its end."""
        before = await self.store.log.last_position()
        await import_events(self.pool, f"to {before}", (_event(before + n) for n in range(events)))
        async with self.relaying(**options) as relay:
            await wait_for(lambda: relay.position, lambda position: position == before + events)

    async def verify(self, **options: Any) -> Report:
        return await verify_topics(
            self.store.log,
            self.kafka,
            router=self.router,
            state=self.state,
            topics=Topics(self.kafka, self.state, self.settings),
            prefix=self.prefix,
            name="relay",
            **options,
        )

    async def copy(self, plant: Plant, *, to: str = "") -> dict[str, str]:
        """Make a topic with all records of the orders' one, with mistakes planted in each partition; return the mapping to it.

        `to` the topic itself takes its place, as if an administrator had restored it badly and nobody had noticed.
        """
        return {self.topic: await asyncio.to_thread(self._copy, plant, to or f"{self.topic}.copy")}

    def _copy(self, plant: Plant, name: str) -> str:
        records = read_committed(self.kafka, self.topic)
        admin = AdminClient({"bootstrap.servers": self.kafka})
        if name == self.topic:
            admin.delete_topics([name])[name].result(20)
        admin.create_topics([NewTopic(name, 3, 1)])[name].result(20)
        producer = Producer({"bootstrap.servers": self.kafka, "enable.idempotence": True})
        for number in range(3):
            for each in plant([record for record in records if record.partition() == number]):
                key, value, headers = each if isinstance(each, tuple) else content_of(each)
                producer.produce(name, value, key, number, headers=headers)
        assert producer.flush(30) == 0
        return name

    async def replace(self, plant: Plant) -> None:
        await self.copy(plant, to=self.topic)
        admin = AdminClient({"bootstrap.servers": self.kafka})
        found = admin.describe_topics(TopicCollection([self.topic]))[self.topic].result(20)
        await self.pool.execute("UPDATE relay_topics SET kafka_id = $2 WHERE topic = $1", self.topic, str(found.topic_id))

    async def rebuild(self, **options: Any) -> Republished:
        return await rebuild_topic(
            self.store.log, self.kafka, router=self.router, state=self.state, settings=self.settings, prefix=self.prefix,
            name="relay", topic=self.topic, **options,
        )  # fmt: skip

    async def replay(self, topic: str, **options: Any) -> Republished:
        return await replay(
            self.store.log, self.kafka, router=self.router, prefix=self.prefix, name="relay", topic=topic,
            settings=self.settings, **options,
        )  # fmt: skip


def _event(number: int) -> Event:
    category = "Order" if number % 5 else "Refund"
    event = (
        placed(f"c{number % 7}", number, shop={"till": number % 3}) if number % 2 else paid(number, correlation_id=f"c{number}")
    )
    return Event(event_type=event.event_type, data=event.data, metadata=event.metadata, stream_id=f"{category}-{number % 50}")


@pytest.fixture
def spine(store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str) -> Spine:
    return Spine(store, pool, kafka, topic_prefix)


async def test_offsets_of_before_know_late_records(pool: asyncpg.Pool) -> None:
    """A table that an older version made gets the column, and keeps its rows."""
    sink, projection = PostgresSink(pool), OrderTotals()
    await sink.prepare(projection)
    await pool.execute("ALTER TABLE projection_offsets DROP COLUMN last_late, DROP COLUMN built_to, DROP COLUMN topic_id")
    await pool.execute("INSERT INTO projection_offsets VALUES ($1, 'events.Order', 0, 3, 7, 42, 5)", projection.name)
    await sink.prepare(projection)
    partition = Partition("events.Order", 0)
    before = (await sink.claim(projection, {partition: "id"})).places
    assert before == {partition: Place(4, 7, 42, 5, 0)}
    folded = fold(projection, [])
    work = Work(before, {partition: Place(4, 8, 42, 6, 2)}, folded, lambda _: folded, lambda _: [])
    await sink.write(projection, work)
    assert (await sink.claim(projection, {partition: "id"})).places == {partition: Place(5, 8, 42, 6, 2)}
    with pytest.raises(IntegrityError, match="deleted and made anew"):
        await sink.claim(projection, {partition: "another id"})


def position_of(record: Any) -> int:
    return int(dict(record.headers())["ce_globalposition"])


def content_of(record: Any) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    return record.key(), record.value(), record.headers()


async def test_every_planted_mistake_is_named_and_nothing_else(spine: Spine) -> None:
    await spine.publish(3000)
    clean = await spine.verify()
    assert (clean.findings, clean.faults, clean.events, clean.records, clean.end) == ([], 0, 3000, 3000, 3000)
    expected: set[tuple[str, int, int]] = set()

    def plant(records: list[Any]) -> Sequence[Any]:
        places = [position_of(each) for each in records]
        number = records[0].partition()
        kept = list(records)
        altered = bytearray(kept[40].value())
        altered[-1] ^= 1
        kept[40] = (kept[40].key(), bytes(altered), kept[40].headers())
        kept.insert(300, kept[250])
        kept.insert(200, kept.pop(100))
        kept.insert(20, kept.pop(450))
        del kept[5]
        kept.append((b"Order-1", b"", [("ce_globalposition", b"900000000")]))
        expected.update(
            {
                ("altered", number, places[40]),
                ("duplicated", number, places[250]),
                ("reordered", number, places[100]),
                ("reordered", number, places[449]),
                ("missing", number, places[5]),
                ("foreign", number, 900_000_000),
            }
        )
        return kept

    report = await spine.verify(copies=await spine.copy(plant))
    assert {(each.kind, each.partition, each.position) for each in report.findings} == expected
    assert report.faults == len(report.findings) == 18
    stored = {each.global_position: each for each in await spine.store.log.read_stored_at(range(1, 3001))}
    assert all(each.event_id == stored[each.position].event_id for each in report.findings if each.kind != "foreign")
    (altered,) = [each for each in report.findings if each.kind == "altered" and each.partition == 0]
    assert altered.what == "another value"
    assert len({altered.expected_sha256, altered.found_sha256, ""}) == 3
    few = await spine.verify(copies={spine.topic: f"{spine.topic}.copy"}, only=[spine.topic], max_named=4)
    assert (len(few.findings), few.faults, few.topics) == (4, 18, [spine.topic])


class Died(Exception):
    """Stands for a process that ends between two transactions."""


def dies_behind(position: int) -> Callable[[Republished, int], None]:
    def look(done: Republished, _: int) -> None:
        if done.position >= position:
            raise Died

    return look


def without(*numbers: int) -> Plant:
    return lambda records: [record for number, record in enumerate(records) if number not in numbers]


async def test_what_is_missing_is_published_late_and_once(spine: Spine, database: str, tmp_path: Path) -> None:
    """By a relay that runs; a reader that has come past the holes sees each late record once, at the end."""
    await spine.publish(600)
    await spine.replace(without(3, 4, 50))
    report = await spine.verify()
    missing = list(report.missing)
    assert (report.faults, len(missing), {each.kind for each in report.findings}) == (9, 9, {"missing"})
    async with repairing(spine.pool, spine.state.relay_id) as connection:
        with pytest.raises(Fenced, match="another process"):
            async with repairing(spine.pool, spine.state.relay_id):
                pass
        assert await heal_missing(connection, spine.state, missing) == Healed(0, 9, [])  # nobody publishes them yet
        assert (await spine.verify()).counts["parked"] == 9
        consumer = Consumer(
            OrderTotals(), PostgresSink(spine.pool), spine.kafka,
            load_event_types=spine.store.log.pinned_types, topic_prefix=spine.prefix,
        )  # fmt: skip
        consuming = asyncio.create_task(consumer.run())
        await wait_for(lambda: sum(each.events for each in consumer.places.values()), lambda count: count == 591, timeout_s=30)
        async with spine.relaying():
            await wait_for(lambda: spine.state.look(""), lambda view: view.workers)  # heal does not wait for a relay to come
            assert await heal_missing(connection, spine.state, missing) == Healed(9, 0, [])
        await wait_for(lambda: sum(each.events for each in consumer.places.values()), lambda count: count == 600)
        consumer.stop()
        await consuming
    assert await spine.pool.fetchval("SELECT max(last_late) FROM projection_offsets") == 9
    orders = await spine.pool.fetchval("SELECT count(*) FROM events WHERE event_type = 'OrderPlaced'")
    assert await spine.pool.fetchval("SELECT sum(orders) FROM order_totals") == orders
    healed = await spine.verify()
    assert (healed.findings, healed.counts["late"], healed.records) == ([], 9, 600)
    async with processes(database, spine.kafka, spine.prefix, tmp_path) as run:
        for arguments, code, says in [
            ([], 0, "600 events up to position 600, 600 records in 2 topics: no fault (9 late)"),
            (["--topic", "nonesuch"], 2, "has published nothing to nonesuch"),
        ]:
            process = run.command(["relay", "verify", *arguments])
            assert await process.ended() == code, process.said
            assert says in process.said


async def test_a_topic_is_built_anew(spine: Spine) -> None:
    """With another number of partitions, by one that died in between, while the relay's process runs; it goes on by itself."""
    await spine.publish(600)
    await spine.replace(lambda records: records[::-1])
    assert (await spine.verify()).counts["reordered"] > 300
    admin = AdminClient({"bootstrap.servers": spine.kafka})
    async with spine.relaying(shards=0) as relay:
        await wait_for(lambda: relay.state, lambda state: state == "publishing")
        with pytest.raises(Died):
            await spine.rebuild(partitions=5, batch_events=100, on_progress=dies_behind(300))
        assert (await spine.state.look("")).paused == "rebuild"
        await spine.store.append("Order-new", "Order", [placed()], 0)
        with pytest.raises(SettingsError, match="that was stopped"):
            await rebuild_topic(
                spine.store.log, spine.kafka, router=spine.router, state=spine.state, settings=spine.settings,
                prefix=spine.prefix, name="relay", topic=f"{spine.prefix}Refund",
            )  # fmt: skip
        done = await spine.rebuild(batch_events=100)
        assert done.before == 300
        await wait_for(lambda: relay.position, lambda position: position == 601)
    report = await spine.verify()
    assert (report.findings, report.events, report.records) == ([], 601, 601)
    assert (await spine.state.pinned_topics())[spine.topic].partitions == 5
    found = await asyncio.to_thread(lambda: admin.list_topics(spine.topic, timeout=20).topics[spine.topic])
    assert len(found.partitions) == 5
    await asyncio.to_thread(lambda: admin.delete_topics([spine.topic])[spine.topic].result(20))
    with pytest.raises(IntegrityError, match="is gone"):
        await spine.verify()
    await spine.rebuild()
    assert (await spine.verify()).findings == []


async def test_events_are_published_once_more(spine: Spine) -> None:
    """Into another topic, by two that died, each record as the relay publishes it."""
    await spine.publish(600)
    topic = f"{spine.prefix}again"
    for position in (200, 400):
        with pytest.raises(Died):
            await spine.replay(topic, from_position=51, to_position=550, batch_events=100, on_progress=dies_behind(position))
    done = await spine.replay(topic, from_position=51, to_position=550, categories=["Order"])
    assert done.before >= 400
    records = await asyncio.to_thread(read_committed, spine.kafka, topic)
    wanted = {position_of(each): content_of(each) for each in await asyncio.to_thread(read_committed, spine.kafka, spine.topic)}
    again = {position_of(each): content_of(each) for each in records}
    assert len(records) == len(again)
    orders = {position: content for position, content in again.items() if position in wanted}
    assert orders == {position: content for position, content in wanted.items() if 51 <= position <= 550}
    assert max(again.keys() - wanted.keys()) <= done.before  # refunds came with the first two only
    for number in range(3):
        places = [position_of(each) for each in records if each.partition() == number]
        assert places == sorted(places)
    for wrong in (spine.topic, f"{spine.prefix}-cursors"):
        with pytest.raises(SettingsError, match="own: replay into another one"):
            await spine.replay(wrong, from_position=1)
    with pytest.raises(SettingsError, match="the log has 1 to 600"):
        await spine.replay(topic, from_position=601)


async def test_a_cut_head_and_another_history(spine: Spine) -> None:
    """What retention took is counted; a database that is not the one that was published is no thing to compare with."""
    await spine.publish(300)
    admin = AdminClient({"bootstrap.servers": spine.kafka})
    cut = TopicPartition(spine.topic, 0, 20)
    await asyncio.to_thread(lambda: admin.delete_records([cut])[cut].result(20))
    report = await spine.verify()
    assert (report.faults, report.counts["expired"], report.records) == (0, 20, 280)
    await spine.pool.execute("ALTER TABLE events DISABLE TRIGGER USER; DELETE FROM events WHERE global_position > 299")
    with pytest.raises(IntegrityError, match="the log ends before"):
        await spine.verify()


async def test_repetitions_of_a_relay_without_transactions(spine: Spine) -> None:
    """A crash makes it publish again what was behind its cursor: legal there, and a fault where there are transactions."""
    await spine.publish(300, delivery="at-least-once")
    copies = await spine.copy(lambda records: [*records[:30], *records[20:]])
    report = await spine.verify(copies=copies, delivery="at-least-once")
    assert (report.faults, report.counts["repeated"]) == (0, 30)
    assert (await spine.verify(copies=copies)).counts["duplicated"] == 30


async def test_too_much_to_heal(spine: Spine) -> None:
    async with repairing(spine.pool, spine.state.relay_id) as connection:
        with pytest.raises(EventspineError, match="--rebuild"):
            await heal_missing(connection, spine.state, range(1, 30_000))
