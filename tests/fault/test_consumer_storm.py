"""Members that join and leave without end: rebalances lose nothing, repeat nothing, and leave time to work."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque

import pytest

from eventspine import Consumer, PostgresSink
from tests.fault.conftest import Spine
from tests.projections import OrderTotals
from tests.waiting import wait_for

SECONDS = 60 * float(os.environ.get("EVENTSPINE_SOAK_MINUTES", "0")) or 6.0
EVERY_S = 0.2
STEADY, PASSING = 2, 4


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_rebalance_storm(spine: Spine, protocol: str) -> None:
    """Two stay; beside them, every 200 ms one comes and the oldest goes. What they do in all that is printed."""
    relay = spine.run.relay(relay_batch_events=500)
    members: deque[tuple[Consumer, asyncio.Task[None]]] = deque()
    steady: list[tuple[Consumer, asyncio.Task[None]]] = []
    gone: set[asyncio.Task[None]] = set()
    joined = 0

    def hire() -> tuple[Consumer, asyncio.Task[None]]:
        consumer = Consumer(
            OrderTotals(),
            PostgresSink(spine.pool),
            spine.bootstrap,
            load_event_types=spine.store.log.pinned_types,
            topic_prefix=spine.topic_prefix,
            batch_events=200,
            session_timeout_s=3,
            group_protocol=protocol,
        )
        return consumer, asyncio.create_task(consumer.run())

    def leave(consumer: Consumer, task: asyncio.Task[None]) -> None:
        consumer.stop()
        gone.add(task)

    async with spine.load():
        steady += [hire() for _ in range(STEADY)]
        await wait_for(spine.applied, lambda count: count > 50, timeout_s=60)
        before, started, appended = await spine.applied(), time.monotonic(), await spine.store.last_position()
        while time.monotonic() - started < SECONDS:
            members.append(hire())
            joined += 1
            if len(members) > PASSING:
                leave(*members.popleft())
            await asyncio.sleep(EVERY_S)
            for task in [*gone, *(task for _, task in [*steady, *members])]:
                if task.done():
                    await task
        in_the_storm, appended = await spine.applied() - before, await spine.store.last_position() - appended
    for member in members:
        leave(*member)
    await spine.caught_up(relay, timeout_s=90)
    for member in steady:
        leave(*member)
    await asyncio.gather(*gone)
    await relay.stop()
    print(f"\n{protocol}: {joined} joined in {SECONDS:.0f} s; {in_the_storm} of {appended} events were applied meanwhile")
    assert in_the_storm > 0
    await spine.check()
