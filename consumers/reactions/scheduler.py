"""Appends what a reaction scheduled, when it is due."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from ...schemas import Unavailable
from ...schemas.retry import Backoff
from ...store.postgres import PostgresEventStore

__all__ = ["Scheduler"]

logger = logging.getLogger(__name__)


class Scheduler:
    """Appends the scheduled events of one reaction when they are due, by the database's clock.

    Run as many as you like: each event is appended once. It looks at the latest after `poll_s`, and whenever the event that it
    knows to be next is due.

    Attributes: `appended` counts since the start.
    """

    def __init__(
        self,
        store: PostgresEventStore,
        reaction: str,
        *,
        poll_s: float = 1.0,
        batch_events: int = 100,
        give_up_after_s: float = 300.0,
    ) -> None:
        self.appended = 0
        self._store = store
        self._reaction = reaction
        self._poll_s = poll_s
        self._batch_events = batch_events
        self._backoff = Backoff(give_up_after_s=give_up_after_s)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask for an end after the batch that is under way."""
        self._stop.set()

    async def run(self) -> None:
        """Append what is due until `stop()`.

        Raises:
            Unavailable: Postgres was away for longer than `give_up_after_s`.
        """
        while not self._stop.is_set():
            try:
                pause_s = await self._append_due()
                self._backoff.reset()
            except Unavailable as error:
                if not self._backoff.failing:
                    logger.warning("scheduler waits: %s", error, extra={"reaction": self._reaction})
                delay_s = self._backoff.next_delay_s()
                if delay_s is None:
                    raise
                pause_s = delay_s
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()

    async def _append_due(self) -> float:
        """Append what is due; return how long to wait for more."""
        appended = await self._store.reactions.append_due(self._reaction, limit=self._batch_events)
        self.appended += appended
        if appended == self._batch_events:
            return 0.0
        next_s = await self._store.reactions.next_due_in_s(self._reaction)
        # One that is overdue is being appended by another scheduler.
        return self._poll_s if next_s is None else min(self._poll_s, max(next_s, 0.05))
