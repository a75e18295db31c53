"""A writer of a random history: the steps that it takes, and what it says of each; in this process or in one of its own.

Steps are data. The ids of events follow from history, writer and step, so that an heir can ask again for what a writer that was
killed had asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from eventspine import (
    AppendCondition,
    ConcurrencyError,
    ConditionFailed,
    Event,
    ExpectedVersion,
    PostgresEventStore,
    Query,
    QueryItem,
    StreamAppend,
    Unavailable,
)
from eventspine.schemas.postgres import translated
from tests.event_types import paid, placed

CALLERS_TABLE = "CREATE TABLE callers (history int, writer int, step int)"
_CUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name IN ('writer', 'reader')
   AND ($1 OR (query LIKE '%append_events(%' AND state <> 'idle'))"""


# Steps


@dataclass(frozen=True)
class Part:
    """Events for one stream. A number as expected version is added to the version that the writer sees: 0 is right, 3 is not."""

    stream_id: str
    events: int
    tags: tuple[str, ...]
    expected: ExpectedVersion


@dataclass(frozen=True)
class Append:
    """Append to one or several streams, if nothing was recorded that matches `unless` since the writer looked."""

    parts: tuple[Part, ...]
    unless: QueryItem | None = None


@dataclass(frozen=True)
class Retry:
    """Ask again for an earlier append of this writer: the `back`-th before."""

    back: int


@dataclass(frozen=True)
class Transaction:
    """A transaction of the writer's own, on a connection of its own."""

    wrote_before: bool
    commits: bool


@dataclass(frozen=True)
class Cut:
    """Terminate backends while the append is under way: those that are appending, or all of writers and readers."""

    after_us: int
    everyone: bool


@dataclass(frozen=True)
class Kill:
    """kill -9 the writer's process while the append is under way."""

    after_us: int


@dataclass(frozen=True)
class Step:
    asks: Append | Retry
    within: Transaction | None = None
    meanwhile: Cut | Kill | None = None


# What a writer says


class Key(NamedTuple):
    """An append, however often it is asked for: by the step that asked first."""

    history: int
    writer: int
    step: int


class Asked(NamedTuple):
    """An append is about to be sent."""

    step: int
    key: Key
    parts: tuple[StreamAppend, ...]
    condition: AppendCondition | None
    within: Transaction | None


class Refused(NamedTuple):
    """What the error said."""

    stream_id: str
    expected: ExpectedVersion
    actual: int
    by_condition: bool


class Told(NamedTuple):
    """What came of it. `undone`: its transaction was rolled back, or died before COMMIT was sent."""

    fate: Literal["acked", "refused", "undone", "unknown"]
    copies: tuple[Event, ...] = ()
    refused: Refused | None = None


class Severed(NamedTuple):
    """So many backends were terminated."""

    backends: int


Note = Asked | Told | Severed


