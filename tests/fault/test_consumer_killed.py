"""kill -9 of consumers in mid-transaction, and rebalances under load: rows and offsets stay one thing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from eventspine import ANY, Event
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from tests.event_types import paid
from tests.fault.conftest import Spine
from tests.oracle import check_projection
from tests.processes import Process
from tests.projections import BROKEN_CUSTOMER
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


async def test_member_fenced_by_its_successor_in_mid_transaction(spine: Spine, tmp_path: Path) -> None:
    """Kafka refuses it while it writes: what it writes still keeps events behind the parked ones of their stream."""
    broken = tmp_path / "broken"
    broken.touch()

    def consumer() -> Process:
        consume = ["consume", "tests.projections:Chains"]
        return spine.run.command(consume, group_instance_id="one", test_broken=broken)

    fault = Event(event_type="OrderPlaced", data={"customer_id": BROKEN_CUSTOMER, "total_cents": 1})
    await spine.store.append("Order-x", "Order", [fault], expected_version=0)
    relay = spine.run.relay()
    fenced = consumer()
    await wait_for(lambda: "event is parked" in fenced.said, timeout_s=30)
    async with spine.pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("LOCK TABLE chains IN ACCESS EXCLUSIVE MODE")
        for _ in range(2):  # in any case with one that has to be read first, of another stream in the same partition
            await spine.store.append("Order-x", "Order", [paid()], expected_version=ANY)
            for number in range(20):
                await spine.store.append(f"Order-{number}", "Order", [paid()], expected_version=ANY)
        await wait_for(lambda: spine.pool.fetchval(_waiting_at("FOR NO KEY UPDATE")), timeout_s=30)
        heir = consumer()
        await wait_for(lambda: spine.pool.fetchval(_waiting_at("INSERT INTO projection_offsets")), timeout_s=30)
        await wait_for(lambda: "fenced by other consumer" in fenced.said, timeout_s=30)  # the Kafka client says so at once
        await asyncio.sleep(3)  # and is asked within 2 s
    await wait_for(lambda: spine.pool.fetchval("SELECT count(*) FROM applied"), timeout_s=30)  # one of the two has written
    fenced.kill()
    broken.unlink()
    admin = PostgresProjectionAdmin(spine.pool)
    await admin.ask("chains", "retry")
    await wait_for(lambda: admin.parked("chains"), lambda parked: not parked, timeout_s=30)
    await spine.caught_up(relay, heir)
    await heir.stop()
    await relay.stop()
    await check_projection(spine.pool, "chains", log=spine.pool)


def _waiting_at(statement: str) -> str:
    return f"""
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%{statement}%'"""
