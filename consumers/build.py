"""Builds a projection from the log, part by part: many processes, each with the streams whose hash falls to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from ..schemas import EventType, PinnedType, StoredEvent, Unavailable
from ..schemas.privacy import KeyRing
from ..schemas.retry import Backoff, wait_or_raise
from ..schemas.upcasting import Upcaster
from .decoding import Decoder
from .engine import Engine
from .places import Item, Partition
from .projection import Projection
from .sink import Sink
from .stored import StoredReader

__all__ = ["PartBuilder", "PartsOfLog"]

logger = logging.getLogger(__name__)

_BATCH_BYTES: Final = 32_000_000


class PartsOfLog(Protocol):
    """The log, read by parts of its streams."""

    async def read_part(
        self,
        from_position: int,
        to_position: int,
        *,
        part: int,
        parts: int,
        categories: Sequence[str],
        event_types: Sequence[str],
        max_bytes: int,
    ) -> tuple[list[StoredEvent], int]:
        """Return the events of one part of all streams, in order, and the position up to which that is all."""


class PartBuilder:
    """Builds one of `parts` parts of a projection, up to a position. Options are those of `Consumer`.

    Only events that are handled are read. A crash loses and repeats nothing: run again, it goes on where it was.

    Attributes: `position` says how far it is.
    """

    def __init__(
        self,
        projection: Projection,
        sink: Sink,
        log: PartsOfLog,
        part: int,
        parts: int,
        *,
        load_event_types: Callable[[], Awaitable[Sequence[PinnedType]]],
        event_types: Sequence[EventType] = (),
        upcasters: Sequence[Upcaster] = (),
        keys: KeyRing | None = None,
        batch_events: int = 20_000,
        give_up_after_s: float = 300.0,
    ) -> None:
        self.position = 0
        self._projection = projection
        self._sink = sink
        self._log = log
        self._part = part
        self._parts = parts
        self._batch_events = batch_events
        self._backoff = Backoff(give_up_after_s=give_up_after_s)
        self._decoder = Decoder(load_event_types, event_types=event_types, upcasters=upcasters, keys=keys)
        self._reader = StoredReader(projection, self._decoder)
        self._me = Partition("", part)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask for an end after the batch that is under way."""
        self._stop.set()

    async def run(self, to_position: int) -> None:
        """Build until all events up to a position are in, or until `stop()`.

        Raises:
            ProjectionError: a handler failed and the projection is to halt then, or a table is not as declared.
            Fenced: another process builds this part.
            Unavailable: Postgres was away for longer than `give_up_after_s`.
        """
        while not self._stop.is_set() and self.position < to_position:
            try:
                await self._build(to_position)
            except Unavailable as error:
                if not self._backoff.failing:
                    logger.warning("build waits: %s", error, extra={"projection": self._projection.name})
                await wait_or_raise(self._backoff, error, self._stop)

    async def _build(self, to_position: int) -> None:
        await self._sink.prepare(self._projection)
        await self._decoder.load()
        engine = Engine(self._projection, self._sink, keep=self._reader.kept, read=self._reader.parked_items)
        await engine.claim({self._me: ""})
        position = self.position = engine.places[self._me].next_offset
        reading = asyncio.create_task(self._read(position, to_position))
        writing: asyncio.Task[None] | None = None
        try:
            while position < to_position and not self._stop.is_set():
                events, reached = await reading
                reading = asyncio.create_task(self._read(reached, to_position))
                items = await self._reader.items(self._me, events)
                if not items or items[-1].position < reached:  # nothing of ours up to there
                    items.append(Item(self._me, reached - 1, reached, 0, "", "", None))
                staged = engine.stage(items)
                if writing is not None:
                    await writing
                    self.position = position
                position = reached
                writing = asyncio.create_task(engine.write(staged)) if staged is not None else None
                self._backoff.reset()
            if writing is not None:
                await writing
            self.position = position
        finally:
            for task in (reading, writing):
                if task is not None:
                    task.cancel()
                    with suppress(asyncio.CancelledError, Exception):  # an older error ends this life
                        await task

    async def _read(self, position: int, to_position: int) -> tuple[list[StoredEvent], int]:
        if position >= to_position:
            return [], position
        return await self._log.read_part(
            position,
            min(to_position, position + self._batch_events * self._parts),
            part=self._part,
            parts=self._parts,
            categories=self._projection.categories,
            event_types=sorted(self._projection.event_types),
            max_bytes=_BATCH_BYTES,
        )
