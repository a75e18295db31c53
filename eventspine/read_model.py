"""Where read models lie: what the scheme of `read_model_dsn` says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .connect import open_pool
from .consumers import PostgresSink, Projection, ReadModel, Sink
from .consumers.admin import ProjectionAdmin
from .consumers.postgres_admin import PostgresProjectionAdmin
from .schemas import SettingsError
from .store.postgres.published import Published

__all__ = ["open_admin", "open_read_models", "open_sink"]


@asynccontextmanager
async def open_sink(dsn: str) -> AsyncIterator[Sink]:
    """Open what projections write to."""
    async with open_pool(dsn, max_connections=2) as pool:
        yield PostgresSink(pool)


@asynccontextmanager
async def open_admin(dsn: str, *, prepare: bool = True) -> AsyncIterator[ProjectionAdmin]:
    """Open what looks after the projections there, with all that it needs made, unless it is not to `prepare` that."""
    async with open_pool(dsn, max_connections=1) as pool:
        admin = PostgresProjectionAdmin(pool)
        if prepare:
            await admin.prepare()
        yield admin


@asynccontextmanager
async def open_read_models(
    dsn: str,
    *projections: Projection | type[Projection],
    read_model_dsn: str = "",
    topic_prefix: str = "events.",
    relay_name: str = "relay",
) -> AsyncIterator[list[ReadModel]]:
    """Open read models, to wait for what was recorded: `async with open_read_models(dsn, Customers) as [customers]`.

    `dsn` leads to the events, `read_model_dsn` to the rows if they are elsewhere. A role that may only read will do: what the
    store's `grant` gives, and SELECT on projection_offsets, projection_parked and projections.

    Raises:
        SettingsError: a DSN is wrong, or no projection has ever run there and the tables can't be made.
        Unavailable: Postgres is away.
    """
    async with (
        open_pool(dsn, max_connections=2) as pool,
        open_admin(read_model_dsn or dsn, prepare=False) as admin,
    ):
        try:
            await admin.places("")
        except SettingsError:  # no projection has ever run there
            await admin.prepare()
        published = Published(pool, topic_prefix=topic_prefix, relay_name=relay_name)
        models = [ReadModel(projection, admin, published) for projection in projections]
        try:
            yield models
        finally:
            for model in models:
                await model.close()
