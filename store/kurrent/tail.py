"""The end of the log as this process knows it: one listener for all subscriptions, which also keeps streams' rules up to date."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from ...schemas import Unavailable
from ...schemas.opaque import raw_content
from ...schemas.postgres import load_sql, translated
from ...schemas.retry import Backoff, wait_or_raise
from ..postgres import PostgresEventStore
from .names import stream_id_of, stream_name_of
from .rules import METADATA_TYPE, SETTINGS, TOMBSTONE_TYPE, Rules, Told

__all__ = ["Tail"]

logger = logging.getLogger(__name__)

_TOLD = load_sql("eventspine.store.kurrent", "sql/told")
_SETTINGS_ID = stream_id_of(SETTINGS)
_POLL_S = 1.0
_BATCH = 1000


class Tail:
    """Follows the log while it runs. `position` never falls; what lies up to it is visible, and in `rules`."""

    def __init__(self, store: PostgresEventStore, rules: Rules) -> None:
        self._store = store
        self._rules = rules
        self._changed = asyncio.Condition()
        self.position = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Catch up with the log, and follow it inside the block.

        Raises:
            Unavailable: Postgres is away.
        """
        await self._advance()
        following = asyncio.create_task(self._follow(), name="eventspine-kurrent-tail")
        try:
            yield
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

    async def beyond(self, position: int) -> int:
        """Wait until there is something behind a position; return the end of the log."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.position > position)
        return self.position

    async def _follow(self) -> None:
        backoff = Backoff(give_up_after_s=float("inf"))
        while True:
            try:
                async with self._store.log.listen() as signal:
                    while True:
                        await self._advance()
                        if backoff.failing:
                            logger.info("the door follows the log again")
                            backoff.reset()
                        await signal.wait(_POLL_S)
            except Unavailable as error:
                if not backoff.failing:
                    logger.warning("the door waits for Postgres: %s", error)
                await wait_or_raise(backoff, error)
            except Exception:  # without it, every subscription would wait for ever and nobody knew
                logger.exception("the door can't follow the log; it tries again")
                await asyncio.sleep(_POLL_S)

    async def _advance(self) -> None:
        end = await self._store.last_position()
        after = self.position
        while after < end:
            async with translated():
                rows = await self._store.pool.fetch(_TOLD, after, end, [METADATA_TYPE, TOMBSTONE_TYPE], _BATCH, _SETTINGS_ID)
            self._rules.learn(
                Told(position, stream_name_of(stream_id), event_type, raw_content(payload)[1])
                for position, stream_id, event_type, payload in rows
            )
            after = rows[-1][0] if len(rows) == _BATCH else end
        if end > self.position:
            async with self._changed:
                self.position = end
                self._changed.notify_all()
