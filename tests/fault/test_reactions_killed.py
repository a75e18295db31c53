"""Reactions, process managers, schedulers and webhooks die at any moment: each effect in the store is there once, in order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from eventspine import Event
from tests.event_types import placed
from tests.fault.conftest import Spine
from tests.fault.proxy import kafka_proxy, postgres_proxy
from tests.processes import Process
from tests.waiting import wait_for
from tests.webhook_receiver import Receiver, receiving

_KILLS = 10


class Shop:
    """Orders, of which each third is never paid, and what the process manager `Fulfilment` must have made of them."""

    def __init__(self, spine: Spine) -> None:
        self._spine = spine
        self.open = 0
        self.paid = 0

    async def order(self, orders: int) -> None:
        await self._spine.append(orders, at_once=4)
        self.paid += orders
        for _ in range(orders // 2):
            await self._spine.store.append(f"Order-open-{self.open}", "Order", [placed("c", self.open)], 0)
            self.open += 1

    async def fulfilled(self) -> tuple[int, int]:
        """How many paid orders are fulfilled, how many others are overdue."""
        row = await self._spine.pool.fetchrow(
            "SELECT count(*) FILTER (WHERE event_type = 'OrderPaid'), "
            "count(*) FILTER (WHERE event_type = 'OrderShipped' AND stream_id LIKE 'Fulfilment-open-%') "
            "FROM events WHERE stream_type = 'Fulfilment'"
        )
        assert row is not None
        return row[0], row[1]

    async def wait(self, *alive: Process, timeout_s: float = 90.0) -> None:
        async def look() -> tuple[int, int]:
            for process in alive:
                process.check_running()
            return await self.fulfilled()

        await wait_for(look, lambda seen: seen >= (self.paid, self.open), timeout_s=timeout_s, every_s=0.1)

    async def check(self) -> None:
        """Each order is reserved once and paid once in this order, or is overdue once; nothing is left, nothing is parked."""
        streams: dict[str, list[Event]] = {}
        for event in await self._spine.store.read_all(0, 1_000_000):
            streams.setdefault(event.stream_id, []).append(event)
        orders = [stream for stream in streams if stream.startswith("Order-")]
        assert len(orders) == self.paid + self.open
        for stream in orders:
            number = stream.removeprefix("Order-")
            causes = [str(event.event_id) for event in streams[stream]]
            process = streams[f"Fulfilment-{number}"]
            assert len(streams[f"Stock-{number}"]) == 1
            told = [event.event_type for event in process]
            if number.startswith("open-"):
                assert told == ["OrderPlaced", "OrderShipped"]
                assert [event.causation_id for event in process] == causes * 2
            else:
                assert told == ["OrderPlaced", "OrderPaid"]
                assert [event.causation_id for event in process] == causes
        assert await self._spine.pool.fetchval("SELECT count(*) FROM scheduled_events") == 0
        assert await self._spine.pool.fetchval("SELECT count(*) FROM projection_parked") == 0


def react(spine: Spine, name: str = "Fulfilment", *, instance: str = "", **settings: Any) -> Process:
    return spine.run.command(["react", f"tests.reactions:{name}"], group_instance_id=instance, **settings)


async def assigned(process: Process) -> None:
    await wait_for(lambda: "partitions assigned" in process.said, timeout_s=60)


def took(receiver: Receiver, deliveries: int) -> bool:
    return len(receiver.taken) > deliveries


@asynccontextmanager
async def ordering(shop: Shop) -> AsyncIterator[None]:
    """Order without pause while the block runs."""
    done = asyncio.Event()

    async def order() -> None:
        while not done.is_set():
            await shop.order(4)
            await asyncio.sleep(0.4)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(order())
        try:
            yield
        finally:
            done.set()


async def test_a_process_manager_is_killed_again_and_again(spine: Spine) -> None:
    """Two processes are killed in turn, at random moments of their work; their schedulers die with them."""
    shop, chance = Shop(spine), random.Random(7)
    relay = spine.run.relay()
    members = [react(spine, instance="a"), react(spine, instance="b")]
    async with ordering(shop):
        for number in range(_KILLS):
            victim = members[number % 2]
            await assigned(victim)
            await asyncio.sleep(chance.uniform(0.0, 0.7))
            victim.kill()
            await victim.ended()
            members[number % 2] = react(spine, instance="ab"[number % 2])
    await shop.wait(relay, *members)
    for process in (relay, *members):
        await process.stop()
    await shop.check()


async def test_reactions_are_rebalanced_under_load(spine: Spine) -> None:
    """A second member joins while events flow, the first is killed, a third joins; the second is stopped."""
    shop = Shop(spine)
    relay, first = spine.run.relay(), react(spine)
    async with ordering(shop):
        await wait_for(shop.fulfilled, lambda seen: seen[0] > 20, timeout_s=60)
        second = react(spine)
        await assigned(second)
        first.kill()
        third = react(spine)
        await assigned(third)
        await second.stop()
    await shop.wait(relay, third)
    for process in (relay, third):
        await process.stop()
    await shop.check()


async def test_a_frozen_reaction_wakes_up_as_a_zombie(spine: Spine) -> None:
    """It sleeps in the middle of its work past its session; what it does then is what its successor did already."""
    shop = Shop(spine)
    relay, zombie = spine.run.relay(), react(spine)
    async with ordering(shop):
        await wait_for(shop.fulfilled, lambda seen: seen[0] > 20, timeout_s=60)
        zombie.freeze()
        heir = react(spine)
        await assigned(heir)
        before = (await shop.fulfilled())[0]
        await wait_for(shop.fulfilled, lambda seen: seen[0] > before + 20, timeout_s=60)
        zombie.thaw()
        await asyncio.sleep(1)
    await shop.wait(relay, heir, zombie)
    for process in (relay, heir, zombie):
        await process.stop()
    await shop.check()


async def test_lines_break_under_a_reaction(spine: Spine) -> None:
    """Connections to Kafka and Postgres break at any byte, again and again."""
    shop = Shop(spine)
    async with kafka_proxy(spine.bootstrap) as kafka, postgres_proxy(spine.run.database) as (postgres, dsn):
        relay = spine.run.relay()
        process = react(spine, postgres_dsn=dsn, kafka_bootstrap=kafka.bootstrap)
        async with ordering(shop):
            await wait_for(shop.fulfilled, lambda seen: seen[0] > 5, timeout_s=60)
            for proxy in (kafka, postgres) * 4:
                before = await shop.fulfilled()
                proxy.cut()
                await wait_for(shop.fulfilled, lambda seen, before=before: seen > before, timeout_s=60)  # type: ignore[misc]
            kafka.refuses = postgres.refuses = True
            for proxy in (kafka, postgres):
                proxy.cut()
            await asyncio.sleep(1.5)
            kafka.refuses = postgres.refuses = False
        await shop.wait(relay, process)
        await relay.stop()
        await process.stop()
    await shop.check()


async def test_a_webhook_is_killed_again_and_again(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver fails one time in five. It sees every event, each stream in order, duplicates under the same key."""
    chance = random.Random(3)
    async with receiving() as receiver:
        receiver.answer = lambda _: (503 if chance.random() < 0.2 else 204, {})
        monkeypatch.setenv("WEBHOOK_URL", receiver.url)
        relay = spine.run.relay()
        process = react(spine, "hooks", instance="a")
        for _ in range(4):
            taken = len(receiver.taken)
            await spine.append(60)
            await wait_for(partial(took, receiver, taken + 5), timeout_s=60)
            await asyncio.sleep(chance.uniform(0.0, 0.2))
            process.kill()
            await process.ended()
            process = react(spine, "hooks", instance="a")
        expected = {str(event.event_id) for event in spine.acked}
        await wait_for(lambda: expected - {each.event["id"] for each in receiver.taken}, lambda left: not left, timeout_s=90)
        await process.stop()
        await relay.stop()
    receiver.check_order()
    assert len(receiver.taken) >= len(expected)
