"""Competing consumers: a group of workers that share a category's events, each stream with one worker at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import uuid4

import asyncpg

from ...schemas import Event, Fenced, SettingsError, Unavailable
from ...schemas.postgres import Connection, load_sql, translated
from ...schemas.retry import Backoff, wait_or_raise
from .log import AppendSignal
from .store import PostgresEventStore

__all__ = ["Bucket", "Failure", "Handled", "WorkerGroup", "bucket_positions"]

logger = logging.getLogger(__name__)

_SQL = "eventspine.store.postgres"
_CREATE = load_sql(_SQL, "sql/create_group")
_KEEP_LEASE = load_sql(_SQL, "sql/keep_lease")
_RELEASE = load_sql(_SQL, "sql/release_buckets")
_TAKE = load_sql(_SQL, "sql/take_buckets")
_HELD = load_sql(_SQL, "sql/held_buckets")
_READ_BUCKETS = load_sql(_SQL, "sql/read_buckets")
_READ_POSITIONS = load_sql(_SQL, "sql/read_positions")
_PARKED_STREAMS = load_sql(_SQL, "sql/parked_streams")
_TO_RETRY = load_sql(_SQL, "sql/parked_to_retry")
_PARK = load_sql(_SQL, "sql/park_events")
_UNPARK = load_sql(_SQL, "sql/unpark_events")
_END_RETRY = load_sql(_SQL, "sql/end_retry")
_ADVANCE = load_sql(_SQL, "sql/advance_buckets")

_MAX_REASON_CHARS = 2000


class Bucket(NamedTuple):
    """A share of the category's streams, as its present owner sees it."""

    number: int
    epoch: int
    last_position: int


class Failure(NamedTuple):
    """An event that is to be parked; `tries` 0 = it was not tried, because one before it in its stream is parked."""

    event: Event
    reason: str
    tries: int


class Handled(NamedTuple):
    """What came of a batch."""

    done: list[Event]
    failures: list[Failure]


