"""Reading one's own writes: a read model is waited for exactly, and whoever waits in vain is told."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from eventspine import (
    ANY,
    Consumer,
    Event,
    EventSetAside,
    InvalidEvent,
    PostgresEventStore,
    ReadModel,
    SettingsError,
    StaleReadModel,
    StreamAppend,
    open_read_models,
)
from eventspine.consumers.admin import ProjectionPlace
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from eventspine.schemas.partition import partition_of
from eventspine.store.postgres import grant_application
from eventspine.store.postgres.published import Published
from tests.event_types import paid, placed
from tests.fault.topics import make_topic, set_max_message_bytes
from tests.integration.test_projection_sources import make_log_consumer, running
from tests.integration.test_relay_and_consumer import make_consumer, relaying
from tests.projections import OrderTotals
from tests.waiting import wait_for


class CountingAdmin(PostgresProjectionAdmin):
    """Counts how often the read model's database is asked."""

    asked = 0

    async def places(self, projection: str = "") -> list[ProjectionPlace]:
        self.asked += 1
        return await super().places(projection)


class Orders(OrderTotals):
    """Reads one category only."""

    name = "order_totals"
    categories = ("Order",)


@asynccontextmanager
async def reading(pool: asyncpg.Pool, prefix: str, projection: type[OrderTotals] = OrderTotals) -> AsyncIterator[ReadModel]:
    admin = CountingAdmin(pool)
    await admin.prepare()
    model = ReadModel(projection, admin, Published(pool, topic_prefix=prefix))
    try:
        yield model
    finally:
        await model.close()


def in_partition(number: int, name: str, partitions: int = 3) -> str:
    """Return a stream of a partition."""
    return next(s for s in (f"Order-{name}{n}" for n in range(1000)) if partition_of(s.encode(), partitions) == number)


async def version_of(pool: asyncpg.Pool, stream_id: str) -> int:
    return await pool.fetchval("SELECT version FROM order_states WHERE stream_id = $1", stream_id) or 0


async def behind(pool: asyncpg.Pool, position: int) -> list[str]:
    """Return the streams of which the read model lacks an event at or below a position."""
    rows = await pool.fetch(
        "SELECT e.stream_id FROM events e LEFT JOIN order_states s USING (stream_id) WHERE e.global_position <= $1"
        " GROUP BY e.stream_id, s.version HAVING max(e.version) > coalesce(s.version, 0)",
        position,
    )
    return [row[0] for row in rows]


