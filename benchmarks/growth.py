"""A log of millions: reading it beside a bare fetch of its rows, and appending to it beside a small log."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any
from uuid import uuid4

import asyncpg

from benchmarks.bench import ORDER_PLACED, Figure, data, database, rate, say, warm
from eventspine import Event, PostgresEventStore
from eventspine.schemas.postgres import load_sql

_SMALL, _LARGE, _READ = 100_000, 5_000_000, 1_000_000
_PAGE = 1000
_BLOCK = 50_000
_READ_ALL = load_sql("eventspine.store.postgres", "sql/read_all")


class GrowthFigures:
    """What `measure_growth` fills."""

    def __init__(self) -> None:
        self.read = Figure("read_all, pages of 1,000", "events/s", "bare fetch of the same rows", target=0.6)
        self.cost = Figure(
            "append at 5,000,000 events, 512 tasks", "µs/event", "at 100,000 events", less_is_better=True, target=1.2
        )
        self.latency = Figure(
            "append at 5,000,000 events, 1 task, p50", "ms", "at 100,000 events", less_is_better=True, target=1.2
        )

    def all(self) -> list[Figure]:
        return [self.read, self.cost, self.latency]


async def measure_growth(postgres_dsn: str, figures: GrowthFigures, runs: int, scale: float) -> None:
    """Fill both logs once; then all runs, by turns. Streams have random names: each append meets another leaf of their index."""
    async with _log(postgres_dsn, int(_SMALL * scale)) as small, _log(postgres_dsn, int(_LARGE * scale)) as large:
        for run in range(runs):
            await _measure_reading(large, figures.read, int(_READ * scale), begin=run)
            for store in (small, large) if run % 2 else (large, small):
                ours = store is large
                cost = 1e6 / await rate(_appender(store), range(int(30_000 * scale)), 512)
                (figures.cost.ours if ours else figures.cost.rival).append(cost)
                latency = await _latency(store, int(1_000 * scale))
                (figures.latency.ours if ours else figures.latency.rival).append(latency)


@asynccontextmanager
async def _log(postgres_dsn: str, events: int) -> AsyncIterator[PostgresEventStore]:
    """A store that holds so many events, one to a stream, with the server at rest."""
    async with database(postgres_dsn) as (_, pool):
        store = PostgresEventStore(pool)
        await store.register([ORDER_PLACED])
        started = time.perf_counter()
        await store.import_events("benchmark", _events(events))
        say(f"{events:,} events imported, {events / (time.perf_counter() - started):,.0f}/s")
        await pool.execute("VACUUM ANALYZE events")  # autovacuum would come in the middle
        await pool.execute("CHECKPOINT")
        await warm(pool, 40)
        await rate(_appender(store), range(2000), 512)
        yield store


def _events(count: int) -> Iterator[Event]:
    for number in range(count):
        yield Event(event_type="OrderPlaced", data=data(number), stream_id=f"Order-{uuid4()}")


def _appender(store: PostgresEventStore) -> Callable[[int], Coroutine[Any, Any, object]]:
    async def append(number: int) -> object:
        event = Event(event_type="OrderPlaced", data=data(number))
        return await store.append(f"Order-{uuid4()}", "Order", [event], expected_version=0)

    return append


async def _measure_reading(store: PostgresEventStore, figure: Figure, events: int, *, begin: int) -> None:
    """By blocks, both sides in turn; who goes first, and finds the block in no cache, changes each time."""
    seconds = {True: 0.0, False: 0.0}
    for block, first in enumerate(range(0, events, _BLOCK), begin):
        last = min(first + _BLOCK, events)
        for ours in (True, False) if block % 2 else (False, True):
            started = time.perf_counter()
            count = await (_read(store, first, last) if ours else _fetch(store.pool, first, last))
            seconds[ours] += time.perf_counter() - started
            assert count == last - first
    figure.ours.append(events / seconds[True])
    figure.rival.append(events / seconds[False])


async def _read(store: PostgresEventStore, first: int, last: int) -> int:
    count = 0
    for position in range(first, last, _PAGE):
        count += len(await store.read_all(position, _PAGE))
    return count


async def _fetch(pool: asyncpg.Pool, first: int, last: int) -> int:
    count = 0
    for position in range(first, last, _PAGE):
        count += len(await pool.fetch(_READ_ALL, position, position + _PAGE))
    return count


async def _latency(store: PostgresEventStore, appends: int) -> float:
    """Milliseconds, the median."""
    append = _appender(store)
    delays: list[float] = []
    for number in range(appends):
        started = time.perf_counter()
        await append(number)
        delays.append(1000 * (time.perf_counter() - started))
    return median(delays)
