"""Reactions and process managers on real servers: what they record, once and in order; parking; where they begin."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import asyncpg
import msgspec
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from eventspine import (
    ANY,
    Aggregate,
    Callback,
    ConcurrencyError,
    Context,
    Event,
    InvalidEvent,
    PostgresEventStore,
    PostgresSink,
    ReactionConsumer,
    ReactionError,
    Reactions,
    Relay,
    Scheduler,
    Webhook,
    by_stream,
    on,
)
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from eventspine.consumers.reactions import reaction_of
from eventspine.consumers.reactions.context import effect_id
from eventspine.consumers.reactions.webhook import signature
from eventspine.relay.topics import TopicSettings
from eventspine.store.postgres import Effects
from tests.event_types import paid, placed
from tests.processes import processes
from tests.reactions import Fulfilment, Shipper
from tests.waiting import wait_for
from tests.webhook_receiver import Delivery, receiving


@asynccontextmanager
async def relaying(store: PostgresEventStore, kafka: str, prefix: str) -> AsyncIterator[Relay]:
    relay = Relay(store.log, kafka, topic_prefix=prefix, topics=TopicSettings(partitions=3))
    running = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await running


@pytest.fixture
async def relay(store: PostgresEventStore, kafka: str, topic_prefix: str) -> AsyncIterator[Relay]:
    async with relaying(store, kafka, topic_prefix) as relay:
        yield relay


class Bench:
    """Runs reactions against the test's servers."""

    def __init__(self, store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, prefix: str) -> None:
        self.store = store
        self.pool = pool
        self._kafka = kafka
        self._prefix = prefix

    def consumer(self, declared: Any, **options: Any) -> ReactionConsumer:
        sink = PostgresSink(self.pool)
        return ReactionConsumer(reaction_of(declared), self.store, sink, self._kafka, topic_prefix=self._prefix, **options)

    @asynccontextmanager
    async def reacting(self, declared: Any, **options: Any) -> AsyncIterator[ReactionConsumer]:
        consumer = self.consumer(declared, **options)
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


# What can't be handled


class Picky(Reactions):
    """Refuses amounts until they are mended."""

    name = "picky"
    start = "beginning"
    categories = ("Order",)
    first_pause_s = 0.01
    max_attempts = 3
    refused: ClassVar[set[int]] = set()
    tried: ClassVar[list[int]] = []

    @on("OrderPaid")
    async def paid(self, event: Event, context: Context) -> None:
        amount = event.data["amount_cents"]
        self.tried.append(amount)
        if amount in self.refused:
            raise ValueError(amount)
        context.append(f"Parcel-{by_stream(event)}", paid(amount))


@pytest.fixture
def picky() -> type[Picky]:
    Picky.refused, Picky.tried = set(), []
    return Picky


async def pay(bench: Bench, stream: str, *amounts: int) -> None:
    for amount in amounts:
        await bench.store.append(stream, "Order", [paid(amount)], ANY)


async def parcels(bench: Bench) -> dict[str, list[int]]:
    return {name: [each.data["amount_cents"] for each in events] for name, events in (await bench.streams("Parcel")).items()}


async def test_an_event_that_fails_parks_its_stream_in_order(bench: Bench, picky: type[Picky]) -> None:
    admin = PostgresProjectionAdmin(bench.pool)
    await admin.prepare()
    picky.refused = {2, 12}
    async with bench.reacting(picky) as consumer:
        await pay(bench, "Order-a", 1, 2, 3)
        await pay(bench, "Order-b", 11, 12, 13)
        await pay(bench, "Order-c", 21, 22)
        await wait_for(lambda: bench.pool.fetchval("SELECT count(*) FROM projection_parked"), lambda n: n == 4, timeout_s=30)
        await wait_for(lambda: bench.count("Parcel"), lambda n: n == 4)
        assert consumer.parked == 2
    assert await parcels(bench) == {"Parcel-a": [1], "Parcel-b": [11], "Parcel-c": [21, 22]}
    assert picky.tried.count(2) == 3
    rows = await admin.parked("picky")
    assert [(row.stream_id, row.state, row.tries, row.reason) for row in rows] == [
        ("Order-a", "parked", 3, "ValueError(2)"),
        ("Order-a", "waiting", 0, "waits behind a parked event of its stream"),
        ("Order-b", "parked", 3, "ValueError(12)"),
        ("Order-b", "waiting", 0, "waits behind a parked event of its stream"),
    ]
    # Its next process knows what is parked; a retry in vain leaves it so.
    picky.tried.clear()
    async with bench.reacting(picky):
        await pay(bench, "Order-a", 4)
        await wait_for(lambda: bench.pool.fetchval("SELECT count(*) FROM projection_parked"), lambda n: n == 5, timeout_s=30)
        assert not picky.tried
        await admin.ask("picky", "retry", "Order-a")
        await wait_for(lambda: bench.pool.fetchval("SELECT max(tries) FROM projection_parked"), lambda n: n == 6)
        assert (await bench.pool.fetchval("SELECT count(*) FROM projection_parked WHERE asked IS NULL")) == 5
        picky.refused = set()
        await admin.ask("picky", "retry", "Order-a")
        await admin.ask("picky", "discard", "Order-b")
        await wait_for(lambda: bench.pool.fetchval("SELECT count(*) FROM projection_parked"), lambda n: n == 0, timeout_s=30)
        await pay(bench, "Order-a", 5)
        await wait_for(lambda: bench.count("Parcel"), lambda n: n == 9, timeout_s=30)
    assert await parcels(bench) == {"Parcel-a": [1, 2, 3, 4, 5], "Parcel-b": [11, 13], "Parcel-c": [21, 22]}