class Writer:
    """Takes steps one after another. `asked` are the appends of the same writer before it died."""

    def __init__(
        self, number: int, history: int, dsn: str, store: PostgresEventStore, note: Callable[[Note], None], asked: Sequence[Asked]
    ) -> None:
        self._number = number
        self._history = history
        self._dsn = dsn
        self._store = store
        self._note = note
        self._asked = {each.key: each for each in asked}
        self._own: asyncpg.Connection | None = None

    async def take(self, steps: Sequence[Step], first: int = 0) -> None:
        try:
            for number, step in enumerate(steps[first:], first):
                asked = await self._decide(number, step)
                if asked is None:
                    continue
                self._asked[asked.key] = asked
                if isinstance(step.meanwhile, Cut):
                    async with self._cut(step.meanwhile):
                        await self._ask(asked)
                else:
                    await self._ask(asked)
        finally:
            self._disconnect()

    async def _ask(self, asked: Asked) -> None:
        self._note(asked)
        try:
            if asked.within is None:
                told = Told("acked", await self.append(asked))
            else:
                told = await self._append_within(asked, asked.within)
        except ConcurrencyError as error:
            refused = Refused(error.stream_id, error.expected, error.actual, isinstance(error, ConditionFailed))
            told = Told("refused", refused=refused)
        self._note(told)

    async def _decide(self, number: int, step: Step) -> Asked | None:
        """Return what a step asks for, by what the writer sees now; None for the retry of nothing."""
        if isinstance(step.asks, Retry):
            earlier = list(self._asked.values())
            return earlier[-1 - step.asks.back % len(earlier)]._replace(step=number, within=step.within) if earlier else None
        condition = None
        if step.asks.unless is not None:
            query = Query(step.asks.unless)
            seen = await self._store.read(query, limit=1, backwards=True)
            condition = AppendCondition(query, after=seen[0].global_position if seen else 0)
        key = Key(self._history, self._number, number)
        parts, events = [], 0
        for part in step.asks.parts:
            expected = part.expected
            if isinstance(expected, int):
                last = await self._store.read_stream(part.stream_id, limit=1, backwards=True)
                expected += last[0].version if last else 0
            made = [_event(key, events + n, part.tags) for n in range(part.events)]
            parts.append(StreamAppend(part.stream_id, part.stream_id.partition("-")[0], made, expected))
            events += part.events
        return Asked(number, key, tuple(parts), condition, step.within)

    async def append(self, asked: Asked, connection: asyncpg.Connection | None = None) -> tuple[Event, ...]:
        """Append by the call that fits."""
        if len(asked.parts) == 1:
            return tuple(await self._store.append(*asked.parts[0], condition=asked.condition, connection=connection))
        copies = await self._store.append_streams(asked.parts, condition=asked.condition, connection=connection)
        return tuple(event for part in copies for event in part)

    async def _append_within(self, asked: Asked, within: Transaction) -> Told:
        try:
            async with translated():
                if self._own is None or self._own.is_closed():
                    self._own = await asyncpg.connect(self._dsn, server_settings={"application_name": "writer"})
                transaction = self._own.transaction()
                await transaction.start()
                if within.wrote_before:
                    await self._own.execute("INSERT INTO callers VALUES ($1, $2, $3)", *asked.key)
                try:
                    copies = await self.append(asked, self._own)
                except ConcurrencyError:
                    await transaction.rollback()
                    raise
                if not within.commits:
                    await transaction.rollback()
                    return Told("undone")
        except Unavailable:
            self._disconnect()
            return Told("undone")
        try:
            async with translated():
                await transaction.commit()
        except Unavailable:
            self._disconnect()
            return Told("unknown")
        return Told("acked", copies)

    def _disconnect(self) -> None:
        if self._own is not None:
            self._own.terminate()
            self._own = None

    @asynccontextmanager
    async def _cut(self, cut: Cut) -> AsyncIterator[None]:
        connection = await asyncpg.connect(self._dsn)

        async def strike() -> None:
            await asyncio.sleep(cut.after_us / 1e6)
            self._note(Severed(await connection.fetchval(_CUT, cut.everyone)))

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(strike())
                yield
        finally:
            await connection.close()


def _event(key: Key, number: int, tags: tuple[str, ...]) -> Event:
    event_id = UUID(int=(key.history + 1) << 64 | key.writer << 32 | key.step << 16 | number)
    return msgspec.structs.replace(paid(number) if number % 2 else placed(), event_id=event_id, tags=tags)


# A process of its own


def run_in_process(
    number: int, history: int, dsn: str, steps: Sequence[Step], first: int, asked: Sequence[Asked], says: Connection
) -> None:
    """Be a writer's process: take the steps from `first` on, and say through the pipe what is asked and what came of it."""
    logging.disable(logging.WARNING)  # that connections are lost is no news here

    async def run() -> None:
        async with open_store(dsn, "writer", max_size=2) as store:
            await Writer(number, history, dsn, store, says.send, asked).take(steps, first)

    asyncio.run(run())


@asynccontextmanager
async def open_store(dsn: str, name: str, *, max_size: int) -> AsyncIterator[PostgresEventStore]:
    """Open a store on connections of that name, which are cut at the end."""
    pool = await asyncpg.create_pool(dsn, min_size=0, max_size=max_size, server_settings={"application_name": name})
    try:
        yield PostgresEventStore(pool)
    finally:
        pool.terminate()
