"""The append queue: concurrent appends share round trips, a full queue makes callers wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from ..schemas import Unavailable
from .batch import AppendRequest, Outcome

__all__ = ["AppendQueue"]


class AppendQueue:
    """Sends appends in batches: the first goes at once, those that arrive while it is under way go together in the next.

    One batch is under way at a time. `take` takes the next one from those that wait, in the order of their calls, and leaves
    out whose callers have gone. `record` writes it, trying again while its server is away, and returns one outcome for each part.
    """

    def __init__(
        self,
        take: Callable[[deque[AppendRequest]], list[AppendRequest]],
        record: Callable[[list[AppendRequest]], Awaitable[Sequence[Outcome]]],
        *,
        max_waiting_bytes: int,
    ) -> None:
        self._take = take
        self._record = record
        self._max_waiting_bytes = max_waiting_bytes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[AppendRequest] = deque()
        self._held_bytes = 0  # of all requests from their arrival to their outcome
        self._outside: deque[tuple[asyncio.Future[None], int]] = deque()  # callers who wait for room, and their bytes
        self._sending = False  # a batch is under way
        self._sender: asyncio.Task[None] | None = None  # sends what waits; held here so that it is not collected

    @property
    def sending(self) -> bool:
        """Whether a batch is under way."""
        return self._sending

    @property
    def held_bytes(self) -> int:
        """Bytes of the requests that wait or are under way."""
        return self._held_bytes

    async def send(self, request: AppendRequest) -> Sequence[Outcome]:
        """Send a request with the next batch, and return its outcomes, one for each part. Waits while the queue is full.

        Raises:
            Unavailable: the store was away for too long.
            EventspineError: the store refuses the request.
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
            return await self._record([request])
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
            while batch := self._take(self._waiting):
                await self._send(batch)
        except asyncio.CancelledError:  # the loop is closing
            for request in self._waiting:
                _pending(request).cancel()
            raise
        finally:
            self._sender = None
            self._send_waiting()

    async def _send(self, batch: list[AppendRequest]) -> None:
        try:
            outcomes = await self._record(batch)
        except asyncio.CancelledError:
            for request in batch:
                _pending(request).cancel()
            raise
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, Unavailable):
                # The store refuses something in this batch; send each alone, so that the others pass.
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


def _pending(request: AppendRequest) -> asyncio.Future[Sequence[Outcome]]:
    assert request.done is not None
    return request.done
