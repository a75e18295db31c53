"""Servers die and come back while events flow: clients wait, say so, and go on."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.fault.conftest import Spine
from tests.waiting import wait_for


async def test_broker_killed_and_restarted(spine: Spine, stack: Any) -> None:
    relay, consumer = spine.run.relay(relay_batch_events=1000), spine.run.consumer()
    async with spine.load(pause_s=0.2):
        await wait_for(spine.applied, lambda applied: applied > 100, timeout_s=30)
        await asyncio.to_thread(stack.kafka.kill)
        try:
            before = await spine.store.last_position()
            await wait_for(spine.store.last_position, lambda position: position > before + 100)  # appends need no Kafka
        finally:
            await asyncio.to_thread(stack.kafka.start)
    await spine.caught_up(relay, consumer, timeout_s=90)
    await relay.stop()
    await consumer.stop()
    await spine.check()


async def test_postgres_killed_and_restarted(spine: Spine, stack: Any) -> None:
    relay, consumer = spine.run.relay(relay_batch_events=1000), spine.run.consumer()
    async with spine.load(pause_s=0.2):
        await wait_for(spine.applied, lambda applied: applied > 100, timeout_s=30)
        await asyncio.to_thread(stack.postgres.kill)
        await asyncio.to_thread(stack.postgres.start)
        acked = len(spine.acked)
        await wait_for(lambda: len(spine.acked), lambda now: now > acked + 100)  # the store retried what was in flight
    await spine.caught_up(relay, consumer, timeout_s=90)
    await wait_for(lambda: (relay.said.count("relay waits"), relay.said.count("relay goes on")), lambda n: n[0] == n[1] >= 1)
    await relay.stop()
    await consumer.stop()
    await spine.check()
