"""Where read models lie: what the scheme of `read_model_dsn` says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .connect import open_pool
from .consumers import PostgresSink, Sink
from .consumers.admin import ProjectionAdmin
from .consumers.postgres_admin import PostgresProjectionAdmin

__all__ = ["open_admin", "open_sink"]


@asynccontextmanager
async def open_sink(dsn: str) -> AsyncIterator[Sink]:
    """Open what projections write to."""
    async with open_pool(dsn, max_connections=2) as pool:
        yield PostgresSink(pool)


@asynccontextmanager
async def open_admin(dsn: str) -> AsyncIterator[ProjectionAdmin]:
    """Open what looks after the projections there, with all that it needs made."""
    async with open_pool(dsn, max_connections=1) as pool:
        admin = PostgresProjectionAdmin(pool)
        await admin.prepare()
        yield admin