async def test_bytes_that_can_not_be_read_are_parked(bench: Bench, picky: type[Picky], kafka: str, topic_prefix: str) -> None:
    await pay(bench, "Order-a", 1)
    await PostgresProjectionAdmin(bench.pool).prepare()
    async with bench.reacting(picky):
        await wait_for(lambda: bench.count("Parcel"), lambda n: n == 1, timeout_s=30)
        headers: Any = {"ce_id": str(UUID(int=9)), "ce_globalposition": b"99", "ce_type": b"OrderPaid", "ce_subject": b"Order-z"}
        producer = Producer({"bootstrap.servers": kafka})
        producer.produce(f"{topic_prefix}Order", b"no avro", b"Order-z", headers=headers)
        await asyncio.to_thread(producer.flush, 20)
        await wait_for(lambda: bench.pool.fetchval("SELECT count(*) FROM projection_parked"), lambda n: n == 1, timeout_s=30)
    [row] = await PostgresProjectionAdmin(bench.pool).parked("picky")
    assert (row.stream_id, row.state, row.value, row.tries) == ("Order-z", "parked", b"no avro", 1)


async def test_a_reaction_that_halts_and_one_that_skips(bench: Bench, picky: type[Picky]) -> None:
    class Halting(picky):  # type: ignore[valid-type,misc]
        name = "halting"
        poison = "halt"

    class Skipping(picky):  # type: ignore[valid-type,misc]
        name = "skipping"
        poison = "skip"

    picky.refused = {2}
    await pay(bench, "Order-a", 1, 2, 3)
    with pytest.raises(ReactionError, match=r"OrderPaid \(stream 'Order-a', global position 2\) failed: ValueError"):
        async with asyncio.timeout(60):
            await bench.consumer(Halting).run()
    assert await parcels(bench) == {"Parcel-a": [1]}
    async with bench.reacting(Skipping):
        await wait_for(lambda: bench.count("Parcel"), lambda n: n == 3, timeout_s=30)
    assert await parcels(bench) == {"Parcel-a": [1, 1, 3]}
    assert [row.state for row in await PostgresProjectionAdmin(bench.pool).parked("skipping")] == ["skipped"]


async def test_a_slow_stream_holds_up_no_other_and_loses_nothing(bench: Bench) -> None:
    """The place stays before what is not done, whatever else is; the next process does it again, and no more."""
    released = asyncio.Event()
    seen: list[tuple[str, int]] = []

    async def handle(event: Event, key: str) -> None:
        seen.append((event.stream_id, event.version))
        if event.stream_id == "Order-slow" and not released.is_set():
            await asyncio.sleep(60)

    def callback() -> Callback:
        return Callback(handle, name="slow", start="beginning", categories=("Order",))

    await pay(bench, "Order-slow", 1)
    await pay(bench, "Order-fast", *range(50))
    async with bench.reacting(callback(), drain_s=0.2) as consumer:
        await wait_for(lambda: len(seen), lambda n: n == 51, timeout_s=30)
        await wait_for(lambda: consumer.handled, lambda n: n == 50)
    released.set()
    seen.clear()
    async with bench.reacting(callback()) as consumer:
        await wait_for(lambda: ("Order-slow", 1) in seen, timeout_s=30)
        await wait_for(lambda: consumer.lag, lambda lag: lag == 0)


