"""kill -9 of consumers in mid-transaction, and rebalances under load: rows and offsets stay one thing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from eventspine import ANY, Event, SettingsError
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from eventspine.schemas.partition import partition_of
from tests.event_types import paid
from tests.fault.conftest import Spine
from tests.fault.proxy import JOIN_GROUP, kafka_proxy
from tests.fault.topics import make_topic
from tests.oracle import check_projection
from tests.processes import Process
from tests.projections import BROKEN_CUSTOMER
from tests.waiting import wait_for

_BLOCKED = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%{}%'"""


async def test_consumer_killed_in_mid_transaction(spine: Spine) -> None:
    """It dies when its offsets have moved and its rows have not; both must fall back."""
    await spine.append(50)
    relay, victim = spine.run.relay(), spine.run.consumer()
    await spine.caught_up(relay, victim)
    async with spine.pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("SELECT FROM order_totals FOR UPDATE")
        await spine.append(50)
        await wait_for(lambda: spine.pool.fetchval(_BLOCKED.format("UPDATE projection_offsets")), timeout_s=30)
        victim.kill()
        await victim.ended()
    heir = spine.run.consumer()
    await spine.caught_up(relay, heir)
    await relay.stop()
    await heir.stop()
    await spine.check()


@pytest.mark.parametrize(("orders", "waiting_at"), [(20, 'WITH "eventspine moved"'), (300, "-- Move offsets forward")])
async def test_frozen_consumer_is_fenced(spine: Spine, orders: int, waiting_at: str) -> None:
    """A consumer that sleeps in mid-transaction past its session wakes up as a zombie: its epoch is older. A small batch is one
    statement, of a larger one the others are still to come."""
    await spine.append(50)
    relay, zombie = spine.run.relay(), spine.run.consumer()
    await spine.caught_up(relay, zombie)
    async with spine.pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("LOCK TABLE projection_offsets IN EXCLUSIVE MODE")
        zombie.freeze()  # so that it takes all at once
        await spine.append(orders)
        await spine.relayed(relay)
        zombie.thaw()
        await wait_for(lambda: spine.pool.fetchval(_BLOCKED.format(waiting_at)), timeout_s=30)
        zombie.freeze()
        heir = spine.run.consumer()
        await wait_for(
            lambda: "partitions assigned" in heir.said or spine.pool.fetchval(_BLOCKED.format("INSERT INTO projection_offsets")),
            timeout_s=30,
        )
    # The zombie's statement is carried out when the lock goes, while it sleeps. If others are to come, its transaction is open,
    # and the heir's claim waits for it.
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


@pytest.mark.parametrize("how", ["fenced", "relieved"])
async def test_partitions_lost_in_mid_transaction(spine: Spine, tmp_path: Path, how: str) -> None:
    """Kafka refuses it while it writes, or gives half of its partitions to another: what it writes still keeps events behind the
    parked ones of their streams."""
    broken = tmp_path / "broken"
    broken.touch()

    def consumer(bootstrap: str) -> Process:
        consume, static = ["consume", "tests.projections:Chains"], "one" if how == "fenced" else ""
        return spine.run.command(consume, bootstrap=bootstrap, group_instance_id=static, test_broken=broken)

    of_partition = {partition_of(f"Order-{number}".encode(), 2): f"Order-{number}" for number in range(20)}
    streams = list(of_partition.values())
    await make_topic(spine.bootstrap, f"{spine.topic_prefix}Order", partitions=2)
    fault = {"customer_id": BROKEN_CUSTOMER, "total_cents": 1}
    for stream in streams:
        await spine.store.append(stream, "Order", [Event(event_type="OrderPlaced", data=fault)], expected_version=0)
    relay = spine.run.relay()
    async with kafka_proxy(spine.bootstrap) as heirs_kafka:
        loser = consumer(spine.bootstrap)
        await wait_for(lambda: loser.said.count("event is parked") == len(streams) == 2, timeout_s=30)
        await relay.stop()
        for number in range(20, 30):  # in both partitions also one whose row is read before
            await spine.store.append(f"Order-{number}", "Order", [paid()], expected_version=ANY)
        for stream in streams:
            await spine.store.append(stream, "Order", [paid()], expected_version=ANY)
        async with spine.pool.acquire() as blocker, blocker.transaction():
            await blocker.execute("LOCK TABLE chains IN ACCESS EXCLUSIVE MODE")
            loser.freeze()  # so that it takes all at once
            relay = spine.run.relay()
            await spine.relayed(relay)
            loser.thaw()
            await wait_for(lambda: spine.pool.fetchval(_waiting_at("FOR NO KEY UPDATE")), timeout_s=30)
            heir = consumer(heirs_kafka.bootstrap)
            if how == "fenced":
                await wait_for(lambda: "fenced by other consumer" in loser.said, timeout_s=30)  # the Kafka client says so at once
            else:
                await wait_for(lambda: heirs_kafka.requests[JOIN_GROUP], timeout_s=30)
            await asyncio.sleep(4)  # it looks every 2 s while it writes
        await wait_for(lambda: spine.pool.fetchval("SELECT count(*) FROM applied"), timeout_s=30)
        if how == "fenced":
            loser.kill()
        broken.unlink()
        admin = PostgresProjectionAdmin(spine.pool)

        async def parked() -> int:
            with suppress(SettingsError):
                await admin.ask("chains", "retry")
            return len(await admin.parked("chains"))

        await wait_for(parked, lambda count: not count, timeout_s=30, every_s=0.5)
        await spine.caught_up(relay, heir)
        await heir.stop()
        if how == "relieved":
            await loser.stop()
    await relay.stop()
    await check_projection(spine.pool, "chains", log=spine.pool)


def _waiting_at(statement: str) -> str:
    return f"""
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%{statement}%'"""
