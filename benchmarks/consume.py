"""Consumers beside others: a filled topic into a table of Postgres, and how soon a row is there.

One topic of six partitions, published by our relay with all its headers, once for all runs: a million events of about 400 bytes,
ten to each of 100,000 streams. Each side reads it from its beginning, under a group of its own, into an empty database, one after
the other. A rate goes from the first row that is visible to the last; what the first look shows counts for nobody. Who takes all
events is checked: the rows are what they come to.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

from benchmarks import consume_figures as sides_of
from benchmarks.bench import database, say
from benchmarks.consume_events import fill, last_numbers, open_store, publish
from benchmarks.consume_figures import ConsumeFigures
from benchmarks.consume_latency import measure_delays
from benchmarks.consume_sides import LOG, ONE, TWO, Sides
from benchmarks.consume_watch import ACCOUNTS, CHARGES, STATEMENTS, Shape
from benchmarks.jdbc_sink import Connect, serving_registry
from benchmarks.relay_drain import Cost
from eventspine.local import LocalStack

EVENTS = 1_000_000
_RATE = 1_000
_BEST_OF = 2

Costs = dict[tuple[Shape, str], Cost]


async def measure_consume_section(stack: LocalStack, runs: int, events: int, scale: float) -> ConsumeFigures:
    """Measure everything `runs` times. With a scale below 1, rivals get fewer events and latency less time."""
    endpoints = stack.endpoints()
    assert endpoints is not None
    figures = ConsumeFigures()
    async with database(endpoints.postgres_dsn) as (dsn, pool):
        say(f"filling a topic with {events:,} events")
        await fill(await open_store(pool), events)
        topic = await publish(dsn, endpoints, f"b{uuid4().hex}.", events)
        await pool.execute("VACUUM ANALYZE events")
        lasts = await asyncio.to_thread(last_numbers, endpoints.kafka_bootstrap, topic)
        async with serving_registry(pool) as registry_url:
            sides = Sides(stack, dsn, topic, events, lasts, registry_url)
            for number in range(1, runs + 1):
                say(f"consume, run {number} of {runs}")
                costs: Costs = {}
                await _ours(sides, costs)
                await _frameworks(sides, costs, scale)
                connect = Connect(stack.folder / uuid4().hex, endpoints.kafka_bootstrap, registry_url)
                try:
                    await asyncio.to_thread(connect.start, on_progress=say)
                    await _jdbc_sink(sides, connect, costs)
                finally:
                    connect.stop()
                seconds, warm_up_s = max(3, int(20 * scale)), max(3, int(5 * scale))
                delays = await measure_delays(endpoints, rate=_RATE, seconds=seconds, warm_up_s=warm_up_s)
                figures.add(costs, delays)
                for line in [*(figure.row_with_target() for figure in figures.all()), *figures.cost_table()]:
                    say(line)
    return figures


async def _ours(sides: Sides, costs: Costs) -> None:
    for shape in (ACCOUNTS, CHARGES, STATEMENTS):
        for mode in (ONE, TWO) if shape is STATEMENTS else (ONE, TWO, LOG):
            _note(costs, shape, mode.side, await sides.ours(mode, shape))
    _note(costs, CHARGES, sides_of.REBUILD, await sides.rebuild())
    _note(costs, CHARGES, sides_of.BY_HANDLER, await sides.with_poison("RefusedByHandler"))
    _note(costs, CHARGES, sides_of.BY_POSTGRES, await sides.with_poison("RefusedByPostgres"))


async def _frameworks(sides: Sides, costs: Costs, scale: float) -> None:
    few, many = int(3_000 * max(scale, 0.3)), int(60_000 * max(scale, 0.3))
    for shape in (ACCOUNTS, CHARGES, STATEMENTS):
        _note(costs, shape, sides_of.NAIVE, await sides.rival("naive", shape, few))
        if shape is STATEMENTS:
            continue
        _note(costs, shape, sides_of.SINGLE, await sides.rival("faststream_consumer", shape, few, batch=False))
        _note(costs, shape, sides_of.BATCHES, await sides.rival("faststream_consumer", shape, many))
        _note(costs, shape, sides_of.QUIX, await sides.rival("quix_consumer", shape, many))


async def _jdbc_sink(sides: Sides, connect: Connect, costs: Costs) -> None:
    """A new JVM: a pass over the whole topic that counts for nothing, then the best of some passes for each table."""
    cold = await sides.jdbc_sink(connect, CHARGES)
    say(f"the JDBC sink's first pass: {cold.rate:,.0f} events/s")
    for shape in (ACCOUNTS, CHARGES):
        passes = [await sides.jdbc_sink(connect, shape) for _ in range(_BEST_OF)]
        _note(costs, shape, sides_of.JDBC, max(passes, key=lambda cost: cost.rate))


def _note(costs: Costs, shape: Shape, side: str, cost: Cost) -> None:
    say(f"{shape.title}: {side}: {cost.rate:,.0f} events/s")
    costs[shape, side] = cost
