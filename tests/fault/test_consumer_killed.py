"""kill -9 of consumers in mid-transaction, and rebalances under load: rows and offsets stay one thing."""

from __future__ import annotations

import asyncio

from tests.fault.conftest import Spine
from tests.waiting import wait_for

_BLOCKED = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO "order_totals"%'"""


async def test_consumer_killed_in_mid_transaction(spine: Spine) -> None:
    """It dies when its offsets have moved and its rows have not; both must fall back."""
    await spine.append(50)
    relay, victim = spine.run.relay(), spine.run.consumer()
    await spine.caught_up(relay, victim)
    async with spine.pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("LOCK TABLE order_totals IN EXCLUSIVE MODE")
        await spine.append(50)
        await wait_for(lambda: spine.pool.fetchval(_BLOCKED), timeout_s=30)
        victim.kill()
        await victim.ended()
    heir = spine.run.consumer()
    await spine.caught_up(relay, heir)
    await relay.stop()
    await heir.stop()
    await spine.check()


async def test_frozen_consumer_is_fenced(spine: Spine) -> None:
    """A consumer that sleeps in mid-transaction past its session wakes up as a zombie: its epoch is older."""
    await spine.append(50)
    relay, zombie = spine.run.relay(), spine.run.consumer()
    await spine.caught_up(relay, zombie)
    async with spine.pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("LOCK TABLE projection_offsets IN EXCLUSIVE MODE")
        await spine.append(50)
        waiting = _BLOCKED.replace('INSERT INTO "order_totals"', "UPDATE projection_offsets")
        await wait_for(lambda: spine.pool.fetchval(waiting), timeout_s=30)
        zombie.freeze()
        heir = spine.run.consumer()
        await wait_for(
            lambda: (
                "partitions assigned" in heir.said
                or spine.pool.fetchval(_BLOCKED.replace('INSERT INTO "order_totals"', "INSERT INTO projection_offsets"))
            ),
            timeout_s=30,
        )
    # The zombie's statement ran when the lock went, but its transaction is open while it sleeps: the heir's claim waits for it.
    zombie.thaw()
    await spine.append(50)
    await spine.caught_up(relay, heir, zombie)
    for process in (relay, heir, zombie):
        await process.stop()
    await spine.check()


async def test_rebalance_under_load(spine: Spine) -> None:
    """A second consumer joins while events flow, the first is killed, a third joins: every event is applied once."""
    relay, first = spine.run.relay(), spine.run.consumer()
    load = asyncio.create_task(spine.append(1500, at_once=4))
    await wait_for(spine.applied, lambda applied: applied > 200, timeout_s=30)
    second = spine.run.consumer()
    await wait_for(lambda: "partitions assigned" in second.said, timeout_s=30)
    first.kill()
    third = spine.run.consumer()
    await wait_for(lambda: "partitions assigned" in third.said, timeout_s=30)
    await load
    await spine.caught_up(relay, second, third)
    for process in (relay, second, third):
        await process.stop()
    await spine.check()
