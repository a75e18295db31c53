"""The demo: CSV to events to Postgres to Kafka to two read models, and the proof that nothing was lost or repeated."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from eventspine import Event, EventStore, PostgresEventStore, Unavailable, connect, load_event_types
from eventspine.connect import open_pool
from eventspine.relay.cursor import cursor_topic, read_cursor
from eventspine.schemas.kafka import topic_of
from eventspine.schemas.postgres import translated

from .data import Flight, Step, cut_of, event_of, read_flights, steps_of, still_missing
from .projections import AircraftUtilisation, DelayBoard
from .proof import prove
from .show import plot, show_tables
from .workers import Workers, workers

__all__ = ["append_missing", "ensure_database", "run_demo"]

_IN_FLIGHT = 1024
_PROJECTIONS = (DelayBoard, AircraftUtilisation)
_APPLIED = "SELECT coalesce(sum(events), 0)::bigint FROM projection_offsets WHERE projection = $1"
_LAST_OF_EACH_STREAM = "SELECT DISTINCT ON (stream_id) stream_id, version, id FROM events ORDER BY stream_id, version DESC"


async def run_demo(
    *,
    postgres_dsn: str,
    kafka_bootstrap: str,
    output: Path,
    months: Sequence[int] = (1,),
    days: int | None = None,
    topic_prefix: str = "flights.",
    console: Console | None = None,
) -> bool:
    """Bring the flights of these months (1, or 1 … n) from the CSV to proven read models; return whether the proof holds.

    `days` takes the first days of the year instead. Can be stopped at any moment, even by kill -9, and run again: it goes on
    where it was. A log that holds more than asked for is continued to the end of the year.
    """
    console = console or Console()
    started = time.monotonic()
    end = date(2013, 1, 1) + timedelta(days=days) if days else date(2013 + max(months) // 12, max(months) % 12 + 1, 1)
    flights, steps = load(end, console)
    async with connect(postgres_dsn, event_types=load_event_types(files(__package__) / "schemas"), max_connections=5) as store:
        if await store.last_position() > len(steps):
            console.print("the log holds more than that already: going on with the whole year")
            end = date(2014, 1, 1)
            flights, steps = load(end, console)
        async with open_pool(postgres_dsn, max_connections=3) as pool:
            environment = {
                "EVENTSPINE_POSTGRES_DSN": postgres_dsn,
                "EVENTSPINE_KAFKA_BOOTSTRAP": kafka_bootstrap,
                "EVENTSPINE_TOPIC_PREFIX": topic_prefix,
                "EVENTSPINE_RELAY_LEASE_S": "2",  # begun again after a kill, it need not wait for long
            }
            commands = {"relay": ["relay", "run"]}
            commands |= {each.name: ["consume", f"{__package__}:{each.__name__}"] for each in _PROJECTIONS}
            async with workers(commands, environment, output / "logs") as running:
                board = Board(store, pool, kafka_bootstrap, topic_prefix, len(steps), console)
                await board.follow(append_missing(store, pool, flights, steps), running)
            await show_tables(pool, console)
            drawn = await plot(pool, output, f"1 January to {end - timedelta(days=1):%-d %B} 2013")
            console.print("plot: " + ", ".join(map(str, drawn)), soft_wrap=True, highlight=False)
            findings = await prove(pool, kafka_bootstrap, topic_of("Aircraft", topic_prefix), flights, steps, cut_of(end))
    for finding in findings:
        sign = "[green]✓[/]" if finding.holds else "[bold red]✗[/]"
        console.print(f"{sign} {finding.said}", highlight=False, soft_wrap=True)
    proven = all(finding.holds for finding in findings)
    took_s = time.monotonic() - started
    console.print(f"{board.summary()}; with reading, plot and proof {took_s:.1f} s", highlight=False, soft_wrap=True)
    console.print("[bold green]proven[/]" if proven else "[bold red]NOT proven[/]")
    return proven


def load(end: date, console: Console) -> tuple[list[Flight], list[Step]]:
    with console.status("reading flights"):
        flights = read_flights(end)
        steps = steps_of(flights, end)
    console.print(f"{len(flights):,} flights, {len(steps):,} events", highlight=False)
    return flights, steps


async def append_missing(store: EventStore, pool: asyncpg.Pool, flights: Sequence[Flight], steps: Sequence[Step]) -> None:
    """Append what the log does not hold yet, in order, many at a time.

    Each append says which version it expects: how many events of its stream come before it. The store sends appends in the
    order in which they are called, so the log gets the order of the steps.

    Raises:
        IntegrityError: the log holds other events.
        EventspineError: an append failed.
    """
    async with translated():
        rows = await pool.fetch(_LAST_OF_EACH_STREAM)
    recorded = {row["stream_id"]: (row["version"], row["id"]) for row in rows}
    room = asyncio.Semaphore(_IN_FLIGHT)

    async def append(stream_id: str, event: Event, expected_version: int) -> None:
        try:
            await store.append(stream_id, "Aircraft", [event], expected_version=expected_version)
        finally:
            room.release()

    try:
        async with asyncio.TaskGroup() as appends:
            for step, version in still_missing(flights, steps, recorded):
                await room.acquire()
                flight = flights[step.flight]
                appends.create_task(append(flight.stream_id, event_of(flight, step), version))
    except ExceptionGroup as failed:  # when one fails, so do those behind it: the first says why
        raise failed.exceptions[0] from None


class Board:
    """The progress bars: events appended, published, and applied by each projection, with rate and lag."""

    def __init__(
        self, store: PostgresEventStore, pool: asyncpg.Pool, bootstrap: str, prefix: str, total: int, console: Console
    ) -> None:
        self._new = 0
        self._appended_after_s = self._applied_after_s = 0.0
        self._store = store
        self._pool = pool
        self._bootstrap = bootstrap
        self._prefix = prefix
        self._total = total
        self._console = console
        self._last_line = 0.0
        self._published = 0

    async def follow(self, appending: Coroutine[Any, Any, None], running: Workers) -> None:
        """Show how it goes until every event has come to every read model.

        Raises:
            EventspineError: a worker ended, or an append failed.
        """
        rates = {name: Rate() for name in ("append", "relay", *(each.name for each in _PROJECTIONS))}
        counts = await self._look()
        self._new = self._total - counts["append"]
        started = time.monotonic()
        columns = [TextColumn("{task.description:<22}"), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
        with Progress(*columns, TimeElapsedColumn(), console=self._console, disable=not self._console.is_terminal) as progress:
            bars: dict[str, TaskID] = {name: progress.add_task(name, total=self._total, note="") for name in rates}
            task = asyncio.create_task(appending)
            watching = asyncio.create_task(self._watch_relay())
            try:
                while not (task.done() and min(counts.values()) >= self._total):
                    await asyncio.sleep(0.3)
                    for each in (task, watching):
                        if each.done():
                            each.result()
                    running.check_running()
                    with suppress(Unavailable):  # appends, relay and projections retry; each ends by itself if it is for long
                        counts = await self._look()
                    self._applied_after_s = time.monotonic() - started
                    if task.done() and not self._appended_after_s:
                        self._appended_after_s = self._applied_after_s
                    notes = {name: f"{rates[name].of(count):>7,.0f}/s" for name, count in counts.items()}
                    for name in list(counts)[1:]:
                        notes[name] += f"  lag {counts['append'] - counts[name]:>7,}"
                    for name, bar in bars.items():
                        progress.update(bar, completed=counts[name], note=notes[name])
                    self._say(counts, notes)
            finally:
                task.cancel()
                watching.cancel()
                await asyncio.gather(task, watching, return_exceptions=True)

    def summary(self) -> str:
        """How fast it went, by what was new."""
        if not self._new:
            return "nothing was new"
        appended, applied = (f"{after_s:.1f} s" for after_s in (self._appended_after_s, self._applied_after_s))
        rate = self._new / max(self._applied_after_s, 0.001)
        return f"{self._new:,} new events: appended after {appended}, in both read models after {applied} ({rate:,.0f}/s)"

    async def _watch_relay(self) -> None:
        while True:
            with suppress(Unavailable):  # the cursor's topic does not exist before the relay has started
                topic = cursor_topic(self._prefix)
                cursor = await asyncio.to_thread(read_cursor, self._bootstrap, topic, "relay", timeout_s=1)
                self._published = cursor.position
            await asyncio.sleep(0.3)

    async def _look(self) -> dict[str, int]:
        """How far each part has come, from where it keeps that itself."""
        async with translated():
            ready = await self._pool.fetchval("SELECT to_regclass('projection_offsets') IS NOT NULL")
            applied = {each.name: await self._pool.fetchval(_APPLIED, each.name) if ready else 0 for each in _PROJECTIONS}
        published = max(self._published, *applied.values())
        return {"append": await self._store.last_position(), "relay": published} | applied

    def _say(self, counts: dict[str, int], notes: dict[str, str]) -> None:
        """Where no bars can be drawn, say a line every two seconds, and one at the end."""
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line > 2 or min(counts.values()) >= self._total):
            self._last_line = now
            said = "   ".join(f"{name} {count:,} {' '.join(notes[name].split())}" for name, count in counts.items())
            self._console.print(said, soft_wrap=True, highlight=False)


class Rate:
    """Events per second over the last few looks."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=8)

    def of(self, count: int) -> float:
        self._looks.append((time.monotonic(), count))
        (then, before), (now, after) = self._looks[0], self._looks[-1]
        return (after - before) / (now - then) if now > then else 0.0


async def ensure_database(dsn: str, name: str) -> str:
    """Create a database beside the one that the DSN names, if it is missing, and return its DSN."""
    async with translated():
        connection = await asyncpg.connect(dsn)
        try:
            if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name):
                await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
