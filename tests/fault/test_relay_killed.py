"""kill -9 of the relay at each step of its batch. What the broker had by then decides what was published; nothing twice."""

from __future__ import annotations

import asyncio

import pytest

from tests import oracle
from tests.fault.conftest import Spine
from tests.fault.proxy import ADD_PARTITIONS_TO_TXN, END_TXN, FETCH, INIT_PRODUCER_ID, PRODUCE, Moment, Trap, kafka_proxy
from tests.waiting import wait_for

STEPS = {
    "before it fences its predecessor": (INIT_PRODUCER_ID, "before", 0),
    "when it has fenced its predecessor": (INIT_PRODUCER_ID, "answered", 0),
    "while it reads its cursor": (FETCH, "before", 0),
    "before the first records of a batch arrive": (PRODUCE, "before", 2),
    "when records are written, unacknowledged": (PRODUCE, "unanswered", 2),
    "when records are acknowledged": (PRODUCE, "answered", 2),
    "before the commit arrives": (END_TXN, "before", 1),
    "when the commit is done, unacknowledged": (END_TXN, "unanswered", 1),
    "when the commit is acknowledged": (END_TXN, "answered", 1),
}


@pytest.mark.parametrize("step", STEPS)
async def test_relay_killed(spine: Spine, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every other step with the envelope in the value: both forms go the same way.
    monkeypatch.setenv("EVENTSPINE_VALUE_FORMAT", "envelope" if list(STEPS).index(step) % 2 else "data")
    api_key, moment, skip = STEPS[step]
    await spine.append(60)  # 120 events: three batches
    async with kafka_proxy(spine.bootstrap) as proxy:
        victim = spine.run.relay(bootstrap=proxy.bootstrap, relay_lease_s=1)
        proxy.trap = trap = Trap(api_key, _moment(moment), victim.kill, skip)
        await wait_for(
            lambda: trap if trap.sprung else (trap, proxy.requests, victim.said[-2000:]),
            lambda seen: seen is trap,
            timeout_s=30,
        )
        assert await victim.ended() == -9
    await spine.append(60)
    relay = spine.run.relay(relay_lease_s=1)
    await spine.relayed(relay)
    await relay.stop()
    await spine.check_published()


@pytest.mark.parametrize("moment", ["unanswered", "answered"])
async def test_relay_killed_without_transactions(spine: Spine, moment: str) -> None:
    """Records whose cursor was lost are found by the next life, and are not published again."""
    topic = f"{spine.topic_prefix}Order"
    await spine.append(60)
    async with kafka_proxy(spine.bootstrap) as proxy:
        victim = spine.run.relay(bootstrap=proxy.bootstrap, relay_lease_s=1, relay_delivery="at-least-once")
        proxy.trap = Trap(PRODUCE, _moment(moment), victim.kill, skip=1, about=topic.encode())
        assert await victim.ended() == -9
    await spine.append(60)
    relay, consumer = spine.run.relay(relay_lease_s=1, relay_delivery="at-least-once"), spine.run.consumer()
    await spine.caught_up(relay, consumer)
    await relay.stop()
    await consumer.stop()
    await spine.check(at_least_once=True)
    records = await asyncio.to_thread(oracle.read_committed, spine.bootstrap, topic)
    assert len(records) == 240


async def test_relay_loses_its_connections_and_goes_on(spine: Spine) -> None:
    """The outcome of a commit is unknown to a relay that lives on: it must find out, and not repeat it."""
    await spine.append(60)
    async with kafka_proxy(spine.bootstrap) as proxy:
        relay = spine.run.relay(bootstrap=proxy.bootstrap)
        for moment in ("before", "unanswered"):
            proxy.trap = Trap(END_TXN, _moment(moment), proxy.cut)
            await spine.append(60)
            await wait_for(lambda: proxy.trap and proxy.trap.sprung, timeout_s=60)
        proxy.trap = None
        consumer = spine.run.consumer()
        await spine.caught_up(relay, consumer, timeout_s=90)
        await relay.stop()
        await consumer.stop()
    await spine.check()


async def test_second_relay_stands_by_and_takes_over(spine: Spine) -> None:
    await spine.append(60)
    first = spine.run.relay(relay_lease_s=1)
    await wait_for(lambda: "relay publishes" in first.said)
    second = spine.run.relay(relay_lease_s=1)
    await wait_for(lambda: "stands by" in second.said)
    first.kill()
    await spine.append(60)
    consumer = spine.run.consumer()
    await spine.caught_up(second, consumer)
    await second.stop()
    await consumer.stop()
    await spine.check()


FROZEN = {
    "before the commit arrives": (END_TXN, 1),
    "while it reads its cursor": (FETCH, 0),
    "between its cursor and its first records": (ADD_PARTITIONS_TO_TXN, 0),
}


@pytest.mark.parametrize("step", FROZEN)
async def test_frozen_relay_is_fenced(spine: Spine, step: str) -> None:
    """A relay that slept through its own succession wakes up as a zombie, with a request on its way: Kafka's producer epoch
    refuses
    it."""
    api_key, skip = FROZEN[step]
    await spine.append(60)
    async with kafka_proxy(spine.bootstrap) as proxy:
        zombie = spine.run.relay(bootstrap=proxy.bootstrap, relay_lease_s=1)
        proxy.trap = trap = Trap(api_key, "before", zombie.freeze, skip, holds=True)
        await wait_for(lambda: trap.sprung, timeout_s=30)
        heir = spine.run.relay(relay_lease_s=1)
        await spine.relayed(heir, timeout_s=30)
        trap.release()
        zombie.thaw()
        await spine.append(60)
        await wait_for(lambda: "stands by" in zombie.said, timeout_s=30)
        await spine.relayed(heir, zombie)
        for process in (heir, zombie):
            await process.stop()
    await spine.check_published()


async def test_relay_halts_when_history_was_rewritten(spine: Spine) -> None:
    """A database restored to an older state must not be published behind the newer one."""
    await spine.append(20)
    relay, consumer = spine.run.relay(), spine.run.consumer()
    await spine.caught_up(relay, consumer)
    await relay.stop()
    await consumer.stop()
    await spine.check()
    async with spine.pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")  # what a restore does: past the triggers
        await connection.execute("DELETE FROM events WHERE global_position > 30")
    halted = spine.run.relay()
    assert await halted.ended() == 1
    assert "the log ends before" in halted.said
    spine.acked.clear()
    await spine.append(20)
    halted = spine.run.relay()
    assert await halted.ended() == 1
    assert "the log holds event" in halted.said
    await oracle.check_log(spine.pool)


def _moment(text: str) -> Moment:
    assert text in ("before", "unanswered", "answered")
    return text  # type: ignore[return-value]