async def test_what_was_written_is_there_under_load_with_idle_partitions(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    """Partition 2 never gets an event, partition 1 stays behind after one; writers write to partition 0 all the time."""
    await store.append(in_partition(1, "old"), "Order", [placed("a")], 0)
    busy = [in_partition(0, f"b{number}") for number in range(5)]
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await asyncio.gather(*(store.append(each, "Order", [paid(1)], ANY) for each in busy))

    async with (
        relaying(store, kafka, topic_prefix, batch_events=50),
        running(make_consumer(store, pool, kafka, topic_prefix)),
        reading(pool, topic_prefix) as model,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(write())
        try:
            for number in range(40):
                stream = busy[number % 5] if number % 2 else in_partition(0, f"own{number}-")
                [event] = await store.append(stream, "Order", [placed("own", number)], ANY)
                if number % 3:
                    await model.wait_for(event, timeout_s=30)
                    assert await version_of(pool, stream) >= event.version
                else:
                    await model.wait_for(event.global_position, timeout_s=30)
                    assert await behind(pool, event.global_position) == []
            many = await store.append_streams(_appends("m", 5))
            await model.wait_for([event for events in many for event in events], timeout_s=30)
            assert [await version_of(pool, events[0].stream_id) for events in many] == [1] * 5
        finally:
            stop.set()


def _appends(name: str, count: int) -> list[StreamAppend]:
    return [StreamAppend(f"Order-{name}{number}", "Order", [placed(name)], 0) for number in range(count)]


async def test_who_waits_too_long_is_told_how_far_it_is(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    stream, other = in_partition(0, "a"), in_partition(1, "b")
    async with reading(pool, topic_prefix) as model:
        [first] = await store.append(stream, "Order", [placed("a")], 0)
        with pytest.raises(StaleReadModel, match=r"has not taken position 1 of stream .* within 0.1 s; there it has come to 0"):
            await model.wait_for(first, timeout_s=0.1)
        async with relaying(store, kafka, topic_prefix):
            async with running(make_consumer(store, pool, kafka, topic_prefix)):
                await model.wait_for(first, timeout_s=30)
            [second] = await store.append(stream, "Order", [paid(1)], 1)
            await store.append(other, "Order", [placed("b")], 0)
            for what in (second, 3, {stream: 2, other: 1}):
                with pytest.raises(StaleReadModel) as late:
                    await model.wait_for(what, timeout_s=0.2)
                assert (late.value.projection, late.value.reached) == ("order_totals", 1 if what != 3 else late.value.reached)
            with pytest.raises(InvalidEvent, match="not recorded"):
                await model.wait_for(placed("x"))


async def test_what_does_not_concern_a_projection_is_not_waited_for(
    store: PostgresEventStore, pool: asyncpg.Pool, topic_prefix: str
) -> None:
    async with reading(pool, topic_prefix, Orders) as model:
        [event] = await store.append("Quote-1", "Quote", [placed("a")], 0)
        await model.wait_for(event, timeout_s=0.1)
        await model.wait_for(event.global_position, timeout_s=0.1)
        await model.wait_for([], timeout_s=0.1)
        with pytest.raises(StaleReadModel, match="has not taken position 2 within"):  # which the log does not have
            await model.wait_for(2, timeout_s=0.1)


async def test_from_the_log_and_behind_where_it_was_built_from(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    """Partitions that got no event since the projection was built from the log are as far as that."""
    async with relaying(store, kafka, topic_prefix) as relay:
        await store.append("Order-first", "Order", [placed("a")], 0)
        await wait_for(lambda: relay.position, lambda position: position == 1)
    async with reading(pool, topic_prefix) as model:
        async with running(make_log_consumer(store, pool)):
            [one] = await store.append(in_partition(0, "a"), "Order", [placed("a")], 0)
            await model.wait_for(one, timeout_s=30)
            await store.append(in_partition(1, "b"), "Order", [placed("b")], 0)
            await model.wait_for(3, timeout_s=30)
            assert await behind(pool, 3) == []
        [four] = await store.append(in_partition(2, "c"), "Order", [placed("c")], 0)
        with pytest.raises(StaleReadModel, match=r"position 4 .* come to 3"):
            await model.wait_for(four, timeout_s=0.2)
        with pytest.raises(StaleReadModel, match=r"position 4 .* come to 3"):
            await model.wait_for(4, timeout_s=0.2)
        consumer = make_consumer(store, pool, kafka, topic_prefix)
        async with running(consumer):
            await wait_for(lambda: len(consumer.places), lambda partitions: partitions == 3)
            await pool.execute("DELETE FROM projection_offsets WHERE topic = ''")  # what partitions were built to is enough
            for what in (1, 2, 3, one):  # of which Kafka has the first only
                await model.wait_for(what, timeout_s=5)
            async with relaying(store, kafka, topic_prefix):
                await model.wait_for(four, timeout_s=30)
                await model.wait_for(4, timeout_s=5)
            assert await behind(pool, 4) == []


async def test_what_a_projection_parked_is_said_at_once(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    async with (
        relaying(store, kafka, topic_prefix),
        running(make_consumer(store, pool, kafka, topic_prefix)),
        reading(pool, topic_prefix) as model,
    ):
        await model.wait_for(await store.append("Order-a", "Order", [placed("a")], 0), timeout_s=30)
        await pool.execute("ALTER TABLE order_totals ADD CONSTRAINT no_poison CHECK (customer_id <> 'poison')")
        events = await store.append("Order-p", "Order", [placed("poison"), paid(1)], 0)
        async with asyncio.timeout(20):
            for what in (events[0], events[1], events, events[1].global_position):
                with pytest.raises(EventSetAside, match="the projection has set it aside") as aside:
                    await model.wait_for(what, timeout_s=60)
                assert (aside.value.stream_id, aside.value.by) == ("Order-p", "projection")
        [other] = await store.append("Order-b", "Order", [placed("b")], 0)
        await model.wait_for(other, timeout_s=20)
        await model.wait_for(other.global_position, timeout_s=20)  # all up to it was taken, though some is set aside


async def test_what_the_relay_parked_is_said_at_once_and_awaited_when_it_comes_late(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}Order"
    await make_topic(kafka, topic, partitions=3, max_message_bytes=3_000)
    stream = in_partition(0, "big")
    note = Event(event_type="OrderPlaced", data={"customer_id": "big", "total_cents": 7, "note": secrets.token_hex(10_000)})
    consumer = make_consumer(store, pool, kafka, topic_prefix)
    [big] = await store.append(stream, "Order", [note], 0)
    await store.append("Quote-0", "Quote", [placed("q")], 0)
    async with reading(pool, topic_prefix) as model, running(consumer), asyncio.TaskGroup() as tasks:
        up_to = tasks.create_task(model.wait_for(2, timeout_s=30))  # begins with what is parked then, and goes on without it
        await wait_for(lambda: len(model._waiters))
        await _parked_and_late(store, pool, kafka, topic_prefix, model, consumer, big, up_to)


async def _parked_and_late(
    store: PostgresEventStore,
    pool: asyncpg.Pool,
    kafka: str,
    topic_prefix: str,
    model: ReadModel,
    consumer: Consumer,
    big: Event,
    up_to: asyncio.Task[None],
) -> None:
    topic, stream, beside = f"{topic_prefix}Order", big.stream_id, in_partition(0, "small")
    async with relaying(store, kafka, topic_prefix) as relay:
        async with asyncio.timeout(30):  # nothing comes behind it in its partition: its place alone would never tell
            with pytest.raises(EventSetAside, match="the relay has set it aside"):
                await model.wait_for(big, timeout_s=60)
        [small] = await store.append(beside, "Order", [placed("a")], 0)
        await model.wait_for(small, timeout_s=30)
        async with asyncio.timeout(20):
            with pytest.raises(EventSetAside, match="relay parked list"):
                await model.wait_for(big, timeout_s=60)
        await up_to
        for what in (3, small):  # all up to it was taken, though some is set aside
            await model.wait_for(what, timeout_s=20)
        [last] = await store.append(stream, "Order", [paid(1)], 1)  # waits behind it, and nothing comes behind that
        with pytest.raises(EventSetAside):
            await model.wait_for(last, timeout_s=60)
        await store.append("Quote-1", "Quote", [placed("q")], 0)
        await model.wait_for(5, timeout_s=20)
        await PostgresProjectionAdmin(pool).pause("order_totals", True)
        await wait_for(lambda: consumer.state, lambda state: state == "paused")
        await set_max_message_bytes(kafka, topic, 1_000_000)
        await pool.execute("UPDATE relay_parked SET retry = true")
        await wait_for(lambda: pool.fetchval("SELECT count(*) FROM relay_parked"), lambda left: left == 0)
        for event in (big, last):  # published, and not consumed yet: positions alone would not tell
            with pytest.raises(StaleReadModel) as late:
                await model.wait_for(event, timeout_s=0.5)
            assert not isinstance(late.value, EventSetAside)
        await PostgresProjectionAdmin(pool).pause("order_totals", False)
        await model.wait_for([big, last], timeout_s=30)
        assert await version_of(pool, stream) == 2
        for what in (1, 2, 3, 4, 5, big):
            await model.wait_for(what, timeout_s=20)
        assert relay.position == 5


async def test_a_thousand_wait_at_the_price_of_one(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    async with (
        relaying(store, kafka, topic_prefix),
        running(make_consumer(store, pool, kafka, topic_prefix)),
        reading(pool, topic_prefix) as model,
    ):
        await model.wait_for(await store.append("Order-first", "Order", [placed("a")], 0), timeout_s=30)
        admin = model._admin
        assert isinstance(admin, CountingAdmin)
        asked_before = admin.asked

        async def write(number: int) -> int:
            stream = f"Order-{number}"
            [event] = await store.append(stream, "Order", [placed(f"c{number % 7}", number)], 0)
            await model.wait_for(event, timeout_s=60)
            return await version_of(pool, stream)

        assert await asyncio.gather(*map(write, range(1000))) == [1] * 1000
        assert admin.asked - asked_before < 500
        quiet = admin.asked
        await asyncio.sleep(0.3)
        assert admin.asked <= quiet + 1  # nobody waits, nobody asks


async def test_after_a_reset_it_waits_again(store: PostgresEventStore, pool: asyncpg.Pool, topic_prefix: str) -> None:
    async with reading(pool, topic_prefix) as model:
        async with running(make_log_consumer(store, pool)):
            [event] = await store.append("Order-1", "Order", [placed("a")], 0)
            await model.wait_for(event, timeout_s=30)
        await PostgresProjectionAdmin(pool).reset(OrderTotals())
        with pytest.raises(StaleReadModel, match="come to 0"):
            await model.wait_for(event, timeout_s=0.2)


async def test_a_role_that_may_only_read_can_wait(store: PostgresEventStore, pool: asyncpg.Pool, database: str) -> None:
    """Before a projection has ever run, somebody has to make the tables; after that, reading is enough."""
    role = f"reader_{secrets.token_hex(4)}"
    async with pool.acquire() as connection:
        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        await grant_application(connection, role)
    address = urlsplit(database)
    dsn = urlunsplit(address._replace(netloc=f"{role}:x@{address.hostname}:{address.port}"))
    try:
        with pytest.raises(SettingsError, match="permission denied"):
            async with open_read_models(dsn, OrderTotals):
                pass
        async with running(make_log_consumer(store, pool)):
            [event] = await store.append("Order-1", "Order", [placed("a")], 0)
            async with open_read_models(database, OrderTotals, Orders) as models:
                for model in models:
                    await model.wait_for(event, timeout_s=30)
            await pool.execute(f"GRANT SELECT ON projection_offsets, projection_parked, projections TO {role}")
            async with open_read_models(dsn, OrderTotals) as [model]:
                for what in (event, 1):
                    await model.wait_for(what, timeout_s=30)
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_an_error_of_the_database_reaches_all_who_wait(
    store: PostgresEventStore, pool: asyncpg.Pool, database: str
) -> None:
    [event] = await store.append("Order-1", "Order", [placed("a")], 0)
    async with open_read_models(database, OrderTotals) as [model]:
        waiting = [asyncio.create_task(model.wait_for(event, timeout_s=60)) for _ in range(5)]
        await wait_for(lambda: len(model._waiters), lambda count: count == 5)
        await pool.execute("ALTER TABLE projection_offsets RENAME TO elsewhere")
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, SettingsError)
        await pool.execute("ALTER TABLE elsewhere RENAME TO projection_offsets")
        with pytest.raises(StaleReadModel):  # the next ones are looked for again
            await model.wait_for(event, timeout_s=0.2)
