"""The demo's proof: the log against the CSV, the topic against the log, the read models against a fold of the CSV."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from eventspine.schemas.kafka import client_settings, kafka_error, translated_kafka

from .data import Flight, Step, event_id_of
from .projections import ON_TIME_MINUTES

__all__ = ["Finding", "fold_aircraft", "fold_board", "prove"]

_LOG = "SELECT global_position, id, stream_id, version FROM events ORDER BY global_position"
_APPLIED = "SELECT coalesce(sum(events), 0)::bigint FROM projection_offsets WHERE projection = $1"
_BOARD = "SELECT airport, day, hour, scheduled, departed, cancelled, on_time, delay_minutes FROM delay_board"
_AIRCRAFT = "SELECT tail_number, departures, arrivals, air_minutes, miles, last_airport, last_seen FROM aircraft_utilisation"


class Finding(NamedTuple):
    """One thing that was checked, whether it holds, and the numbers."""

    holds: bool
    said: str


async def prove(
    pool: asyncpg.Pool, bootstrap: str, topic: str, flights: Sequence[Flight], steps: Sequence[Step], cut: datetime
) -> list[Finding]:
    """Check everything that the demo promises: `steps` are the events that the flights should have become before `cut`."""
    log = LogCheck(flights, steps)
    async with pool.acquire() as connection, connection.transaction():
        async for row in connection.cursor(_LOG, prefetch=10_000):
            log.see(row["global_position"], row["id"].bytes, row["stream_id"], row["version"])
    on_kafka = await asyncio.to_thread(_read_topic, bootstrap, topic, log.ids)
    board = {tuple(row) for row in await pool.fetch(_BOARD)}
    aircraft = {tuple(row) for row in await pool.fetch(_AIRCRAFT)}
    applied = {name: await pool.fetchval(_APPLIED, name) for name in ("delay_board", "aircraft_utilisation")}
    return [
        *log.findings(),
        on_kafka.finding(),
        *(Finding(n == len(steps), f"{name}: {n:,} of {len(steps):,} events applied, each once") for name, n in applied.items()),
        _same("delay_board", board, fold_board(flights, cut)),
        _same("aircraft_utilisation", aircraft, fold_aircraft(flights, cut)),
    ]


class LogCheck:
    """Compares the log, event by event in the order of positions, with the events that the CSV's rows should have become."""

    def __init__(self, flights: Sequence[Flight], steps: Sequence[Step]) -> None:
        self.ids: list[bytes] = []  # by position
        self._expected: dict[str, list[bytes]] = {}  # by stream and version
        self._total = len(steps)
        self._gaps = self._misplaced = 0
        self._versions: Counter[str] = Counter()
        self._broken: set[str] = set()
        for step in steps:
            flight = flights[step.flight]
            self._expected.setdefault(flight.stream_id, []).append(event_id_of(flight, step.event_type).bytes)

    def see(self, position: int, event_id: bytes, stream_id: str, version: int) -> None:
        self.ids.append(event_id)
        self._gaps += position != len(self.ids)
        self._versions[stream_id] += 1
        if version != self._versions[stream_id]:
            self._broken.add(stream_id)
        expected = self._expected.get(stream_id, [])
        self._misplaced += not (0 < version <= len(expected) and expected[version - 1] == event_id)

    def findings(self) -> list[Finding]:
        count, streams = len(self.ids), len(self._versions)
        return [
            Finding(
                count == self._total and not self._gaps,
                f"log: {count:,} of {self._total:,} events, positions 1 … {count:,}, {self._gaps:,} out of place",
            ),
            Finding(
                streams == len(self._expected) and not self._broken,
                f"streams: {streams:,} of {len(self._expected):,}, {len(self._broken):,} of them not at versions 1 … n",
            ),
            Finding(
                not self._misplaced and len(set(self.ids)) == count,
                f"events: {count - self._misplaced:,} of {self._total:,} are those of the CSV, by id, each at its stream and "
                f"version in the order of time; {count - len(set(self.ids)):,} ids twice",
            ),
        ]


