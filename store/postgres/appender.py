"""Batches of appends to Postgres: a lost connection is retried, and one is kept for the next batch for a moment."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from ...schemas import Unavailable
from ...schemas.postgres import load_sql, translated
from ...schemas.retry import Backoff, wait_or_raise
from ..append_queue import AppendQueue
from ..batch import AppendRequest, Outcome, cut_batch
from .batch import arguments, outcomes_of

__all__ = ["Appender"]

logger = logging.getLogger(__name__)

_APPEND = load_sql("eventspine.store.postgres", "sql/append_batch")
_LINGER_S = 0.05
_WORTH_HALVING = 32  # events; below, a round trip costs more than its callers' encoding


class Appender:
    """Sends appends to Postgres in the batches of an `AppendQueue`, in the order of their calls.

    When many wait, half of them make a batch: while Postgres records it, the callers of the half before encode their next events.
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
        self._hash_chain = hash_chain
        self._retry_s = retry_s
        self._max_batch_events = max_batch_events
        self._max_batch_bytes = max_batch_bytes
        self._most_waiting = 0  # events, since the queue was empty
        self._queue = AppendQueue(self._take, self._append_with_retry, max_waiting_bytes=max_waiting_bytes)
        self.send = self._queue.send
        self._reaper: asyncio.TimerHandle | None = None
        self._lent = 0  # how often a connection was kept
        self._spare: PoolConnectionProxy | None = None
        self._releases: set[asyncio.Task[None]] = set()

    @property
    def held_bytes(self) -> int:
        """Bytes of the requests that wait or are under way."""
        return self._queue.held_bytes

    def _take(self, waiting: deque[AppendRequest]) -> list[AppendRequest]:
        """Take the next batch: all that wait, or half of the most that waited at once."""
        events = sum([request.events for request in waiting])
        self._most_waiting = max(self._most_waiting, events) if events else 0
        limit = min(self._max_batch_events, max(_WORTH_HALVING, -(-self._most_waiting // 2)))
        return cut_batch(waiting, max_events=limit, max_bytes=self._max_batch_bytes)

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
        loop = asyncio.get_running_loop()
        self._reaper = None
        if lent == self._lent and self._spare is not None:
            release = loop.create_task(self._give_back(self._spare), name="eventspine-release")
            self._releases.add(release)
            release.add_done_callback(self._releases.discard)
            self._spare = None
        elif self._spare is not None or self._queue.sending:
            self._reaper = loop.call_later(_LINGER_S, self._watch_spare, self._lent)

    async def _give_back(self, connection: PoolConnectionProxy) -> None:
        try:
            async with translated():
                await self._pool.release(connection)
        except Unavailable as error:  # it was cut meanwhile; the pool makes another
            logger.info("a connection was lost: %s", error)
