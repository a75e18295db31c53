"""Milliseconds from an append to its arrival at a read_committed consumer, at a steady rate."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from uuid import uuid4

import asyncpg

from benchmarks.processes import module
from benchmarks.relay_events import event, sent_now
from eventspine import PostgresEventStore

Append = Callable[[int], Awaitable[object]]

_LIMIT_S = 120.0


class Latency(NamedTuple):
    """In milliseconds."""

    p50: float
    p99: float


async def latency(append: Append, bootstrap: str, topic: str, *, rate: int, seconds: int, warm_up_s: int) -> Latency:
    """Append at a rate, to what publishes into an empty topic, and ask its consumer. The first seconds do not count."""
    events = rate * (warm_up_s + seconds)
    async with module("arrivals", bootstrap, topic, str(events)) as consumer, asyncio.timeout(_LIMIT_S + warm_up_s + seconds):
        assert consumer.stdout is not None
        if (said := await consumer.stdout.readline()) != b"ready\n":
            raise RuntimeError(f"the consumer has ended: {said!r}")
        await _append_at(rate, events, append)
        delays = sorted(json.loads(await consumer.stdout.readline())[rate * warm_up_s :])
    return Latency(delays[len(delays) // 2], delays[len(delays) * 99 // 100])


def append_to(store: PostgresEventStore) -> Append:
    """One event to a new stream."""
    name = uuid4().hex[:8]

    async def append(number: int) -> None:
        await store.append(f"Order-{name}-{number}", "Order", [event(number)], expected_version=0)

    return append


def insert_into_outbox(pool: asyncpg.Pool, payload: bytes) -> Append:
    """One row in a transaction of its own."""
    statement = "INSERT INTO rival_outbox VALUES ($1, 'Order', $2, 'OrderPaid', $3)"

    async def insert(number: int) -> None:
        await pool.execute(statement, uuid4(), f"Order-{number}", sent_now(payload))

    return insert


async def _append_at(rate: int, events: int, append: Append) -> None:
    """Append when it is due, whether or not those before are done."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as appends:
        for number in range(events):
            await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
            appends.create_task(_done(append, number))


async def _done(append: Append, number: int) -> None:
    await append(number)
