"""A log in DynamoDB on Kafka and in read models: by the same relay, the same projections, the same oracle."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from eventspine import Consumer, Event, EventType, InvalidEvent, PostgresSink, Relay, SchemaError, SettingsError
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from eventspine.relay.dynamodb import DynamoDBRelayState
from eventspine.relay.router import Router
from eventspine.relay.routing import Routing
from eventspine.relay.state import Parked
from eventspine.relay.topics import TopicSettings
from eventspine.store.copying import copy_log
from eventspine.store.dynamodb import DynamoDBEventStore, open_table
from eventspine.store.dynamodb.copying import DynamoDBCopy
from eventspine.store.dynamodb.create import create_table
from eventspine.store.postgres.copying import PostgresCopy
from eventspine.store.postgres.migrate import migrate
from tests.dynamodb import DynamoDBService
from tests.event_types import EVENT_TYPES, paid, placed, record
from tests.oracle import check_log, check_read_model, check_topics
from tests.processes import processes
from tests.projections import OrderTotals
from tests.waiting import wait_for


@pytest.fixture
async def dynamodb_dsn(dynamodb: DynamoDBService) -> str:
    """A table of this test's."""
    dsn = dynamodb.dsn(f"test-{uuid4().hex[:12]}")
    async with open_table(dsn) as table:
        assert await create_table(table) is True
        assert await create_table(table) is False
    return dsn


@pytest.fixture
async def store(dynamodb_dsn: str) -> AsyncIterator[DynamoDBEventStore]:
    async with open_table(dynamodb_dsn) as table:
        store = DynamoDBEventStore(table, poll_s=0.02)
        await store.register(EVENT_TYPES)
        yield store


@pytest.fixture
async def copied(empty_database: str) -> AsyncIterator[asyncpg.Pool]:
    """A migrated database, into which the log is copied for the oracle."""
    async with asyncpg.create_pool(empty_database, min_size=1, max_size=4) as pool:
        async with pool.acquire() as connection:
            await migrate(connection)
        yield pool


async def append(store: DynamoDBEventStore, name: str, streams: int) -> None:
    """Two events each to that many new streams."""

    async def one(number: int) -> None:
        events = [placed(f"c{number % 5}", number), paid(number)]
        await store.append(f"Order-{name}{number}", "Order", events, 0)

    await asyncio.gather(*(one(number) for number in range(streams)))


async def test_killed_relays_publish_it_once_and_projections_are_its_fold(
    store: DynamoDBEventStore, dynamodb_dsn: str, copied: asyncpg.Pool, pool: asyncpg.Pool, database: str, kafka: str,
    topic_prefix: str, tmp_path: Path,
) -> None:  # fmt: skip
    dice = random.Random(9)
    await append(store, "first", 5)
    more: dict[str, Any] = {"dynamodb_dsn": dynamodb_dsn, "read_model_dsn": database}
    async with processes("", kafka, topic_prefix, tmp_path) as run:
        consumer = run.command(["dynamodb", "consume", "tests.projections:OrderTotals"], **more)
        relays = [run.command(["dynamodb", "relay", "run"], **more) for _ in range(2)]
        for round_ in range(4):
            await asyncio.gather(append(store, f"r{round_}-", 40), asyncio.sleep(dice.uniform(0.5, 2.0)))
            victim = relays.pop(dice.randrange(2))
            victim.kill()
            relays.append(run.command(["dynamodb", "relay", "run"], **more))
        end = await store.last_position()
        taken = "SELECT coalesce(sum(events), 0) FROM projection_offsets"
        await wait_for(lambda: pool.fetchval(taken), lambda events: events == end, timeout_s=60)
        status = run.command(["dynamodb", "relay", "status", "--json"], **more)
        assert await status.ended() == 0, status.said
        facts = json.loads(status.said.splitlines()[-1])
        assert facts["shards"][0]["lag_s"] == 0
        assert (facts["shards"][0]["lag_events"], facts["parked"]) == (0, 0)
        for process in (consumer, *relays):
            await process.stop()
    await copy_log(DynamoDBCopy(store.table), PostgresCopy(copied))
    assert await check_log(copied) == end
    assert await check_topics(copied, kafka, topic_prefix) == end
    await check_read_model(pool, log=copied)


