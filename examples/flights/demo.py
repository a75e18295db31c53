"""The demo: CSV to events to Postgres to Kafka to two read models, and the proof that nothing was lost or repeated."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ...connect import connect, open_pool
from ...relay.cursor import cursor_topic, read_cursor
from ...schemas import Event, IntegrityError, Unavailable, load_event_types
from ...schemas.kafka import topic_of
from ...schemas.postgres import translated
from ...store.postgres import PostgresEventStore
from .data import Flight, events_of_month, flights_of_month
from .projections import AircraftUtilisation, DelayBoard
from .proof import prove
from .show import plot, show_tables
from .workers import Workers, workers

__all__ = ["ensure_database", "run_demo"]

_IN_FLIGHT = 1024
_PROJECTIONS = (DelayBoard, AircraftUtilisation)
_APPLIED = "SELECT coalesce(sum(events), 0)::bigint FROM projection_offsets WHERE projection = $1"


async def run_demo(
    *,
    postgres_dsn: str,
    kafka_bootstrap: str,
    output: Path,
    months: Sequence[int] = (1,),
    topic_prefix: str = "flights.",
    console: Console | None = None,
) -> bool:
    """Bring the flights of these months (1, or 1 … n) from the CSV to proven read models; return whether the proof holds.

    Can be stopped at any moment and run again: it goes on where it was. A log that holds more months than asked for is taken
    with all it has.
    """
    console = console or Console()
    started = time.monotonic()
    flights, events = load(months, console)
    async with connect(postgres_dsn, event_types=load_event_types(files(__package__) / "schemas"), max_connections=5) as store:
        if await store.last_position() > len(events):
            console.print("the log holds more than that already: going on with the whole year")
            months = tuple(range(1, 13))
            flights, events = load(months, console)
        async with open_pool(postgres_dsn, max_connections=3) as pool:
            environment = {
                "EVENTSPINE_POSTGRES_DSN": postgres_dsn,
                "EVENTSPINE_KAFKA_BOOTSTRAP": kafka_bootstrap,
                "EVENTSPINE_TOPIC_PREFIX": topic_prefix,
            }
            commands = {"relay": ["relay", "run"]}
            commands |= {each.name: ["consume", f"{__package__}:{each.__name__}"] for each in _PROJECTIONS}
            async with workers(commands, environment, output / "logs") as running:
                board = Board(store, pool, kafka_bootstrap, topic_prefix, len(events), console)
                await board.follow(append_all(store, events), running)
            elapsed = time.monotonic() - started
            await show_tables(pool, console)
            drawn = await plot(pool, output, "January 2013" if len(months) == 1 else "2013")
            console.print("plot: " + ", ".join(map(str, drawn)), soft_wrap=True, highlight=False)
            findings = await prove(pool, kafka_bootstrap, topic_of("Aircraft", topic_prefix), flights, len(events))
    for finding in findings:
        console.print(f"[green]✓[/] {finding.said}" if finding.holds else f"[bold red]✗[/] {finding.said}", highlight=False)
    proven = all(finding.holds for finding in findings)
    rate = f"{board.new:,} new events in {elapsed:.1f} s"
    console.print(f"[bold]{'proven' if proven else 'NOT proven'}[/]: {len(events):,} events; {rate}", highlight=False)
    return proven


def load(months: Sequence[int], console: Console) -> tuple[list[Flight], list[tuple[str, Event]]]:
    with console.status("reading flights"):
        flights = [flight for month in months for flight in flights_of_month(month)]
        events = [event for month in months for event in events_of_month(month)]
    console.print(f"{len(flights):,} flights, {len(events):,} events", highlight=False)
    return flights, events


async def append_all(store: PostgresEventStore, events: Sequence[tuple[str, Event]]) -> None:
    """Append what the log does not hold yet, many at a time.

    The store sends appends in the order in which they are called, so the log is always the beginning of the list: after a stop
    the rest follows. Each append says which version it expects, the count of the stream's events before it.

    Raises:
        IntegrityError: the log holds other events.
    """
    done = await store.last_position()
    if done:
        last = await store.read_all(done - 1, 1)
        if last[0].event_id != events[done - 1][1].event_id:
            raise IntegrityError("this database's log was not written by this demo; give the demo a database of its own")
    versions: dict[str, int] = {}
    room = asyncio.Semaphore(_IN_FLIGHT)

    async def append(stream_id: str, event: Event, expected_version: int) -> None:
        try:
            await store.append(stream_id, "Aircraft", [event], expected_version=expected_version)
        finally:
            room.release()

    async with asyncio.TaskGroup() as appends:
        for number, (stream_id, event) in enumerate(events):
            version = versions.get(stream_id, 0)
            versions[stream_id] = version + 1
            if number >= done:
                await room.acquire()
                appends.create_task(append(stream_id, event, version))


class Board:
    """The progress bars: events appended, published, and applied by each projection, with rate and lag."""

    def __init__(
        self, store: PostgresEventStore, pool: asyncpg.Pool, bootstrap: str, prefix: str, total: int, console: Console
    ) -> None:
        self.new = 0
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
        self.new = self._total - counts["append"]
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
                    counts = await self._look()
                    notes = {name: f"{rates[name].of(count):>7,.0f}/s" for name, count in counts.items()}
                    for name in list(counts)[1:]:
                        notes[name] += f"  lag {counts['append'] - counts[name]:>7,}"
                    for name, bar in bars.items():
                        progress.update(bar, completed=counts[name], note=notes[name])
                    self._say(counts, notes)
            finally:
                task.cancel()
                watching.cancel()

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
