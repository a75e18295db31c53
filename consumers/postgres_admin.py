"""What people ask of projections whose rows are in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from ..schemas import SettingsError
from ..schemas.postgres import load_sql, translated
from .admin import ParkedEvent, ProjectionPlace
from .own_tables import make_own_tables
from .places import Partition
from .projection import Projection
from .sides import stop_consumers

__all__ = ["PostgresProjectionAdmin"]

_SQL: Final = "eventspine.consumers"
_LIST_PROJECTIONS = load_sql(_SQL, "sql/list_projections")
_LIST_PARKED = load_sql(_SQL, "sql/list_parked")
_PAUSE = load_sql(_SQL, "sql/pause")
_ASK = load_sql(_SQL, "sql/ask")
_RESET = load_sql(_SQL, "sql/reset")
_FORGET_PARKED = load_sql(_SQL, "sql/forget_parked")


class PostgresProjectionAdmin:
    """Looks after the projections of one Postgres database."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def prepare(self) -> None:
        """Make the tables of projections where they are missing."""
        async with translated(), self._pool.acquire() as connection, connection.transaction():
            await make_own_tables(connection)

    async def places(self, projection: str = "") -> list[ProjectionPlace]:
        """Return how far a projection is, or all of them, by partition."""
        async with translated():
            rows = await self._pool.fetch(_LIST_PROJECTIONS, projection)
        return [ProjectionPlace(row[0], Partition(row[1], row[2]), *tuple(row)[3:]) for row in rows]

    async def parked(self, projection: str, stream_id: str = "", *, limit: int = 1000) -> list[ParkedEvent]:
        """Return what is set aside, by stream, in order."""
        async with translated():
            rows = await self._pool.fetch(_LIST_PARKED, projection, stream_id, limit)
        return [ParkedEvent(Partition(row[0], row[1]), *tuple(row)[2:]) for row in rows]

    async def pause(self, projection: str, paused: bool) -> None:
        """Let a projection stand still, wherever it runs, or go on."""
        async with translated():
            await self._pool.execute(_PAUSE, projection, paused)

    async def ask(self, projection: str, what: str, stream_id: str = "") -> Sequence[str]:
        """Ask to `retry` what is parked, to `discard` a stream's first parked event, or `discard-all`; return the streams.

        Raises:
            SettingsError: nothing is parked there.
        """
        async with translated():
            rows = await self._pool.fetch(_ASK, projection, stream_id, what)
        if not rows:
            where = f" of stream {stream_id!r}" if stream_id else ""
            raise SettingsError(
                f"projection {projection} has no parked events{where}: see `projections parked list {projection}`"
            )
        return sorted({row["stream_id"] for row in rows})

    async def reset(self, projection: Projection) -> int:
        """Empty a projection's tables and forget how far it was; return in how many partitions. It begins anew at once.

        Raises:
            SettingsError: the pool has one connection only.
        """
        if self._pool.get_max_size() < 2:
            raise SettingsError("a reset needs a pool of two connections: one to hold consumers up, one to fence them")
        async with translated(), self._pool.acquire() as connection, connection.transaction():
            async with self._pool.acquire() as apart:
                await stop_consumers(connection, apart, projection.name)
            for table in projection.tables:
                if await connection.fetchval("SELECT to_regclass(quote_ident($1)) IS NOT NULL", table.name):
                    await connection.execute(f'TRUNCATE "{table.name}"')
            rows = await connection.fetch(_RESET, projection.name)
            await connection.execute(_FORGET_PARKED, projection.name)
        return len(rows)
