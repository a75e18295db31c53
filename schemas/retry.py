"""How long to wait before trying again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Backoff", "wait_or_raise"]


class Backoff:
    """Bounded, jittered, exponential waiting after failures.

    `next_delay_s()` gives the seconds to wait, or None when failures have lasted longer than `give_up_after_s`; `reset()`
    says that all is well again. Delays double from `first_s` to `most_s`, each multiplied by 0.5 … 1.0 at random, so that
    many clients of one server do not come back in step.
    """

    def __init__(
        self,
        *,
        first_s: float = 0.05,
        most_s: float = 2.0,
        give_up_after_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._give_up_after_s = give_up_after_s
        self._clock = clock
        self._failing_since: float | None = None
        self._failures = 0

    @property
    def failing(self) -> bool:
        """Whether the last thing heard was a failure."""
        return self._failing_since is not None

    def next_delay_s(self) -> float | None:
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since >= self._give_up_after_s:
            return None
        delay = min(self._most_s, self._first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret

    def reset(self) -> None:
        self._failing_since = None
        self._failures = 0


async def wait_or_raise(backoff: Backoff, error: Exception, stop: asyncio.Event | None = None) -> None:
    """Wait as long as the backoff says, or until `stop` is set; or raise the error if it has lasted too long."""
    delay_s = backoff.next_delay_s()
    if delay_s is None:
        raise error
    if stop is None:
        await asyncio.sleep(delay_s)
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await stop.wait()
