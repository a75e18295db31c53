"""What a reader of read models asks of the log and of the tables that a relay keeps beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import asyncpg

from ...schemas.postgres import load_sql, translated

__all__ = ["Published", "Withheld"]

_SQL = "eventspine.store.postgres"
_TOPICS = load_sql(_SQL, "sql/published_topics")
_WITHHELD = load_sql(_SQL, "sql/withheld")
_STREAMS_BETWEEN = load_sql(_SQL, "sql/streams_between")
_ALL_CATEGORIES = load_sql(_SQL, "sql/all_categories")
_LAST_POSITION = load_sql(_SQL, "sql/last_position")
_LOG_LAG = load_sql(_SQL, "sql/log_lag")


class Withheld(NamedTuple):
    """An event that the relay has parked, and why; or published late since, in a record of this number."""

    late: int | None
    reason: str


class Published:
    """Where events of the log are on Kafka, as the relay of that topic prefix and name put them there."""

    def __init__(self, pool: asyncpg.Pool, *, topic_prefix: str = "events.", relay_name: str = "relay") -> None:
        self.topic_prefix = topic_prefix
        self._pool = pool
        self._relay_id = f"{topic_prefix}{relay_name}"

    async def topics(self) -> dict[str, int]:
        """Return how many partitions each topic has; a category without published events has none."""
        async with translated():
            rows = await self._pool.fetch(_TOPICS, self._relay_id)
        return {row["topic"]: row["partitions"] for row in rows}

    async def withheld(self, positions: Collection[int]) -> dict[int, Withheld]:
        """Return which of these events were not published in order.

        The relay notes so before it publishes what is behind them.
        """
        async with translated():
            rows = await self._pool.fetch(_WITHHELD, self._relay_id, list(positions))
        return {row["global_position"]: Withheld(row["late"], row["reason"]) for row in rows}

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""
        async with translated():
            return int(await self._pool.fetchval(_LAST_POSITION))

    async def categories(self) -> list[str]:
        """Return the categories that have events."""
        async with translated():
            return [row["stream_type"] for row in await self._pool.fetch(_ALL_CATEGORIES)]

    async def streams_between(self, behind: Mapping[str, int], to_position: int) -> dict[str, int]:
        """Return the last position of each stream in a part of the log; `behind` says for each category where it begins.

        What was not published in order is left out, unless it is at `to_position`.
        """
        async with translated():
            rows = await self._pool.fetch(_STREAMS_BETWEEN, list(behind), list(behind.values()), to_position, self._relay_id)
        return {row["stream_id"]: row["global_position"] for row in rows}

    async def lag_behind(self, position: int) -> tuple[int, float]:
        """Return how many events the log has behind a position, and how long ago the first was recorded, in seconds."""
        async with translated():
            row = await self._pool.fetchrow(_LOG_LAG, position)
        assert row is not None
        return row["events"], row["seconds"]