async def test_from_the_log_and_on_from_kafka(
    store: DynamoDBEventStore, dynamodb_dsn: str, copied: asyncpg.Pool, pool: asyncpg.Pool, database: str, kafka: str,
    topic_prefix: str, tmp_path: Path,
) -> None:  # fmt: skip
    await append(store, "a", 30)
    more: dict[str, Any] = {"dynamodb_dsn": dynamodb_dsn, "read_model_dsn": database}
    seen = "SELECT coalesce(max(last_position), 0) FROM projection_offsets"
    await PostgresProjectionAdmin(pool).prepare()
    async with processes("", kafka, topic_prefix, tmp_path) as run:
        reader = run.command(["dynamodb", "consume", "tests.projections:OrderTotals", "--source", "log"], **more)
        await wait_for(lambda: pool.fetchval(seen), lambda position: position == 60, timeout_s=30)
        await reader.stop()
        relay = run.command(["dynamodb", "relay", "run"], **more)
        consumer = run.command(["dynamodb", "consume", "tests.projections:OrderTotals"], **more)
        await append(store, "b", 30)
        await wait_for(lambda: pool.fetchval(seen), lambda position: position == 120, timeout_s=30)
        await relay.stop()
        await consumer.stop()
    await copy_log(DynamoDBCopy(store.table), PostgresCopy(copied))
    await check_read_model(pool, log=copied)


