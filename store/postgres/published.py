"""What a reader of read models asks of the log and of the tables that a relay keeps beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import asyncpg

from ...schemas.postgres import load_sql, translated

__all__ = ["Published"]

_SQL = "eventspine.store.postgres"
_TOPICS = load_sql(_SQL, "sql/published_topics")
_WITHHELD = load_sql(_SQL, "sql/withheld")
_STREAMS_BETWEEN = load_sql(_SQL, "sql/streams_between")
_ALL_CATEGORIES = load_sql(_SQL, "sql/all_categories")
_LOG_LAG = load_sql(_SQL, "sql/log_lag")


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

    async def withheld(self, positions: Collection[int]) -> dict[int, str]:
        """Return which of these events the relay has parked, and why. It notes so before it publishes what comes behind them."""
        async with translated():
            rows = await self._pool.fetch(_WITHHELD, self._relay_id, list(positions))
        return {row["global_position"]: row["reason"] for row in rows}

    async def categories(self) -> list[str]:
        """Return the categories that have events."""
        async with translated():
            return [row["stream_type"] for row in await self._pool.fetch(_ALL_CATEGORIES)]

    async def streams_between(self, behind: Mapping[str, int], to_position: int) -> dict[str, int]:
        """Return the last position of each stream in a part of the log; `behind` says for each category where it begins."""
        async with translated():
            rows = await self._pool.fetch(_STREAMS_BETWEEN, list(behind), list(behind.values()), to_position)
        return {row["stream_id"]: row["global_position"] for row in rows}

    async def lag_behind(self, position: int) -> tuple[int, float]:
        """Return how many events the log has behind a position, and how long ago the first was recorded, in seconds."""
        async with translated():
            row = await self._pool.fetchrow(_LOG_LAG, position)
        assert row is not None
        return row["events"], row["seconds"]
