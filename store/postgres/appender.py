"""The append queue: concurrent appends share round trips, a lost connection is retried, a full queue makes callers wait."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from ...schemas import Unavailable
from ...schemas.postgres import load_sql, translated
from ...schemas.retry import Backoff, wait_or_raise
from .batch import AppendRequest, Outcome, arguments, cut_batch, outcomes_of

__all__ = ["Appender"]

logger = logging.getLogger(__name__)

_APPEND = load_sql("eventspine.store.postgres", "sql/append_batch")
_LINGER_S = 0.05
_WORTH_HALVING = 32  # events; below, a round trip costs more than its callers' encoding


class Appender:
    """Sends appends in batches: the first goes at once, those that arrive while it is under way go together in the next.

    One batch is under way at a time, so appends are recorded in the order of their calls. When many wait, half of them make a
    batch: while Postgres records it, the callers of the half before encode their next events.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        *,
        max_batch_events: int,
        max_batch_bytes: int,
        max_waiting_bytes: int,
        hash_chain: bool,
        retry_s: float,
    ) -> None:
        self._pool = pool
        self._max_batch_events = max_batch_events
        self._max_batch_bytes = max_batch_bytes
        self._max_waiting_bytes = max_waiting_bytes
        self._hash_chain = hash_chain
        self._retry_s = retry_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[AppendRequest] = deque()
        self._held_bytes = 0  # of all requests from their arrival to their outcome
        self._outside: deque[tuple[asyncio.Future[None], int]] = deque()  # callers who wait for room, and their bytes
        self._most_waiting = 0  # events, since the queue was empty
        self._sending = False  # a batch is under way
        self._sender: asyncio.Task[None] | None = None  # sends what waits; held here so that it is not collected
        self._reaper: asyncio.TimerHandle | None = None
        self._lent = 0  # how often a connection was kept
        self._spare: PoolConnectionProxy | None = None
        self._releases: set[asyncio.Task[None]] = set()

    @property
    def held_bytes(self) -> int:
        """Bytes of the requests that wait or are under way."""
        return self._held_bytes

    async def send(self, request: AppendRequest) -> Sequence[Outcome]:
        """Send a request with the next batch, and return its outcomes, one for each part. Waits while the queue is full.

        Raises:
            Unavailable: Postgres was away for `retry_s` seconds.
            EventspineError: Postgres refuses the request.
        """
        if self._loop is None:  # kept: asking for it costs a system call each time
            self._loop = asyncio.get_running_loop()
        if self._outside or self._held_bytes >= self._max_waiting_bytes:
            await self._wait_for_room(self._loop, request.bytes)
        else:
            self._held_bytes += request.bytes
        try:
            if not self._sending:
                return await self._send_alone(request)
            request.done = self._loop.create_future()
            self._waiting.append(request)
            return await request.done
        finally:
            self._give_room(request.bytes)

    async def _send_alone(self, request: AppendRequest) -> Sequence[Outcome]:
        """Send what finds nobody under way from its caller's own task: a task for it would take two more turns of the loop."""
        self._sending = True
        try:
            return await self._append_with_retry([request])
        finally:
            self._send_waiting()

    def _send_waiting(self) -> None:
        """Let a task send what came meanwhile, if anything did."""
        while self._waiting and _pending(self._waiting[0]).done():  # its caller has gone
            self._waiting.popleft()
        self._sending = bool(self._waiting)
        if self._sending:
            self._sender = asyncio.create_task(self._work(), name="eventspine-append")

    async def _wait_for_room(self, loop: asyncio.AbstractEventLoop, size: int) -> None:
        turn = loop.create_future()
        self._outside.append((turn, size))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):
                    self._outside.remove((turn, size))
            else:  # room was given to us just before
                self._give_room(size)
            raise

    def _give_room(self, size: int) -> None:
        """Take back what a request held, and let in those who wait longest."""
        self._held_bytes -= size
        while self._outside and self._held_bytes < self._max_waiting_bytes:
            turn, wanted = self._outside.popleft()
            if not turn.done():  # else its caller was cancelled
                self._held_bytes += wanted
                turn.set_result(None)

    async def _work(self) -> None:
        """Send batch after batch until nobody waits. Every request taken gets its outcomes or an error."""
        try:
            while batch := self._take():
                await self._send(batch)
        except asyncio.CancelledError:  # the loop is closing
            for request in self._waiting:
                _pending(request).cancel()
            raise
        finally:
            self._sender = None
            self._send_waiting()

    def _take(self) -> list[AppendRequest]:
        """Take the next batch: all that wait, or half of the most that waited at once."""
        waiting = sum([request.events for request in self._waiting])
        self._most_waiting = max(self._most_waiting, waiting) if waiting else 0
        limit = min(self._max_batch_events, max(_WORTH_HALVING, -(-self._most_waiting // 2)))
        return cut_batch(self._waiting, max_events=limit, max_bytes=self._max_batch_bytes)

    async def _send(self, batch: list[AppendRequest]) -> None:
        try:
            outcomes = await self._append_with_retry(batch)
        except asyncio.CancelledError:
            for request in batch:
                _pending(request).cancel()
            raise
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, Unavailable):
                # Postgres refuses something in this batch; send each alone, so that the others pass.
                for number, request in enumerate(batch):
                    try:
                        await self._send([request])
                    except asyncio.CancelledError:
                        for waiting in batch[number:]:
                            _pending(waiting).cancel()
                        raise
                return
            for request in batch:
                if not _pending(request).done():
                    _pending(request).set_exception(error)
        else:
            first = 0
            for request in batch:
                following = first + len(request.parts)
                if not _pending(request).done():
                    _pending(request).set_result(outcomes[first:following])
                first = following

    async def _append_with_retry(self, batch: list[AppendRequest]) -> Sequence[Outcome]:
        backoff = Backoff(give_up_after_s=self._retry_s)
        parameters = arguments(batch, hash_chain=self._hash_chain)
        while True:
            try:
                async with translated(), self._connection() as connection:
                    return outcomes_of(await connection.fetchrow(_APPEND, *parameters))
            except Unavailable as error:
                if not backoff.failing:
                    logger.warning("append waits for Postgres: %s", error, extra={"appends": len(batch)})
                await wait_or_raise(backoff, error)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PoolConnectionProxy]:
        """Borrow a connection, and keep it for the next batch for a moment, unless it is the pool's only one.

        Giving it back costs a round trip each time where the pool resets its connections, as a caller's own does.
        """
        connection, self._spare = self._spare, None
        if connection is None:
            connection = await self._pool.acquire()
        try:
            yield connection
        except BaseException:
            await self._pool.release(connection)
            raise
        if self._pool.get_max_size() == 1:
            await self._pool.release(connection)
            return
        self._spare = connection
        self._lent += 1
        if self._reaper is None:
            self._watch_spare()

    def _watch_spare(self, lent: int = -1) -> None:
        """Give the spare connection back when it was not used since the last look."""
        assert self._loop is not None
        self._reaper = None
        if lent == self._lent and self._spare is not None:
            release = self._loop.create_task(self._give_back(self._spare), name="eventspine-release")
            self._releases.add(release)
            release.add_done_callback(self._releases.discard)
            self._spare = None
        elif self._spare is not None or self._sending:
            self._reaper = self._loop.call_later(_LINGER_S, self._watch_spare, self._lent)

    async def _give_back(self, connection: PoolConnectionProxy) -> None:
        try:
            async with translated():
                await self._pool.release(connection)
        except Unavailable as error:  # it was cut meanwhile; the pool makes another
            logger.info("a connection was lost: %s", error)


def _pending(request: AppendRequest) -> asyncio.Future[Sequence[Outcome]]:
    assert request.done is not None
    return request.done
