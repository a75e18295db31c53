"""Builds a projection anew beside the live one, and puts it in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import asyncpg

from .build import PartBuilder, PartsOfLog
from .differences import TableDifferences, compare_tables
from .log_consumer import LOG, EventLog, LogConsumer
from .places import Partition
from .projection import Projection
from .sides import BUILD, OLD, Sides
from .sink import PostgresSink

__all__ = ["Rebuild"]

PartitionsOf = Callable[[Sequence[str]], Mapping[str, Partition]]


class Log(PartsOfLog, EventLog, Protocol):
    """The log, as a rebuild reads it."""

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""


class Rebuild:
    """Rebuilds one projection whose tables are in Postgres, while the live ones are read and written as before.

        rebuild = Rebuild(projection, pool, log, load_event_types=log.pinned_types)
        parts, to_position = await rebuild.begin(parts=2)
        await asyncio.gather(*(rebuild.build_part(part, parts, to_position) for part in range(parts)))
        await rebuild.complete(to_position)
        await rebuild.swap()

    The parts are built from the log, each by whoever calls `build_part`, in this process or others. All steps can be run again
    after a crash, and go on where they were. `options` are those of `Consumer` that are about events: `load_event_types`,
    `event_types`, `upcasters`, `keys`, `batch_events` and `give_up_after_s`. The pool needs three connections.

    The build's tables lie in the schema `{name}@build`, and the ones before, after the exchange, in `{name}@old`.
    """

    def __init__(self, projection: Projection, pool: asyncpg.Pool, log: Log, **options: Any) -> None:
        self._projection = projection
        self._pool = pool
        self._log = log
        self._options = options
        self._sides = Sides(pool, projection.name)
        self._sink = PostgresSink(pool, side=BUILD)

    async def begin(self, parts: int = 1, *, fresh: bool = False) -> tuple[int, int]:
        """Begin, or go on with what was begun, unless it is to be `fresh`; return the number of parts, and up to where to build.

        A build that was begun has as many parts as it was begun with, or one if they are all complete.
        """
        if fresh:
            await self._sides.drop(BUILD)
        begun = await self._sides.begin(parts)
        await self._sink.prepare(self._projection)
        return begun, await self._log.last_position()

    async def build_part(self, part: int, parts: int, to_position: int) -> None:
        """Build one part (0, 1, …) up to a position.

        Raises:
            ProjectionError: a handler failed and the projection is to halt then.
            Fenced: another process builds this part.
            Unavailable: Postgres was away for too long.
        """
        await self.builder(part, parts).run(to_position)

    def builder(self, part: int, parts: int) -> PartBuilder:
        """Return what builds one part, and can be stopped."""
        return PartBuilder(self._projection, self._sink, self._log, part, parts, **self._options)

    async def progress(self) -> int:
        """Return up to which position all parts are built."""
        places = await self._sides.places(BUILD)
        return min(places.next_offsets.values()) if places else 0

    async def complete(self, to_position: int) -> None:
        """Make one of the parts, which are built to a position, and follow the log to its end."""
        await self._sides.merge(to_position)
        await self.catch_up()

    async def catch_up(self, to_position: int = 0) -> None:
        """Build a complete build on: to the end of the log, and to a position at least.

        Raises:
            ProjectionError: there is no build, or not all of its parts are complete.
        """
        places = self._sides.need_complete(await self._sides.places(BUILD))
        end = max(to_position, await self._log.last_position())
        if end > places.next_offsets[LOG]:
            await LogConsumer(self._projection, self._sink, self._log, to_position=end, **self._options).run()

    async def swap(self, partitions_of: PartitionsOf | None = None) -> int:
        """Put the build in the place of the live tables; see `Sides.swap`. Return up to which position it is built."""
        await self.catch_up()  # most of it before anybody waits
        return await self._sides.swap(self._catch_up_behind, partitions_of)

    async def roll_back(self) -> None:
        """Exchange the live tables and those before; see `Sides.roll_back`."""
        await self._sides.roll_back()

    async def compare(self, *, examples: int = 5) -> list[TableDifferences]:
        """Compare the live tables with the build, row by row, as they are at one moment."""
        return await compare_tables(self._pool, self._projection, BUILD, examples=examples)

    async def drop(self, *, old: bool = False) -> None:
        """Drop the build, or the tables before."""
        await self._sides.drop(OLD if old else BUILD)

    async def _catch_up_behind(self, to_position: int) -> None:
        if to_position > await self.progress():
            await self.catch_up(to_position)