# Where it begins


async def test_now_is_the_moment_of_the_first_start(bench: Bench, picky: type[Picky]) -> None:
    class FromNow(picky):  # type: ignore[valid-type,misc]
        name = "from_now"
        start = "now"

    await pay(bench, "Order-a", 1, 2)
    async with bench.reacting(FromNow) as consumer:
        await wait_for(lambda: len(consumer.places), lambda n: n == 3, timeout_s=30)
    await pay(bench, "Order-a", 3)  # while it does not run
    async with bench.reacting(FromNow):
        await pay(bench, "Order-b", 4)
        await wait_for(lambda: bench.count("Parcel"), lambda n: n == 2, timeout_s=30)
    assert await parcels(bench) == {"Parcel-a": [3], "Parcel-b": [4]}


async def test_now_of_an_empty_log_is_its_beginning(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, picky: type[Picky]
) -> None:
    class FromNow(picky):  # type: ignore[valid-type,misc]
        name = "from_now"
        start = "now"

    bench = Bench(store, pool, kafka, topic_prefix)
    async with bench.reacting(FromNow) as consumer:
        await wait_for(lambda: consumer.state, lambda state: state == "reacting", timeout_s=30)
    await pay(bench, "Order-a", 1)
    async with relaying(store, kafka, topic_prefix), bench.reacting(FromNow):
        await wait_for(lambda: bench.count("Parcel"), lambda n: n == 1, timeout_s=30)


async def test_what_kafka_is_told_moves_nothing(bench: Bench, picky: type[Picky], kafka: str, topic_prefix: str) -> None:
    """Offsets that are reset in Kafka repeat no effect, and those of a callback neither."""
    seen: list[str] = []

    async def handle(event: Event, key: str) -> None:
        seen.append(key)

    def callback() -> Callback:
        return Callback(handle, name="calls", start="beginning", categories=("Order",))

    await pay(bench, "Order-a", *range(20))
    async with bench.reacting(callback()) as consumer:
        await wait_for(lambda: (len(seen), consumer.lag), lambda found: found == (20, 0), timeout_s=30)
    partitions = [TopicPartition(f"{topic_prefix}Order", number, 0) for number in range(3)]
    group = ConsumerGroupTopicPartitions(f"{topic_prefix}calls", partitions)
    admin = AdminClient({"bootstrap.servers": kafka})
    await asyncio.to_thread(lambda: admin.alter_consumer_group_offsets([group])[f"{topic_prefix}calls"].result(20))
    async with bench.reacting(callback()):
        await pay(bench, "Order-a", 99)
        await wait_for(lambda: len(seen), lambda n: n == 21, timeout_s=30)
    assert len(set(seen)) == 21


# Recorded once


async def test_of_two_that_react_at_once_one_is_recorded(store: PostgresEventStore) -> None:
    """A zombie beside its successor, and a handler that decides otherwise each time: what was first counts, as a whole."""
    [cause] = await store.append("Order-1", "Order", [paid(1)], 0)

    def effects(n: int) -> Effects:
        context = Context("twice", cause, store)
        context.append("Parcel-1" if n % 2 else "Stock-1", paid(n), paid(n))
        if n % 3 == 0:
            context.schedule("Later-1", paid(n), after=timedelta(0))
        return context.effects()

    await asyncio.gather(*(store.reactions.record("twice", effects(n)) for n in range(12)))
    recorded = [event for stream in ("Parcel-1", "Stock-1") for event in await store.read_stream(stream)]
    assert len(recorded) == 2
    assert recorded[0].data == recorded[1].data
    assert await store.reactions.recorded([effects(0).mark, cause.event_id]) == {effects(0).mark, cause.event_id}


async def test_a_conflict_is_told_if_nothing_is_recorded(store: PostgresEventStore) -> None:
    [cause] = await store.append("Order-1", "Order", [paid(1)], 0)
    context = Context("late", cause, store)
    context.append("Order-1", paid(2), expected_version=0)
    context.append("Stock-1", paid(2))
    with pytest.raises(ConcurrencyError):
        await store.reactions.record("late", context.effects())
    assert await store.last_position() == 1


class Ledger(Aggregate):
    total: int = 0

    def add(self, n: int) -> None:
        self.record("OrderPaid", {"amount_cents": self.total + n})

    @on("OrderPaid")
    def _added(self, event: Event) -> None:
        self.total = event.data["amount_cents"]


