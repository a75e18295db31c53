"""Events a second of relay and projections, each beside its naive loop, ours and the rival's in turn."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import asyncpg

from benchmarks import naive
from benchmarks.bench import Figure, create_topic, data, database, fill, open_store, reached
from benchmarks.processes import command
from eventspine import Projection
from eventspine.local import Endpoints


async def measure_relay(endpoints: Endpoints, figure: Figure, events: int, rival_events: int) -> None:
    """Drain a backlog, from the first transaction to the last; in a process of its own."""
    async with database(endpoints.postgres_dsn) as (dsn, pool):
        store = await open_store(pool)
        await fill(store, events)
        async with command(dsn, endpoints, f"b{uuid4().hex}.", ["relay", "run"]) as relay:
            await reached(relay.position, lambda position: position >= events)
            figure.ours.append(await relay.drain_rate())

        await pool.execute(naive.SCHEMA)
        for number in range(rival_events):
            await naive.append(pool, f"Order-{number}", data(number), 0)
        topic = uuid4().hex
        create_topic(endpoints.kafka_bootstrap, topic)
        started = time.perf_counter()
        await naive.relay(pool, endpoints.kafka_bootstrap, topic, until=rival_events)
        figure.rival.append(rival_events / (time.perf_counter() - started))


async def measure_projection(
    endpoints: Endpoints, figures: dict[type[Projection], Figure], events: int, rival_events: int
) -> None:
    """A filled topic into a table, from the first batch that was seen to the last event; in a process of its own."""
    async with database(endpoints.postgres_dsn) as (dsn, pool):
        store = await open_store(pool)
        await fill(store, events)
        prefix = f"b{uuid4().hex}."
        async with command(dsn, endpoints, prefix, ["relay", "run"]) as relay:
            await reached(relay.position, lambda position: position >= events)
        for projection, figure in figures.items():
            consume = ["consume", f"{projection.__module__}:{projection.__name__}"]
            async with command(dsn, endpoints, prefix, consume):

                async def applied(name: str = projection.name) -> int:
                    return await _applied(pool, name)

                first = await reached(applied, lambda count: count > 0)
                done_then = await applied()
                last = await reached(applied, lambda count: count >= events)
                figure.ours.append((events - done_then) / (last - first))
        assert await pool.fetchval("SELECT sum(orders) FROM totals") == events
        assert await pool.fetchval("SELECT count(*) FROM rows") == events

        await pool.execute(naive.SCHEMA)
        for number in range(rival_events):
            await naive.append(pool, f"Order-{number}", data(number), 0)
        topic = uuid4().hex
        create_topic(endpoints.kafka_bootstrap, topic)
        await naive.relay(pool, endpoints.kafka_bootstrap, topic, until=rival_events)
        projecting = asyncio.create_task(naive.project(pool, endpoints.kafka_bootstrap, topic, until=rival_events))

        async def naively_applied() -> int:
            return int(await pool.fetchval("SELECT coalesce(sum(orders), 0) FROM naive_totals"))

        first = await reached(naively_applied, lambda count: count > 0)
        await projecting
        for figure in figures.values():
            figure.rival.append(rival_events / (time.perf_counter() - first))


async def _applied(pool: asyncpg.Pool, projection: str) -> int:
    if not await pool.fetchval("SELECT to_regclass('projection_offsets') IS NOT NULL"):
        return 0
    count = await pool.fetchval("SELECT coalesce(sum(events), 0) FROM projection_offsets WHERE projection = $1", projection)
    return int(count)
