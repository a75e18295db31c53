"""A subscription to the log: catch up, then follow."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from ..schemas import Event, Unavailable
from ..schemas.retry import Backoff, wait_or_raise

__all__ = ["Following", "Listened", "LogSubscription", "Signal"]

logger = logging.getLogger(__name__)


class Signal(Protocol):
    """Wakes a follower when something was appended. A hint only: it can be lost, positions can't."""

    async def wait(self, timeout_s: float) -> None:
        """Return at the next append, or after `timeout_s`. Raises Unavailable when it has to be made anew."""


class Listened(Protocol):
    """A log that can be listened to."""

    def listen(self) -> AbstractAsyncContextManager[Signal]:
        """Hear of appends for as long as the context lasts."""


class Following(NamedTuple):
    """What comes after a position: events, the position up to which there are no others, and whether a whole batch came."""

    events: list[Event]
    end: int
    full: bool


class LogSubscription:
    """See `EventStore.subscribe`. Positions are the truth: after a failure it reads on behind the last event given out."""

    def __init__(
        self,
        log: Listened,
        read: Callable[[int], Awaitable[Following]],
        *,
        from_position: int,
        poll_s: float,
        retry_s: float,
        on_caught_up: Callable[[], None],
    ) -> None:
        self._log = log
        self._read = read
        self._position = max(from_position, 0)
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._on_caught_up = on_caught_up
        self._caught_up = False
        self._held: deque[Event] = deque()
        self._end_of_held = self._position
        self._batches = self._follow()

    @property
    def position(self) -> int:
        """Up to where everything was given out; a checkpoint to go on from, once the last event is dealt with."""
        return self._position

    @property
    def caught_up(self) -> bool:
        """Whether the end of the log was reached; False again when more than a batch comes in at once."""
        return self._caught_up and not self._held

    def __aiter__(self) -> LogSubscription:
        return self

    async def __anext__(self) -> Event:
        while not self._held:
            self._position = self._end_of_held
            following = await anext(self._batches)
            self._held.extend(following.events)
            self._end_of_held = following.end
        event = self._held.popleft()
        self._position = event.global_position if self._held else self._end_of_held
        return event

    async def aclose(self) -> None:
        """Give the connection back that listens."""
        await self._batches.aclose()

    async def _follow(self) -> AsyncGenerator[Following, None]:
        backoff = Backoff(give_up_after_s=self._retry_s)
        after = self._position
        while True:
            try:
                async with self._log.listen() as signal:
                    while True:
                        following = await self._read(after)
                        if backoff.failing:
                            logger.info("subscription goes on", extra={"from_position": after})
                            backoff.reset()
                        if following.full:
                            self._caught_up = False
                        if following.end > after:
                            after = following.end
                            yield following
                            continue
                        if not self._caught_up:
                            self._caught_up = True
                            self._on_caught_up()
                        await signal.wait(self._poll_s)
            except Unavailable as error:
                if not backoff.failing:
                    logger.warning("subscription waits for the store: %s", error, extra={"from_position": after})
                await wait_or_raise(backoff, error)
