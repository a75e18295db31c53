"""The relay beside a bare pump, a naive relay and Debezium: drain of a backlog, latency, and what it costs.

All sides publish the same events of about 400 bytes from the same Postgres to the same broker, one after the other, each to a new
topic of six partitions. Rates go by the times at which the broker wrote the records, without the first tenth, so starting up and
what was read ahead count for nobody; CPU is that of the same span.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg

from benchmarks import debezium, relay_figures
from benchmarks.bench import database, say
from benchmarks.relay_drain import AT_LEAST_ONCE, ONCE, TWO_PROCESSES, Cost, Drains, Mode
from benchmarks.relay_events import fill, open_store
from benchmarks.relay_figures import RelayFigures
from benchmarks.relay_latency import Latency, append_to, insert_into_outbox, latency
from benchmarks.topics import create_topic
from eventspine.local import Endpoints, LocalStack

_RATE = 1_000
_EVENTS = 400_000
_WARM_DRAINS = 2  # Debezium's first ones, while its JVM compiles
_BEST_OF = 3  # of those that follow


async def measure_relay_section(stack: LocalStack, runs: int, scale: float) -> RelayFigures:
    """Measure everything `runs` times. Meanwhile Postgres writes its log so that Debezium can decode it."""
    await _set_wal_level(stack, "logical")
    endpoints = stack.endpoints()
    assert endpoints is not None
    await _Run(stack, endpoints, scale).warm_servers()
    figures = RelayFigures()
    for number in range(1, runs + 1):
        say(f"relay, run {number} of {runs}")
        run = _Run(stack, endpoints, scale)
        await run.measure()
        figures.add_drains(run.drains)
        figures.add_latencies(run.latencies)
        for line in [*(figure.row_with_target() for figure in figures.all()), *figures.cost_table()]:
            say(line)
    await _set_wal_level(stack, "replica")
    return figures


class _Run:
    """One run over all sides, one after the other."""

    def __init__(self, stack: LocalStack, endpoints: Endpoints, scale: float) -> None:
        self.drains: dict[str, Cost] = {}
        self.latencies: dict[str, Latency] = {}
        self._stack = stack
        self._endpoints = endpoints
        self._events = int(_EVENTS * scale)
        self._seconds = max(3, int(20 * scale))
        self._warm_up_s = max(3, int(5 * scale))

    async def warm_servers(self) -> None:
        """Let the broker's JVM compile before anything counts."""
        async with database(self._endpoints.postgres_dsn) as (dsn, pool):
            await fill(await open_store(pool), self._events)
            sides = Drains(self._stack, dsn, pool, self._events)
            await sides.ours(ONCE)
            await sides.pump()
            await sides.naive()

    async def measure(self) -> None:
        async with database(self._endpoints.postgres_dsn) as (dsn, pool):
            await fill(await open_store(pool), self._events)
            sides = Drains(self._stack, dsn, pool, self._events)
            for mode in (ONCE, TWO_PROCESSES, AT_LEAST_ONCE):
                self.drains[mode.side] = await sides.ours(mode)
            self.drains[relay_figures.PUMP] = await sides.pump()
            self.drains[relay_figures.NAIVE] = await sides.naive()
            for mode in (ONCE, AT_LEAST_ONCE):
                self.latencies[mode.side] = await self._our_latency(mode)
            connect = debezium.Connect(self._stack.folder / uuid4().hex, self._endpoints.kafka_bootstrap)
            try:
                await asyncio.to_thread(connect.start, on_progress=say)
                await self._debezium(connect, sides, dsn, pool)
            finally:
                connect.stop()

    async def _debezium(self, connect: debezium.Connect, sides: Drains, dsn: str, pool: asyncpg.Pool) -> None:
        """A new JVM: drained until it is warm, then its best of some drains, then its latencies; then drains with our headers."""
        rival = debezium.Debezium(connect, dsn)
        await rival.prepare(pool)
        first, *others = [await sides.debezium(connect, rival) for _ in range(_WARM_DRAINS + _BEST_OF)]
        say(f"Debezium's drains: {', '.join(f'{cost.rate:,.0f}' for cost in (first, *others))} events/s")
        self.drains[relay_figures.COLD] = first
        self.drains[relay_figures.WARM] = max(others[-_BEST_OF:], key=lambda cost: cost.rate)
        insert = insert_into_outbox(pool, await pool.fetchval("SELECT payload FROM events LIMIT 1"))
        for title, settings in ((relay_figures.PROMPT, debezium.PROMPT), (relay_figures.AS_DRAINED, debezium.DRAIN)):
            create_topic(self._endpoints.kafka_bootstrap, topic := uuid4().hex)
            await rival.run(topic, settings)
            self.latencies[title] = await latency(insert, self._endpoints.kafka_bootstrap, topic, **self._load())
            await rival.stop()
        await rival.remove(pool)
        rival = debezium.Debezium(connect, dsn, headers=True)
        await rival.prepare(pool)
        drains = [await sides.debezium(connect, rival) for _ in range(1 + _BEST_OF)]
        say(f"Debezium's drains with headers: {', '.join(f'{cost.rate:,.0f}' for cost in drains)} events/s")
        self.drains[relay_figures.SAME_HEADERS] = max(drains[-_BEST_OF:], key=lambda cost: cost.rate)
        await rival.remove(pool)

    async def _our_latency(self, mode: Mode) -> Latency:
        prefix = f"b{uuid4().hex}."
        async with database(self._endpoints.postgres_dsn) as (dsn, pool):
            append = append_to(await open_store(pool))
            create_topic(self._endpoints.kafka_bootstrap, f"{prefix}Order")
            async with mode.running(dsn, self._endpoints, prefix):
                return await latency(append, self._endpoints.kafka_bootstrap, f"{prefix}Order", **self._load())

    def _load(self) -> dict[str, int]:
        return {"rate": _RATE, "seconds": self._seconds, "warm_up_s": self._warm_up_s}


async def _set_wal_level(stack: LocalStack, level: str) -> None:
    """Postgres takes it at its start."""
    connection = await asyncpg.connect(stack.postgres.endpoint)
    await connection.execute(f"ALTER SYSTEM SET wal_level = '{level}'")
    await connection.close()
    await asyncio.to_thread(stack.postgres.stop)
    await asyncio.to_thread(stack.postgres.start)
