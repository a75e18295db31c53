"""A projection straight from the log in Postgres, without Kafka."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol

from ..schemas import EventType, Fenced, IntegrityError, PinnedType, StoredEvent, Unavailable
from ..schemas.privacy import KeyRing
from ..schemas.retry import Backoff, wait_or_raise
from ..schemas.upcasting import Upcaster
from .counters import Counters
from .decoding import Decoder
from .engine import Engine
from .places import Partition, Place
from .projection import Projection
from .sink import Sink
from .stored import StoredReader

__all__ = ["LOG", "EventLog", "LogConsumer", "Signal"]

logger = logging.getLogger(__name__)

LOG: Final = Partition("", 0)
"""The log as a partition: its offsets are positions, less one."""

_LOOK_EVERY_S: Final = 1.0
_POLL_S: Final = 0.5
_BATCH_BYTES: Final = 16_000_000


class Signal(Protocol):
    """Wakes a follower of the log."""

    async def wait(self, timeout_s: float) -> None:
        """Return at the next append, or after `timeout_s`. Raises Unavailable when the connection is lost."""


class EventLog(Protocol):
    """What follows a position in the log."""

    async def read_stored(self, from_position: int, limit: int, max_bytes: int) -> list[StoredEvent]:
        """Return what follows a position, in order."""

    def listen(self) -> AbstractAsyncContextManager[Signal]:
        """Hold a connection that hears of appends."""


class LogConsumer:
    """Runs one projection over the log, exactly once into the read model.

    One process at a time: when a second one begins, it takes over, and the first one ends. To scale, run a `Consumer`: it goes on
    where this one has come. Not the other way round. Options and attributes are those of `Consumer`; with `to_position`, it ends
    by itself when it has come there.
    """

    def __init__(
        self,
        projection: Projection,
        sink: Sink,
        log: EventLog,
        *,
        load_event_types: Callable[[], Awaitable[Sequence[PinnedType]]],
        event_types: Sequence[EventType] = (),
        upcasters: Sequence[Upcaster] = (),
        keys: KeyRing | None = None,
        batch_events: int = 10_000,
        give_up_after_s: float = 300.0,
        to_position: int | None = None,
    ) -> None:
        self.state = "starting"
        self.counters = Counters()
        self._projection = projection
        self._sink = sink
        self._log = log
        self._batch_events = batch_events
        self._to_position = to_position
        self._backoff = Backoff(give_up_after_s=give_up_after_s)
        self._decoder = Decoder(load_event_types, event_types=event_types, upcasters=upcasters, keys=keys)
        self._reader = StoredReader(projection, self._decoder)
        self._engine: Engine | None = None
        self._stop = asyncio.Event()

    @property
    def places(self) -> dict[Partition, Place]:
        return self._engine.places if self._engine is not None else {}

    @property
    def parked_streams(self) -> int:
        return self._engine.parked_streams if self._engine is not None else 0

    def stop(self) -> None:
        """Ask for an end after the batch that is under way."""
        self._stop.set()

    async def run(self) -> None:
        """Follow the log until `stop()`.

        Raises:
            ProjectionError: a handler failed and the projection is to halt then, or a table is not as declared.
            IntegrityError: the log is another one, or positions are missing in it.
            Fenced: another process runs this projection.
            Unavailable: Postgres was away for longer than `give_up_after_s`.
        """
        while not self._stop.is_set():
            try:
                await self._follow()
            except Unavailable as error:
                self.counters.retries += 1
                if not self._backoff.failing:
                    logger.warning("consumer waits: %s", error, extra={"projection": self._projection.name})
                self.state = "waiting"
                await wait_or_raise(self._backoff, error, self._stop)
            except Fenced as error:
                raise Fenced(f"{error}: one process at a time runs a projection from the log") from error
        self.state = "stopped"

    async def _follow(self) -> None:
        await self._sink.prepare(self._projection)
        await self._decoder.load()
        engine = self._engine = Engine(self._projection, self._sink, keep=self._reader.kept, read=self._reader.parked_items)
        await engine.claim({LOG: ""})
        writing: asyncio.Task[None] | None = None
        looked_at, paused = float("-inf"), False
        try:
            async with self._log.listen() as signal:
                while not self._stop.is_set():
                    position = engine.reached[LOG].next_offset
                    began = time.perf_counter()
                    events = [] if paused else await self._log.read_stored(position, self._batch_events, _BATCH_BYTES)
                    consumed = time.perf_counter()
                    self._check(position, events)
                    items = await self._reader.items(LOG, events)
                    staged = engine.stage(items)
                    if events:
                        self.counters.took(began, consumed)
                    if writing is not None:
                        await writing
                        writing = None
                    if staged is not None:
                        writing = asyncio.create_task(self.counters.write(engine, staged))
                    done = self._to_position is not None and engine.reached[LOG].next_offset >= self._to_position
                    if done or time.monotonic() - looked_at > _LOOK_EVERY_S:
                        if writing is not None:
                            await writing
                            writing = None
                        paused = await engine.look_at_parked()
                        looked_at = time.monotonic()
                    if self._backoff.failing:
                        logger.info("consumer goes on", extra={"projection": self._projection.name})
                        self._backoff.reset()
                    self.state = "paused" if paused else "consuming"
                    if done:
                        self._stop.set()
                    elif not events:
                        if writing is not None:
                            await writing
                            writing = None
                        await signal.wait(_POLL_S)
        finally:
            if writing is not None:
                with suppress(Exception):  # an older error ends this life, or a stop does: then it is written
                    await writing
            engine.release([LOG])

    def _check(self, position: int, events: Sequence[StoredEvent]) -> None:
        """Check that no position is missing."""
        for expected, event in enumerate(events, position + 1):
            if event.global_position != expected:
                raise IntegrityError(
                    f"the log has position {event.global_position} where {expected} follows: events are missing; projection "
                    f"{self._projection.name} has written nothing behind position {position}"
                )
