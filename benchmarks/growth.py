"""A log of millions: reading it beside a bare fetch of its rows, and appending to it beside a small log."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any
from uuid import uuid4

import asyncpg
from uuid_utils.compat import uuid7

from benchmarks.bench import ORDER_PLACED, Figure, data, database, rate, say, warm
from eventspine import Event, PostgresEventStore
from eventspine.schemas.postgres import load_sql

_SMALL, _LARGE, _READ = 100_000, 5_000_000, 1_000_000
_PAGE = 1000
_BLOCK = 50_000
_NAMES: dict[str, Callable[[], str]] = {
    "rising": lambda: f"Order-{uuid7()}",  # as of UUIDv7, or of counters: each append meets the end of the index
    "random": lambda: f"Order-{uuid4()}",  # each append meets another leaf of the index
}
_READ_ALL = load_sql("eventspine.store.postgres", "sql/read_all")


class GrowthFigures:
    """What `measure_growth` fills."""

    def __init__(self) -> None:
        self.read = Figure("read_all, pages of 1,000", "events/s", "bare fetch of the same rows", target=0.6)
        title = "append at 5,000,000 events"
        self.cost, self.latency = [
            {
                names: Figure(f"{title}, {tasks}, {names} names", unit, "at 100,000 events", less_is_better=True, target=1.2)
                for names in _NAMES
            }
            for tasks, unit in (("512 tasks", "µs/event"), ("1 task, p50", "ms"))
        ]

    def all(self) -> list[Figure]:
        return [self.read, *self.cost.values(), *self.latency.values()]


async def measure_growth(postgres_dsn: str, figures: GrowthFigures, runs: int, scale: float) -> None:
    """Fill both logs once, with streams of random names; then all runs, by turns."""
    async with _log(postgres_dsn, int(_SMALL * scale)) as small, _log(postgres_dsn, int(_LARGE * scale)) as large:
        for run in range(runs):
            await _measure_reading(large, figures.read, int(_READ * scale), begin=run)
            for store in (small, large) if run % 2 else (large, small):
                for names in _NAMES:
                    cost, latency = figures.cost[names], figures.latency[names]
                    seen = 1e6 / await rate(_appender(store, names), range(int(30_000 * scale)), 512)
                    (cost.ours if store is large else cost.rival).append(seen)
                    seen = await _latency(store, names, int(1_000 * scale))
                    (latency.ours if store is large else latency.rival).append(seen)


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
        await rate(_appender(store, "random"), range(2000), 512)
        yield store


def _events(count: int) -> Iterator[Event]:
    for number in range(count):
        yield Event(event_type="OrderPlaced", data=data(number), stream_id=_NAMES["random"]())


def _appender(store: PostgresEventStore, names: str) -> Callable[[int], Coroutine[Any, Any, object]]:
    async def append(number: int) -> object:
        event = Event(event_type="OrderPlaced", data=data(number))
        return await store.append(_NAMES[names](), "Order", [event], expected_version=0)

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


async def _latency(store: PostgresEventStore, names: str, appends: int) -> float:
    """Milliseconds, the median."""
    append = _appender(store, names)
    delays: list[float] = []
    for number in range(appends):
        started = time.perf_counter()
        await append(number)
        delays.append(1000 * (time.perf_counter() - started))
    return median(delays)