async def test_many_streams_decide_on_one(bench: Bench) -> None:
    """Conflicts let handlers run again on the newer state; each event counts once."""

    class Sums(Reactions):
        start = "beginning"
        categories = ("Order",)

        @on("OrderPaid")
        async def paid(self, event: Event, context: Context) -> None:
            (await context.load(Ledger, "all")).add(event.data["amount_cents"])

    for number in range(40):
        await pay(bench, f"Order-{number}", number)
    async with bench.reacting(Sums) as consumer:
        await wait_for(lambda: bench.count("Ledger"), lambda n: n == 40, timeout_s=30)
        assert consumer.parked == 0
        assert consumer.retried > 0
    assert (await bench.store.read_stream("Ledger-all"))[-1].data["amount_cents"] == sum(range(40))


# Scheduled events


def schedule(store: PostgresEventStore, cause: Event, *, after_s: float, key: str = "", event: Event | None = None) -> Effects:
    context = Context("timer", cause, store)
    context.schedule("Later-1", event or paid(7), after=timedelta(seconds=after_s), key=key)
    return context.effects()


async def test_two_schedulers_append_each_event_once(store: PostgresEventStore) -> None:
    causes = [event for n in range(60) for event in await store.append(f"Order-{n}", "Order", [paid(n)], 0)]
    for cause in causes:
        await store.reactions.record("timer", schedule(store, cause, after_s=0.2 if cause.version % 2 else 0.0))
        await store.reactions.record("timer", schedule(store, cause, after_s=0.0))  # delivered again
    schedulers = [Scheduler(store, "timer", poll_s=0.05, batch_events=7) for _ in range(3)]
    running = [asyncio.create_task(each.run()) for each in schedulers]
    await wait_for(lambda: sum(each.appended for each in schedulers), lambda n: n == 60)
    for each in schedulers:
        each.stop()
    await asyncio.gather(*running)
    events = await store.read_stream("Later-1")
    assert len({event.event_id for event in events}) == len(events) == 60
    assert {event.causation_id for event in events} == {str(cause.event_id) for cause in causes}
    assert not await store.reactions.waiting("timer")