class WorkerGroup:
    """One worker of a group. Run as many as you like, in any number of processes: they share the category's streams among them.

    A stream's events are handled in order, by one worker at a time; different streams side by side, up to `concurrency`. Each
    event is handled at least once: a worker that dies between handling and noting it leaves its batch to the next owner, so
    effects should be idempotent (the event's id is a good key). An event whose handler raises is tried `max_tries` times with
    growing pauses; then it is parked, and what follows in its stream is parked behind it, in order, while all others go on.
    `eventspine groups` lists parked events, tries them again or discards them.

    `buckets` (fixed when the group is made) is the most workers that can share the work. A worker that falls silent for `lease_s`
    loses its buckets to the others. New groups begin behind `from_position`.
    """

    def __init__(
        self,
        store: PostgresEventStore,
        group_id: str,
        category: str,
        handle: Callable[[Event], Awaitable[None]],
        *,
        buckets: int = 32,
        concurrency: int = 8,
        batch_events: int = 100,
        max_tries: int = 5,
        first_pause_s: float = 0.1,
        lease_s: float = 15.0,
        poll_s: float = 1.0,
        give_up_after_s: float = 60.0,
        from_position: int = 0,
        worker_id: str | None = None,
    ) -> None:
        self.group_id = group_id
        self.category = category
        self.worker_id = worker_id or f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.buckets: dict[int, Bucket] = {}
        self.events = 0  # handled by this worker
        self._store = store
        self._handle = handle
        self._bucket_count = buckets
        self._concurrency = concurrency
        self._batch_events = batch_events
        self._max_tries = max_tries
        self._first_pause_s = first_pause_s
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._give_up_after_s = give_up_after_s
        self._from_position = from_position
        self._stopping = asyncio.Event()
        self._signal: AppendSignal | None = None

    def stop(self) -> None:
        """Ask for the end; the batch under way is finished, and the buckets are free for others at once."""
        self._stopping.set()
        if self._signal is not None:
            self._signal.notify()

    async def run(self) -> None:
        """Take a share of the streams and handle their events until stopped.

        Raises:
            SettingsError: the group exists with another category or number of buckets.
            Unavailable: Postgres was away for `give_up_after_s` seconds.
        """
        backoff = Backoff(give_up_after_s=self._give_up_after_s)
        while not self._stopping.is_set():
            try:
                await self._create()
                await self._work(backoff)
            except Unavailable as error:
                logger.warning("group %s waits for Postgres: %s", self.group_id, error)
                await wait_or_raise(backoff, error)

    async def _work(self, backoff: Backoff) -> None:
        async with self._store.log.listen() as self._signal:
            lease = asyncio.create_task(self._keep_lease(), name="eventspine-lease")
            try:
                while not self._stopping.is_set():
                    if lease.done():
                        lease.result()  # raises why it ended
                    busy = await self._step()
                    backoff.reset()
                    if not busy:
                        await self._signal.wait(min(self._poll_s, self._lease_s / 3))
            finally:
                lease.cancel()
                with suppress(asyncio.CancelledError, Unavailable):
                    await lease
        await self._execute(_RELEASE, self.group_id, self.worker_id, self._lease_s, True)

    async def _create(self) -> None:
        rows: list[asyncpg.Record] = []
        while not rows:  # none: another worker made it just now, and our snapshot is from before
            async with translated():
                rows = await self._pool.fetch(_CREATE, self.group_id, self.category, self._bucket_count, self._from_position)
        [(category, buckets), *others] = rows
        if others or (category, buckets) != (self.category, self._bucket_count):
            raise SettingsError(
                f"group {self.group_id!r} exists with category {category!r} and {buckets} buckets, not {self.category!r} and "
                f"{self._bucket_count}: give it those, or another name"
            )

    async def _step(self) -> bool:
        """Balance, then handle one batch; tell whether there was anything to do."""
        await self._execute(_KEEP_LEASE, self.group_id, self.worker_id, self._lease_s)
        await self._execute(_RELEASE, self.group_id, self.worker_id, self._lease_s, False)
        await self._execute(_TAKE, self.group_id, self.worker_id, self._lease_s)
        async with translated():
            rows = await self._pool.fetch(_HELD, self.group_id, self.worker_id)
        self.buckets = {row["bucket"]: Bucket(*row) for row in rows}
        if not self.buckets:
            return False
        retried = await self._retry_parked()
        end = await self._store.last_position()  # events become visible in order: up to here, nothing can come later
        held = list(self.buckets.values())
        if all(bucket.last_position >= end for bucket in held):
            return retried
        events = await self._store.read_rows(
            _READ_BUCKETS, self.category, self._bucket_count,
            [bucket.number for bucket in held], [bucket.last_position for bucket in held], end, self._batch_events,
        )  # fmt: skip
        async with translated():
            parked = await self._pool.fetch(_PARKED_STREAMS, self.group_id, list({event.stream_id for event in events}))
        handled = await self._handle_streams(events, frozenset(row["stream_id"] for row in parked), tries_before={})
        positions = bucket_positions(held, events, end=end, full=len(events) == self._batch_events)
        await self._note(held, positions, handled)
        self.events += len(handled.done)
        return True

    async def _retry_parked(self) -> bool:
        async with translated():
            rows = await self._pool.fetch(_TO_RETRY, self.group_id, list(self.buckets))
        if not rows:
            return False
        events = await self._store.read_rows(_READ_POSITIONS, [row["global_position"] for row in rows])
        tries = {row["global_position"]: row["tries"] for row in rows}
        handled = await self._handle_streams(events, frozenset(), tries_before=tries)
        held = list(self.buckets.values())
        stay = {bucket.number: bucket.last_position for bucket in held}
        await self._note(held, stay, handled, retried=[row["stream_id"] for row in rows])
        self.events += len(handled.done)
        return True

    async def _handle_streams(
        self, events: Sequence[Event], parked: frozenset[str], *, tries_before: Mapping[int, int]
    ) -> Handled:
        streams: dict[str, list[Event]] = {}
        for event in events:
            streams.setdefault(event.stream_id, []).append(event)
        handled = Handled([], [])
        turns = asyncio.Semaphore(self._concurrency)

        async def handle_stream(stream_id: str) -> None:
            failed = stream_id in parked
            for event in streams[stream_id]:
                if failed:
                    handled.failures.append(Failure(event, "waits behind a parked event of its stream", 0))
                    continue
                async with turns:
                    failure = await self._try(event, tries_before.get(event.global_position, 0))
                if failure is None:
                    handled.done.append(event)
                else:
                    handled.failures.append(failure)
                    failed = True

        async with asyncio.TaskGroup() as tasks:
            for stream_id in streams:
                tasks.create_task(handle_stream(stream_id))
        return handled

    async def _try(self, event: Event, tries_before: int) -> Failure | None:
        backoff = Backoff(first_s=self._first_pause_s, most_s=10.0)
        for tries in range(1, self._max_tries + 1):
            try:
                await self._handle(event)
            except Exception as error:
                where = {"group": self.group_id, "stream_id": event.stream_id, "global_position": event.global_position}
                if tries == self._max_tries:
                    logger.exception("group %s parks stream %s", self.group_id, event.stream_id, extra=where)
                    reason = f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARS].replace("\0", "")
                    return Failure(event, reason, tries_before + tries)
                logger.warning("group %s: try %d failed: %s", self.group_id, tries, error, extra=where)
                await asyncio.sleep(backoff.next_delay_s() or 0)
            else:
                return None
        raise AssertionError("unreachable")

    async def _note(
        self, held: Sequence[Bucket], positions: Mapping[int, int], handled: Handled, *, retried: Sequence[str] = ()
    ) -> None:
        """Note what was handled and what is parked, both or neither."""
        try:
            async with translated(), self._pool.acquire() as connection, connection.transaction():
                await self._advance(connection, held, positions)
                if retried:
                    await connection.execute(_UNPARK, self.group_id, [event.global_position for event in handled.done])
                await self._park(connection, handled.failures)
                if retried:
                    await connection.execute(_END_RETRY, self.group_id, retried)
        except Fenced as error:  # the next step finds out which buckets are left
            logger.warning("group %s: %s", self.group_id, error)

    async def _advance(self, connection: Connection, held: Sequence[Bucket], to: Mapping[int, int]) -> None:
        moved = await connection.fetch(
            _ADVANCE,
            self.group_id,
            [bucket.number for bucket in held],
            [bucket.epoch for bucket in held],
            [to[bucket.number] for bucket in held],
        )
        if len(moved) != len(held):
            raise Fenced("another worker took over a bucket of this batch; its events will be handled again")

    async def _park(self, connection: Connection, failures: Sequence[Failure]) -> None:
        if failures:
            await connection.execute(
                _PARK,
                self.group_id,
                self._bucket_count,
                [failure.event.global_position for failure in failures],
                [failure.event.stream_id for failure in failures],
                [failure.reason for failure in failures],
                [failure.tries for failure in failures],
            )

    async def _keep_lease(self) -> None:
        """Keep the lease while a handler takes its time. A worker that is frozen as a whole loses it."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            await self._execute(_KEEP_LEASE, self.group_id, self.worker_id, self._lease_s)

    @property
    def _pool(self) -> asyncpg.Pool:
        return self._store.pool

    async def _execute(self, statement: str, *parameters: object) -> None:
        async with translated():
            await self._pool.execute(statement, *parameters)


def bucket_positions(held: Sequence[Bucket], events: Sequence[Event], *, end: int, full: bool) -> dict[int, int]:
    """Return how far each bucket has come with a batch: to the end of the log that was looked at, or, if the batch was cut, to
    its last event, up to which it holds everything of all the buckets."""
    reached = events[-1].global_position if full else end
    return {bucket.number: max(bucket.last_position, reached) for bucket in held}
