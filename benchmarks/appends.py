"""Appends to new streams, through the whole client with validation, beside a naive store, bare COPY and a bare INSERT."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from statistics import median
from typing import Any

import asyncpg

from benchmarks import naive
from benchmarks.bench import ORDER_PLACED, Figure, data, database, rate, warm
from eventspine import AppendCondition, Event, PostgresEventStore, Query, QueryItem

_NAIVE = "SELECT MAX + INSERT, 32 connections"
_COPY_ROWS = 10_000  # in a transaction


class AppendFigures:
    """What one run of `measure_appends` adds to."""

    def __init__(self) -> None:
        self.naive_64 = Figure("append, 64 tasks", "events/s", _NAIVE, target=8)
        self.naive_512 = Figure("append, 512 tasks", "events/s", _NAIVE, target=12)
        self.copy = Figure("append, 512 tasks", "events/s", "bare COPY, 1 connection, the same table", target=0.6)
        self.load = Figure("import_events", "events/s", "bare COPY, 1 connection, the same table")
        self.latency = Figure(
            "append, 1 task, p50", "ms", "bare INSERT + COMMIT, the same table", less_is_better=True, target=1.5
        )
        self.chain = Figure("append, 512 tasks", "µs/event", "without hash chain", less_is_better=True, target=1.1)
        self.condition = Figure("append with a condition on a tag, 512 tasks", "µs/event", "without it", less_is_better=True)

    def all(self) -> list[Figure]:
        return [self.naive_64, self.naive_512, self.copy, self.load, self.latency, self.chain, self.condition]


async def measure_appends(postgres_dsn: str, figures: AppendFigures, scale: float) -> None:
    """One run: every side in a database of its own, all connections open and all statements prepared before the clock starts."""
    events = int(60_000 * scale)
    by_512, rows = await _append_rate(postgres_dsn, events, tasks=512)
    copied = await _copy_rate(postgres_dsn, rows)
    by_64, _ = await _append_rate(postgres_dsn, events, tasks=64)
    naively = await _naive_rate(postgres_dsn, int(12_000 * scale))
    unchained, _ = await _append_rate(postgres_dsn, events, tasks=512, hash_chain=False)
    figures.copy.ours.append(by_512)
    figures.copy.rival.append(copied)
    figures.load.ours.append(await _import_rate(postgres_dsn, len(rows)))
    figures.load.rival.append(copied)
    figures.naive_64.ours.append(by_64)
    figures.naive_64.rival.append(naively)
    figures.naive_512.ours.append(by_512)
    figures.naive_512.rival.append(naively)
    figures.chain.ours.append(1e6 / by_512)
    figures.chain.rival.append(1e6 / unchained)
    await _measure_single_writer(postgres_dsn, figures.latency, rows[: int(3000 * scale)])
    for conditional in (True, False):
        side = figures.condition.ours if conditional else figures.condition.rival
        side.append(1e6 / await _tagged_rate(postgres_dsn, events // 2, conditional=conditional))


def appender(store: PostgresEventStore) -> Callable[[int], Coroutine[Any, Any, object]]:
    """Return what appends one event of about 300 bytes to a new stream."""

    async def append(number: int) -> object:
        event = Event(event_type="OrderPlaced", data=data(number))
        return await store.append(f"Order-{number}", "Order", [event], expected_version=0)

    return append


async def open_warm_store(pool: asyncpg.Pool, *, hash_chain: bool = True) -> PostgresEventStore:
    """A store that has appended already."""
    store = PostgresEventStore(pool, hash_chain=hash_chain)
    await store.register([ORDER_PLACED])
    await warm(pool, 40)
    await rate(appender(store), range(-2000, 0), 512)
    return store


async def warm_server(postgres_dsn: str, events: int) -> None:
    """Let a new server make its WAL files, which it then uses again, and touch its memory: it would be slow while it does."""
    for _ in range(2):
        await _append_rate(postgres_dsn, events, tasks=512)
        server = await asyncpg.connect(postgres_dsn)
        await server.execute("CHECKPOINT")
        await server.close()


async def _append_rate(
    postgres_dsn: str, events: int, *, tasks: int, hash_chain: bool = True
) -> tuple[float, Sequence[asyncpg.Record]]:
    """Return events a second, and the rows that they became."""
    async with database(postgres_dsn) as (_, pool):
        store = await open_warm_store(pool, hash_chain=hash_chain)
        seen = await rate(appender(store), range(events), tasks)
        rows = await pool.fetch("SELECT * FROM events ORDER BY global_position")
        assert len(rows) == events + 2000
        return seen, rows


async def _copy_rate(postgres_dsn: str, rows: Sequence[asyncpg.Record]) -> float:
    """Load the same rows as a loader would."""
    async with database(postgres_dsn) as (_, pool), pool.acquire() as connection:
        chunks = [[tuple(row) for row in rows[first : first + _COPY_ROWS]] for first in range(0, len(rows), _COPY_ROWS)]
        started = time.perf_counter()
        for chunk in chunks:
            await connection.copy_records_to_table("events", records=chunk)
        return len(rows) / (time.perf_counter() - started)


async def _import_rate(postgres_dsn: str, events: int) -> float:
    async with database(postgres_dsn) as (_, pool):
        store = PostgresEventStore(pool)
        await store.register([ORDER_PLACED])
        source = (Event(event_type="OrderPlaced", data=data(number), stream_id=f"Order-{number}") for number in range(events))
        started = time.perf_counter()
        await store.import_events("benchmark", source)
        return events / (time.perf_counter() - started)


async def _naive_rate(postgres_dsn: str, events: int) -> float:
    async with database(postgres_dsn) as (_, pool):
        await pool.execute(naive.SCHEMA)
        await warm(pool, 32)

        async def append(number: int) -> None:
            await naive.append(pool, f"Order-{number}", data(number), 0)

        await rate(append, range(-1000, 0), 32)
        return await rate(append, range(events), 32)


async def _measure_single_writer(postgres_dsn: str, figure: Figure, rows: Sequence[asyncpg.Record]) -> None:
    """By turns of a hundred, so that both see the same machine."""
    async with database(postgres_dsn) as (_, pool), database(postgres_dsn) as (_, other), other.acquire() as connection:
        append = appender(await open_warm_store(pool))
        insert = await connection.prepare("INSERT INTO events VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)")
        ours: list[float] = []
        rival: list[float] = []
        for first in range(0, len(rows), 100):
            for number in range(first, min(first + 100, len(rows))):
                started = time.perf_counter()
                await append(number)
                ours.append(1000 * (time.perf_counter() - started))
            for row in rows[first : first + 100]:
                started = time.perf_counter()
                await insert.fetch(*row)
                rival.append(1000 * (time.perf_counter() - started))
        figure.ours.append(median(ours))
        figure.rival.append(median(rival))


async def _tagged_rate(postgres_dsn: str, events: int, *, conditional: bool) -> float:
    """Each event has two tags; the condition forbids an earlier event with the first, which is its own."""
    async with database(postgres_dsn) as (_, pool):
        store = await open_warm_store(pool)

        async def append(number: int) -> None:
            tag = f"order:{number}"
            event = Event(event_type="OrderPlaced", data=data(number), tags=(tag, f"customer:{number % 20_000}"))
            condition = AppendCondition(Query(QueryItem(tags=(tag,))), after=0) if conditional else None
            await store.append(f"Order-{number}", "Order", [event], expected_version=0, condition=condition)

        await rate(append, range(-3000, -2000), 512)
        return await rate(append, range(events), 512)