async def test_what_is_not_due_waits_and_is_cancelled_once(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    first, second, third = [event for n in range(3) for event in await store.append(f"Order-{n}", "Order", [paid(n)], 0)]
    await store.reactions.record("timer", schedule(store, first, after_s=3600, key="k"))
    await store.reactions.record("timer", schedule(store, second, after_s=3600, key="other"))
    assert await store.reactions.append_due("timer") == 0
    due = await store.reactions.next_due_in_s("timer")
    assert due is not None
    assert 3500 < due <= 3600
    cancelling = Context("timer", third, store)
    cancelling.cancel("k")
    await store.reactions.record("timer", cancelling.effects())
    assert [each.key for each in await store.reactions.waiting("timer")] == ["other"]
    # Both are delivered again: what was cancelled is not scheduled again, and a later schedule is not cancelled.
    await store.reactions.record("timer", schedule(store, first, after_s=0, key="k"))
    assert [each.key for each in await store.reactions.waiting("timer")] == ["other"]
    again = await store.append("Order-9", "Order", [paid(9)], 0)
    await store.reactions.record("timer", schedule(store, again[0], after_s=3600, key="k"))
    await store.reactions.record("timer", cancelling.effects())
    assert sorted(each.key for each in await store.reactions.waiting("timer")) == ["k", "other"]


async def test_what_can_not_be_appended_holds_no_other_up(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    causes = [event for n in range(3) for event in await store.append(f"Order-{n}", "Order", [paid(n)], 0)]
    for cause in causes:
        await store.reactions.record("timer", schedule(store, cause, after_s=0))
    # An id that is taken by another event: somebody meddled.
    taken = schedule(store, causes[1], after_s=0).scheduled[0].event.event_id
    await store.append("Stock-1", "Stock", [msgspec.structs.replace(placed(), event_id=taken)], 0)
    assert await store.reactions.append_due("timer") == 3
    assert len(await store.read_stream("Later-1")) == 2
    [left] = await store.reactions.waiting("timer")
    assert left.failure is not None
    assert "is already recorded elsewhere" in left.failure
    assert await store.reactions.next_due_in_s("timer") is None


async def test_what_append_would_refuse_is_refused_at_once(store: PostgresEventStore) -> None:
    [cause] = await store.append("Order-1", "Order", [paid(1)], 0)
    with pytest.raises(InvalidEvent, match="amount_cents"):
        await store.reactions.record("timer", schedule(store, cause, after_s=0, event=paid("much")))  # type: ignore[arg-type]
    assert await store.reactions.recorded([effect_id("timer", cause.event_id, 0)]) == set()


# Webhooks


def webhook(url: str, **rules: Any) -> Webhook:
    rules = {"first_pause_s": 0.02, "most_pause_s": 0.1} | rules
    return Webhook(url, name="hooks", start="beginning", categories=("Order",), secret=SECRET, **rules)


SECRET = "whsec_" + "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"


async def test_a_webhook_is_tried_until_it_is_taken(bench: Bench) -> None:
    async with receiving() as receiver:
        failures = [500, 503, 429, 408]

        def answer(delivery: Delivery) -> tuple[int, dict[str, str]]:
            asked = sum(each.event["id"] == delivery.event["id"] for each in receiver.asked)
            if delivery.event["subject"] == "Order-x" and asked <= len(failures):
                return failures[asked - 1], {"retry-after": "0"}
            return 204, {}

        receiver.answer = answer
        await pay(bench, "Order-x", 1, 2, 3)
        await pay(bench, "Order-y", 4, 5)
        async with bench.reacting(webhook(receiver.url)):
            await wait_for(lambda: len(receiver.taken), lambda n: n == 5, timeout_s=30)
    receiver.check_order()
    assert len(receiver.asked) == 5 + 3 * len(failures)
    for each in receiver.taken:
        assert each.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
        assert each.headers["webhook-id"] == each.event["id"]
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        signed = signature(key, each.event["id"], int(each.headers["webhook-timestamp"]), each.body)
        assert each.headers["webhook-signature"] == signed
        assert abs(int(each.headers["webhook-timestamp"]) - time.time()) < 60
    assert [each.event["data"] for each in receiver.taken if each.event["subject"] == "Order-y"] == [
        {"amount_cents": 4},
        {"amount_cents": 5},
    ]


async def test_a_webhook_that_refuses_parks_at_once(bench: Bench) -> None:
    async with receiving() as receiver:
        receiver.answer = lambda each: (422 if each.event["data"]["amount_cents"] == 1 else 204, {})
        await pay(bench, "Order-x", 1, 2)
        await pay(bench, "Order-y", 3)
        async with bench.reacting(webhook(receiver.url)):
            admin = PostgresProjectionAdmin(bench.pool)
            await admin.prepare()
            await wait_for(lambda: admin.parked("hooks"), lambda rows: len(rows) == 2, timeout_s=30)
            assert {row.reason for row in await admin.parked("hooks")} >= {"the webhook answered 422"}
            await wait_for(lambda: len(receiver.taken), lambda n: n == 1)
            assert len(receiver.asked) == 2
            receiver.answer = lambda _: (200, {})
            await admin.ask("hooks", "retry")
            await wait_for(lambda: len(receiver.taken), lambda n: n == 3, timeout_s=30)
    receiver.check_order()


async def test_a_webhook_that_is_down_or_silent_is_waited_for(bench: Bench) -> None:
    """Nothing passes it, and nothing is parked before its tries are over."""
    async with receiving() as receiver:
        down = True
        receiver.answer = lambda _: (503 if down else 204, {})
        await pay(bench, "Order-x", *range(30))
        async with bench.reacting(webhook(receiver.url, max_attempts=1000), waiting_events=10) as consumer:
            await wait_for(lambda: len(receiver.asked), lambda n: n >= 5, timeout_s=30)
            assert consumer.waiting <= 10
            assert not receiver.taken
            down = False
            await wait_for(lambda: len(receiver.taken), lambda n: n == 30, timeout_s=30)
            assert consumer.parked == 0
    receiver.check_order()


# The command


async def test_the_command_runs_a_reaction(bench: Bench, database: str, kafka: str, topic_prefix: str, tmp_path: Path) -> None:
    async with processes(database, kafka, topic_prefix, tmp_path) as run:
        reacting = run.command(["react", "tests.reactions:Fulfilment", "--processes", "2"])
        for number in range(10):
            await order(bench, number)
        await wait_for(lambda: bench.count("Fulfilment"), lambda n: n == 20, timeout_s=40)
        await reacting.stop()
        assert "fulfilment" in reacting.said
        assert "amount_cents" not in reacting.said
        listed = run.command(["projections", "status", "fulfilment", "--json"])
        assert await listed.ended() == 0
        wrong = run.command(["react", "tests.reactions:nothing"])
        assert await wrong.ended() == 2
        assert "has no 'nothing'" in wrong.said