class TopicCheck:
    """Compares the records of a topic with the log."""

    def __init__(self, ids: Sequence[bytes]) -> None:
        self._ids = ids
        self._seen = bytearray(len(ids) + 1)  # by position
        self._records = self._foreign = self._repeated = self._disorder = 0
        self._last: dict[int | None, int] = {}

    def see(self, partition: int | None, position: int, event_id: bytes) -> None:
        self._records += 1
        if not 0 < position <= len(self._ids) or self._ids[position - 1] != event_id:
            self._foreign += 1
            return
        self._repeated += self._seen[position]
        self._seen[position] = 1
        self._disorder += position <= self._last.get(partition, 0)
        self._last[partition] = position

    def finding(self) -> Finding:
        missing = len(self._ids) - sum(self._seen)
        return Finding(
            not (missing or self._foreign or self._repeated or self._disorder),
            f"topic: {self._records:,} committed records in {len(self._last)} partitions; of the log's {len(self._ids):,} events "
            f"{missing:,} missing, {self._repeated:,} twice, {self._disorder:,} out of order, {self._foreign:,} unknown",
        )


def fold_board(flights: Sequence[Flight], cut: datetime) -> set[tuple[Any, ...]]:
    """Compute the delay board from the rows of the CSV, without events."""
    rows: dict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for flight in flights:
        row = rows[flight.origin, flight.day, flight.hour]
        row["scheduled"] += 1
        if flight.departed_at is None or flight.departure_delay is None:
            row["cancelled"] += 1
        elif flight.departed_at < cut:
            row["departed"] += 1
            row["on_time"] += flight.departure_delay <= ON_TIME_MINUTES
            row["delay_minutes"] += flight.departure_delay
    # A column that no event has touched is NULL.
    return {
        (
            *key,
            row["scheduled"],
            row["departed"] or None,
            row["cancelled"] or None,
            row["on_time"] if row["departed"] else None,
            row["delay_minutes"] if row["departed"] else None,
        )
        for key, row in rows.items()
    }


def fold_aircraft(flights: Sequence[Flight], cut: datetime) -> set[tuple[Any, ...]]:
    """Compute what each aircraft did from the rows of the CSV, without events."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    last: dict[str, tuple[datetime, str]] = {}
    for flight in flights:
        tail_number = flight.stream_id.partition("-")[2]
        for kind, at, airport in (
            ("departures", flight.departed_at, flight.origin),
            ("arrivals", flight.arrived_at, flight.dest),
        ):
            if at is None or at >= cut:
                continue
            sums[tail_number][kind] += 1
            if kind == "arrivals":
                sums[tail_number]["air_minutes"] += flight.air_minutes or 0
                sums[tail_number]["miles"] += flight.miles
            if tail_number not in last or at >= last[tail_number][0]:
                last[tail_number] = (at, airport)
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


def _read_topic(bootstrap: str, topic: str, ids: Sequence[bytes]) -> TopicCheck:
    """Read a topic's committed records from the beginning to the end."""
    consumer = Consumer(
        client_settings(bootstrap)
        | {
            "group.id": "flights-proof",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    check = TopicCheck(ids)
    with translated_kafka("to read the topic back"):
        try:
            partitions = set(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
            while partitions:
                for message in consumer.consume(5000, 0.5):
                    error = message.error()
                    if error is not None:
                        if error.code() != KafkaError._PARTITION_EOF:
                            raise kafka_error(error, "to read the topic back")
                        partitions.discard(message.partition() or 0)
                        continue
                    headers: dict[str, bytes] = dict(message.headers() or ())  # type: ignore[arg-type]
                    event_id = bytes.fromhex(headers["ce_id"].decode().replace("-", ""))
                    check.see(message.partition(), int(headers["ce_globalposition"]), event_id)
        finally:
            consumer.close()
    return check
