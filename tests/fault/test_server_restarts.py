"""Servers die and come back while events flow: clients wait, say so, and go on."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.fault.conftest import Spine
from tests.waiting import wait_for


async def test_broker_killed_and_restarted(spine: Spine, stack: Any) -> None:
    relay, consumer = spine.run.relay(), spine.run.consumer()
    load = asyncio.create_task(spine.append(1000, at_once=4))
    await wait_for(spine.applied, lambda applied: applied > 100, timeout_s=30)
    await asyncio.to_thread(stack.kafka.kill)
    await load  # appends do not need Kafka
    await asyncio.to_thread(stack.kafka.start)
    await spine.caught_up(relay, consumer, timeout_s=90)
    await relay.stop()
    await consumer.stop()
    assert relay.said.count("relay waits") <= 3, relay.said  # a message when the state changes, no chatter
    await spine.check()


async def test_postgres_killed_and_restarted(spine: Spine, stack: Any) -> None:
    relay, consumer = spine.run.relay(), spine.run.consumer()
    load = asyncio.create_task(spine.append(1000, at_once=4))
    await wait_for(spine.applied, lambda applied: applied > 100, timeout_s=30)
    await asyncio.to_thread(stack.postgres.kill)
    assert not load.done()
    await asyncio.to_thread(stack.postgres.start)
    await load  # the store retried what was in flight
    await spine.caught_up(relay, consumer, timeout_s=90)
    await relay.stop()
    await consumer.stop()
    await spine.check()
