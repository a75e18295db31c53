"""The orders example on real servers: the command handler and its races, the program, and the read model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files

import asyncpg
import pytest

from eventspine import (
    ConcurrencyError,
    Consumer,
    Event,
    EventStore,
    ExpectedVersion,
    PostgresEventStore,
    PostgresSink,
    Relay,
    load_event_types,
)
from eventspine.connect import open_pool
from eventspine.examples.orders import OrderSummary
from eventspine.examples.orders.commands import Command, PayOrder, PlaceOrder, Refused, ShipOrder, handle
from tests.waiting import wait_for

PLACE, PAY, SHIP = PlaceOrder("1", "c", 500), PayOrder("1", 500), ShipOrder("1", "post")


@pytest.fixture
async def orders(pool: asyncpg.Pool) -> PostgresEventStore:
    """A store with the example's event types."""
    store = PostgresEventStore(pool)
    await store.register(load_event_types(files("eventspine.examples.orders") / "schemas"))
    return store


class Contended:
    """The real store, with a rival that is faster: it appends a payment between our read and our append, `times` times."""

    def __init__(self, store: PostgresEventStore, times: int) -> None:
        self._store = store
        self.times_left = times

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def append(
        self, stream_id: str, stream_type: str, events: Sequence[Event], expected_version: ExpectedVersion
    ) -> list[Event]:
        if self.times_left:
            self.times_left -= 1
            rival = Event(event_type="OrderPaid", data={"order_id": "1", "amount_cents": 500})
            length = len(await self._store.read_stream(stream_id))
            await self._store.append(stream_id, stream_type, [rival], expected_version=length)
        return await self._store.append(stream_id, stream_type, events, expected_version)


async def types_of(store: EventStore, stream_id: str = "Order-1") -> list[str]:
    return [event.event_type for event in await store.read_stream(stream_id)]


async def test_an_order_is_placed_paid_and_shipped(orders: PostgresEventStore) -> None:
    commands: list[Command] = [PLACE, PAY, SHIP]
    for version, command in enumerate(commands, 1):
        (event,) = await handle(orders, command)
        assert event.version == version
    assert await types_of(orders) == ["OrderPlaced", "OrderPaid", "OrderShipped"]


async def test_a_refused_command_writes_nothing(orders: PostgresEventStore) -> None:
    await handle(orders, PLACE)
    with pytest.raises(Refused):
        await handle(orders, SHIP)
    assert await types_of(orders) == ["OrderPlaced"]


async def test_of_handlers_that_race_one_wins(orders: PostgresEventStore, database: str) -> None:
    """Half of them run on a store of their own, as another process would."""
    await handle(orders, PLACE)
    async with open_pool(database) as pool:
        stores = [orders, PostgresEventStore(pool)]
        outcomes = await asyncio.gather(*(handle(stores[n % 2], PAY) for n in range(20)), return_exceptions=True)
    assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Refused) for outcome in outcomes) == 19
    assert await types_of(orders) == ["OrderPlaced", "OrderPaid"]


async def test_a_conflict_is_decided_again(orders: PostgresEventStore) -> None:
    await handle(orders, PLACE)
    await handle(orders, PAY)
    contended = Contended(orders, times=4)
    (shipped,) = await handle(contended, SHIP)  # type: ignore[arg-type]
    assert (shipped.event_type, shipped.version) == ("OrderShipped", 7)


async def test_conflicts_without_end_are_given_up(orders: PostgresEventStore) -> None:
    await handle(orders, PLACE)
    await handle(orders, PAY)
    contended = Contended(orders, times=100)
    with pytest.raises(ConcurrencyError):
        await handle(contended, SHIP)  # type: ignore[arg-type]
    assert contended.times_left == 95
    assert "OrderShipped" not in await types_of(orders)


async def test_the_program(empty_database: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "eventspine.examples.orders"],
        env=os.environ | {"EVENTSPINE_POSTGRES_DSN": empty_database},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.count("refused") == 2, said  # shipped before it was paid; paid twice
    assert said.splitlines()[-1].split()[2] == "OrderShipped", said


async def test_the_read_model(orders: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str) -> None:
    relay = Relay(orders.log, kafka, topic_prefix=topic_prefix)
    consumer = Consumer(
        OrderSummary(), PostgresSink(pool), kafka, load_event_types=orders.log.pinned_types, topic_prefix=topic_prefix
    )
    commands: list[Command] = [PLACE, PAY, PlaceOrder("2", "d", 700), SHIP]
    for command in commands:
        await handle(orders, command)

    async def rows() -> list[tuple[object, ...]]:
        if not await pool.fetchval("SELECT to_regclass('order_summaries') IS NOT NULL"):
            return []
        return [tuple(row) for row in await pool.fetch("SELECT * FROM order_summaries ORDER BY id")]

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(relay.run())
        tasks.create_task(consumer.run())
        expected = [("1", "c", 500, "shipped", "post"), ("2", "d", 700, "placed", None)]
        try:
            await wait_for(rows, lambda seen: seen == expected, timeout_s=60)
        finally:
            relay.stop()
            consumer.stop()
