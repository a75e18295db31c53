"""Milliseconds from the call of append to the row in the read model, at a steady rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import uuid4

from benchmarks import naive
from benchmarks.bench import Figure, create_topic, data, database, open_store, reached
from benchmarks.processes import command
from eventspine import Event
from eventspine.local import Endpoints


async def measure_latency(endpoints: Endpoints, p50: Figure, p99: Figure, *, rate: int, rival_rate: int, seconds: int) -> None:
    """Ours: relay and consumer in processes of their own. The rival's loops run in tasks; it gets a rate that it can sustain."""
    async with database(endpoints.postgres_dsn) as (dsn, pool):
        store = await open_store(pool)
        prefix = f"b{uuid4().hex}."
        async with (
            command(dsn, endpoints, prefix, ["relay", "run"]),
            command(dsn, endpoints, prefix, ["consume", "benchmarks.bench:Totals"]),
        ):

            async def append(number: int) -> None:
                event = Event(event_type="OrderPlaced", data=data(number))
                await store.append(f"Order-{number}", "Order", [event], expected_version=0)

            async def applied() -> int:
                if not await pool.fetchval("SELECT to_regclass('projection_offsets') IS NOT NULL"):
                    return 0
                return int(await pool.fetchval("SELECT coalesce(sum(events), 0) FROM projection_offsets"))

            await append(10**6)  # so that topics, groups and caches are there
            await reached(applied, lambda count: count == 1)
            delays = await _delays(append, applied, rate, seconds)
            p50.ours.append(delays[len(delays) // 2])
            p99.ours.append(delays[len(delays) * 99 // 100])

        await pool.execute(naive.SCHEMA)
        topic = uuid4().hex
        create_topic(endpoints.kafka_bootstrap, topic)
        total = 1 + rival_rate * seconds

        async def append_naively(number: int) -> None:
            await naive.append(pool, f"Order-{number}", data(number), 0)

        async def applied_naively() -> int:
            return int(await pool.fetchval("SELECT coalesce(sum(orders), 0) FROM naive_totals"))

        loops = [
            asyncio.create_task(naive.relay(pool, endpoints.kafka_bootstrap, topic, until=total)),
            asyncio.create_task(naive.project(pool, endpoints.kafka_bootstrap, topic, until=total)),
        ]
        await append_naively(10**6)
        await reached(applied_naively, lambda count: count == 1)
        delays = await _delays(append_naively, applied_naively, rival_rate, seconds)
        p50.rival.append(delays[len(delays) // 2])
        p99.rival.append(delays[len(delays) * 99 // 100])
        await asyncio.gather(*loops)


async def _delays(
    append: Callable[[int], Coroutine[Any, Any, None]], applied: Callable[[], Coroutine[Any, Any, int]], rate: int, seconds: int
) -> list[float]:
    """Append at a rate; note when each append was called and when the count of applied events passed it; sorted, in ms.

    The n-th append is taken to be visible when n events are applied: with events applied in nearly the order of their appends
    that is off by what a batch holds, and by the 2 ms between two looks.
    """
    total = rate * seconds
    called: list[float] = []
    seen: list[float] = []
    before = await applied()

    async def watch() -> None:
        while len(seen) < total:
            count = await applied() - before
            now = time.perf_counter()
            seen.extend([now] * (count - len(seen)))
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    started = time.perf_counter()
    async with asyncio.TaskGroup() as appends:
        for number in range(total):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            called.append(time.perf_counter())
            appends.create_task(append(number))
    async with asyncio.timeout(120):
        await watching
    return sorted(1000 * (there - here) for here, there in zip(called, seen, strict=True))