async def test_what_can_not_be_published_is_parked_and_published_late(
    store: DynamoDBEventStore, copied: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    broken = {"Order-a1"}

    def topic(event: object) -> str:
        if getattr(event, "stream_id", "") in broken:
            raise ValueError("no topic")
        return "Order"

    def relay() -> Relay:
        router = Router(store.log, prefix=topic_prefix, source="/test", routing=Routing(topic=topic), event_types=EVENT_TYPES)
        return Relay(
            store.log, kafka, topic_prefix=topic_prefix, router=router, state=state, topics=TopicSettings(partitions=2), lease_s=1
        )

    state = DynamoDBRelayState(store.table, f"{topic_prefix}relay", lease_s=1)
    await append(store, "a", 3)
    first = relay()
    running = asyncio.create_task(first.run())
    await wait_for(lambda: first.position, lambda position: position == 6)
    first.stop()
    await running
    [one, two] = await state.parked()
    assert (one["stream_id"], one["tries"], two["tries"], one["retry"]) == ("Order-a1", 1, 0, False)
    assert "no topic" in one["reason"]
    assert await state.parked_streams() == {"Order-a1": one["global_position"]}
    broken.clear()
    assert await state.retry("Order-a1") == ["Order-a1"]
    second = relay()
    running = asyncio.create_task(second.run())
    await wait_for(state.parked, lambda rows: not rows)
    second.stop()
    await running
    assert await state.published_late(0) == {one["global_position"], two["global_position"]}
    await copy_log(DynamoDBCopy(store.table), PostgresCopy(copied))
    assert await check_topics(copied, kafka, topic_prefix) == 6


async def test_the_state_of_two_relays_is_shared(store: DynamoDBEventStore) -> None:
    one, other = (DynamoDBRelayState(store.table, "events.relay", lease_s=1) for _ in range(2))
    await one.register(4)
    await other.register(0)
    assert (await one.beat("a", [])).held == [0, 1, 2, 3]
    await asyncio.gather(*(each.beat(name, []) for each in (one, other) for name in ("a", "b", "c", "d") for _ in range(3)))
    assert (await one.look("b")).held == []
    await one.release("a", [2, 3])
    assert (await other.beat("b", [])).held in ([2], [2, 3])
    assert await one.discard("Order-1") is None
    await one.pause("paused")
    assert (await other.look("b")).paused == "paused"


async def test_relay_and_consumer_inside_a_program(
    store: DynamoDBEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    state = DynamoDBRelayState(store.table, f"{topic_prefix}relay")
    router = Router(store.log, prefix=topic_prefix, source="/test")
    relay = Relay(store.log, kafka, topic_prefix=topic_prefix, router=router, state=state, topics=TopicSettings(partitions=2))
    consumer = Consumer(
        OrderTotals(), PostgresSink(pool), kafka, load_event_types=store.log.pinned_types, topic_prefix=topic_prefix
    )
    running = [asyncio.create_task(relay.run()), asyncio.create_task(consumer.run())]
    try:
        await append(store, "a", 5)
        await wait_for(lambda: sum(place.events for place in consumer.places.values()), lambda count: count == 10, timeout_s=40)
    finally:
        relay.stop()
        consumer.stop()
        await asyncio.gather(*running)


async def test_the_commands_look_after_a_relay(
    store: DynamoDBEventStore, dynamodb_dsn: str, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    async with processes("", kafka, topic_prefix, tmp_path) as run:

        async def command(*arguments: str, code: int = 0) -> str:
            process = run.command(["dynamodb", *arguments], dynamodb_dsn=dynamodb_dsn)
            assert await process.ended(60) == code, process.said
            return process.said

        state = DynamoDBRelayState(store.table, f"{topic_prefix}relay")
        assert "has never run" in await command("relay", "status", code=2)
        await state.register(2)
        await append(store, "a", 2)
        await state.park(1, [Parked(1, "Order-a0", "no", 1), Parked(2, "Order-a0", "behind it", 0)])
        await command("relay", "pause")
        shown = await command("relay", "status")
        assert "2 shards (generation 0), 0 processes, 2 events parked, paused (paused)" in shown
        assert json.loads((await command("relay", "status", "--json")).splitlines()[-1])["shards"][0]["lag_events"] == 4
        await command("relay", "resume")
        assert "Order-a0" in await command("relay", "parked", "list")
        assert "1 streams will be tried again" in await command("relay", "parked", "retry")
        listed = json.loads((await command("relay", "parked", "list", "--json")).splitlines()[-1])
        assert [(row["global_position"], row["tries"], row["retry"]) for row in listed] == [(1, 1, True), (2, 0, True)]
        assert "position 1 will not be published" in await command("relay", "parked", "discard", "Order-a0")
        assert "nothing is parked there" in await command("relay", "parked", "discard", "Order-b", code=1)
        assert (await state.look("")).discards == 1
        described = json.loads(await command("template", "cloudformation", "--table", "shop"))
        assert described["Resources"]["Events"]["Properties"]["TableName"] == "shop"
        assert 'hash_key     = "PK"' in await command("template", "terraform")


async def test_what_a_log_there_does_not_offer_is_refused(store: DynamoDBEventStore) -> None:
    moved = record("Moved", ("customer_id", "string"), ("to", "string"), subject="customer_id")
    moved["fields"][1]["personal"] = True
    with pytest.raises(SchemaError, match="Moved have personal fields"):
        await store.register([EventType.from_schema(moved)])
    with pytest.raises(SettingsError, match="offered by logs in Postgres only"):
        await store.log.pin_envelopes({1})
    large = Event(event_type="OrderPlaced", data={"customer_id": "x" * 350_000, "total_cents": 1})
    with pytest.raises(InvalidEvent, match="350,000 is the limit"):
        await store.append("Order-1", "Order", [large], 0)
    with pytest.raises(InvalidEvent, match="holds 48 events of one stream"):
        await store.append("Order-1", "Order", [paid(n) for n in range(49)], 0)
    assert await store.last_position() == 0


async def test_reads_return_no_more_bytes_than_asked_for(store: DynamoDBEventStore) -> None:
    for n in range(6):
        event = Event(event_type="OrderPlaced", data={"customer_id": "x" * 300_000, "total_cents": n})
        await store.append(f"Order-{n}", "Order", [event], 0)
    assert [event.global_position for event in await store.log.read_stored(0, 1000, 700_000)] == [1, 2]
    assert [event.global_position for event in await store.log.read_stored(4, 1000, 1)] == [5]
    _, following = await store.log.read_following(2, 1000, 700_000)
    assert following[0].global_position == 3
