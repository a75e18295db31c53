"""The demo's proof: read models against a fold of the CSV, topic against log, log against itself."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from ...schemas.kafka import client_settings, translated_kafka
from .data import Flight
from .projections import ON_TIME_MINUTES

__all__ = ["Finding", "prove"]

_LOG = """
SELECT count(*) AS events, coalesce(min(global_position), 1) AS first, coalesce(max(global_position), 0) AS last,
       count(DISTINCT id) AS ids, count(DISTINCT stream_id) AS streams
  FROM events"""
_STREAMS = """
SELECT count(*) FROM (SELECT FROM events GROUP BY stream_id HAVING min(version) <> 1 OR max(version) <> count(*)) AS broken"""
_APPLIED = "SELECT projection, sum(events)::bigint AS events FROM projection_offsets GROUP BY projection ORDER BY projection"
_BOARD = "SELECT airport, hour, scheduled, departed, cancelled, on_time, delay_minutes FROM delay_board"
_AIRCRAFT = "SELECT tail_number, departures, arrivals, air_minutes, miles, last_airport, last_seen FROM aircraft_utilisation"


class Finding(NamedTuple):
    """One thing that was checked, whether it holds, and the numbers."""

    holds: bool
    said: str


async def prove(pool: asyncpg.Pool, bootstrap: str, topic: str, flights: list[Flight], events: int) -> list[Finding]:
    """Check everything that the demo promises; `events` is how many the flights should have become."""
    log = dict(await pool.fetchrow(_LOG) or {})
    broken = await pool.fetchval(_STREAMS)
    dense = (log["events"], log["first"], log["last"], log["ids"]) == (events, 1, events, events)
    applied = {row["projection"]: row["events"] for row in await pool.fetch(_APPLIED)}
    ids = {row["id"] for row in await pool.fetch("SELECT id::text FROM events")}
    published, repeated, disorder = await asyncio.to_thread(_read_topic, bootstrap, topic)
    board = {tuple(row) for row in await pool.fetch(_BOARD)}
    aircraft = {tuple(row) for row in await pool.fetch(_AIRCRAFT)}
    return [
        Finding(
            dense, f"log: {log['events']:,} events of {events:,}, positions {log['first']:,} … {log['last']:,} without a gap"
        ),
        Finding(broken == 0, f"streams: {log['streams']:,}, versions 1 … n in {log['streams'] - broken:,} of them"),
        Finding(
            published == ids and not repeated and not disorder,
            f"topic: {len(published):,} events, {len(ids - published):,} missing, {repeated:,} twice, {disorder:,} out of order",
        ),
        *(Finding(count == events, f"{name}: {count:,} events applied, each once") for name, count in applied.items()),
        _same("delay_board", board, fold_board(flights)),
        _same("aircraft_utilisation", aircraft, fold_aircraft(flights)),
    ]


def fold_board(flights: list[Flight]) -> set[tuple[Any, ...]]:
    """Compute the delay board from the rows of the CSV, without events."""
    rows: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for flight in flights:
        row = rows[flight.origin, flight.local_hour]
        row["scheduled"] += 1
        if flight.departed_at is None:
            row["cancelled"] += 1
        else:
            row["departed"] += 1
            row["on_time"] += flight.departure_delay <= ON_TIME_MINUTES
            row["delay_minutes"] += flight.departure_delay
    none_if_never = {
        key: (row["departed"], row["on_time"], row["delay_minutes"]) if row["departed"] else (None, None, None)
        for key, row in rows.items()
    }
    return {
        (*key, row["scheduled"], none_if_never[key][0], row["cancelled"] or None, *none_if_never[key][1:])
        for key, row in rows.items()
    }


def fold_aircraft(flights: list[Flight]) -> set[tuple[Any, ...]]:
    """Compute what each aircraft did from the rows of the CSV, without events."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    last: dict[str, tuple[datetime, str]] = {}
    for flight in flights:
        tail_number = flight.stream_id.partition("-")[2]
        for kind, at, airport in (
            ("departures", flight.departed_at, flight.origin),
            ("arrivals", flight.arrived_at, flight.dest),
        ):
            if at is None:
                continue
            sums[tail_number][kind] += 1
            if tail_number not in last or at >= last[tail_number][0]:
                last[tail_number] = (at, airport)
        if flight.arrived_at is not None:
            sums[tail_number]["air_minutes"] += flight.air_minutes or 0
            sums[tail_number]["miles"] += flight.miles
    return {
        (
            tail_number,
            row["departures"],
            *((row["arrivals"], row["air_minutes"], row["miles"]) if row["arrivals"] else (None, None, None)),
            last[tail_number][1],
            last[tail_number][0],
        )
        for tail_number, row in sums.items()
    }


def _same(name: str, actual: set[tuple[Any, ...]], expected: set[tuple[Any, ...]]) -> Finding:
    said = f"{name}: {len(actual):,} rows, {len(expected):,} in the fold of the CSV, {len(actual ^ expected):,} differ"
    if actual != expected:
        said += f" (read model {sorted(actual - expected, key=str)[:1]}, fold {sorted(expected - actual, key=str)[:1]})"
    return Finding(actual == expected, said)


def _read_topic(bootstrap: str, topic: str) -> tuple[set[str], int, int]:
    """Read a topic's committed records: their event ids, how many came twice, and how many out of order."""
    consumer = Consumer(
        client_settings(bootstrap)
        | {
            "group.id": "flights-proof",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    seen: set[str] = set()
    repeated = disorder = 0
    last: dict[int | None, int] = {}
    with translated_kafka("to read the topic back"):
        try:
            partitions = set(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
            while partitions:
                for message in consumer.consume(5000, 0.5):
                    error = message.error()
                    if error is not None:
                        if error.code() != KafkaError._PARTITION_EOF:
                            raise RuntimeError(error)
                        partitions.discard(message.partition() or 0)
                        continue
                    headers: dict[str, bytes] = dict(message.headers() or ())  # type: ignore[arg-type]
                    event_id, position = headers["ce_id"].decode(), int(headers["ce_globalposition"])
                    repeated += event_id in seen
                    disorder += position <= last.get(message.partition(), 0)
                    seen.add(event_id)
                    last[message.partition()] = position
        finally:
            consumer.close()
    return seen, repeated, disorder
