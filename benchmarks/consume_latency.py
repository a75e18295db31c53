"""Milliseconds from the call of append to the commit of the row, at a steady rate: store, relay and consumer on one machine."""

from __future__ import annotations

import asyncio
import json
import time
from statistics import median
from typing import NamedTuple
from uuid import uuid4

import asyncpg

from benchmarks.bench import database, reached
from benchmarks.consume_events import CATEGORY, event, open_store
from benchmarks.consume_projections import Sightings
from benchmarks.processes import command, module
from benchmarks.sightings import TRIGGER
from benchmarks.topics import create_topic
from eventspine.consumers.postgres_table import create_sql
from eventspine.local import Endpoints

_ACCOUNTS = 1_000_000
_INSERT = "INSERT INTO sightings SELECT 'probe-' || $1 || '-' || n, 0 FROM generate_series(1, 10) AS n"


class Delays(NamedTuple):
    """In milliseconds. `measuring` is what the trigger adds to a transaction of ten rows."""

    p50: float
    p99: float
    append_p50: float
    append_p99: float
    measuring: float


async def measure_delays(endpoints: Endpoints, *, rate: int, seconds: int, warm_up_s: int) -> Delays:
    """Append at a rate, each event to a new stream, whether or not those before are done. The first seconds do not count."""
    events, prefix, uncounted = rate * (warm_up_s + seconds), f"b{uuid4().hex}.", rate * warm_up_s
    async with (
        database(endpoints.postgres_dsn) as (dsn, pool),
        database(endpoints.postgres_dsn) as (read_model, rows),
    ):
        store = await open_store(pool)
        create_topic(endpoints.kafka_bootstrap, f"{prefix}{CATEGORY}")
        measuring = await _trigger(rows)
        consume = ["consume", "benchmarks.consume_projections:Sightings"]
        async with (
            command(dsn, endpoints, prefix, ["relay", "run"]),
            command(dsn, endpoints, prefix, consume, {"EVENTSPINE_READ_MODEL_DSN": read_model}),
            module("sightings", read_model, str(events + 1)) as listener,
        ):
            assert listener.stdout is not None
            if (said := await listener.stdout.readline()) != b"ready\n":
                raise RuntimeError(f"the listener has ended: {said!r}")
            acknowledged: list[tuple[int, float]] = []

            async def append(number: int) -> None:
                charged = event(number, _ACCOUNTS)
                called = time.perf_counter()
                await store.append(f"{CATEGORY}-{number}", CATEGORY, [charged], expected_version=0)
                acknowledged.append((number, 1000 * (time.perf_counter() - called)))

            await append(events)  # so that all is there: the group has its partitions, statements are prepared
            await reached(lambda: rows.fetchval("SELECT count(*) FROM sightings"), lambda count: bool(count))
            started = time.perf_counter()
            async with asyncio.TaskGroup() as appends:
                for number in range(events):
                    await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
                    appends.create_task(append(number))
            delays = sorted(json.loads(await listener.stdout.readline())[1 + uncounted :])
    appended = sorted(delay for number, delay in acknowledged if uncounted <= number < events)
    return Delays(*_percentiles(delays), *_percentiles(appended), measuring)


async def _trigger(rows: asyncpg.Pool) -> float:
    """Make the table with its trigger, and return what that costs a transaction, by medians with and without, in turn."""
    await rows.execute(create_sql(Sightings.table))
    await rows.execute(TRIGGER)
    took: dict[str, list[float]] = {"ENABLE": [], "DISABLE": []}
    async with rows.acquire() as connection:
        for number in range(200):
            for state, times in took.items():
                await connection.execute(f"ALTER TABLE sightings {state} TRIGGER tell")
                started = time.perf_counter()
                await connection.execute(_INSERT, f"{number}-{state}")
                times.append(1000 * (time.perf_counter() - started))
        await connection.execute("ALTER TABLE sightings ENABLE TRIGGER tell")
        await connection.execute("TRUNCATE sightings")
    return median(took["ENABLE"]) - median(took["DISABLE"])


def _percentiles(delays: list[float]) -> tuple[float, float]:
    return delays[len(delays) // 2], delays[len(delays) * 99 // 100]
