"""The front door: one call from a DSN to an event store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg

from .schemas import EventType, SettingsError
from .schemas.postgres import translated
from .store.postgres import PostgresEventStore, migrate

__all__ = ["connect", "open_pool"]


@asynccontextmanager
async def open_pool(dsn: str, *, max_connections: int = 10, command_timeout_s: float = 60.0) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool of Postgres connections and close it at the end.

    `command_timeout_s` bounds every statement, so that a server that vanished without a word is noticed.

    Raises:
        SettingsError: the DSN is no Postgres DSN, or the login is refused.
        Unavailable: Postgres is away.
    """
    if urlsplit(dsn).scheme not in ("postgresql", "postgres"):
        raise SettingsError(f"{dsn.partition(':')[0]!r} is no store that eventspine knows; use postgresql://user@host/database")
    async with translated():
        pool = await asyncpg.create_pool(dsn, min_size=1, max_size=max_connections, command_timeout=command_timeout_s, timeout=10)
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(10):
                await pool.close()
        except TimeoutError:  # a connection is still in use: cut it
            pool.terminate()


@asynccontextmanager
async def connect(
    dsn: str, *, event_types: Sequence[EventType] = (), max_connections: int = 10, max_event_bytes: int = 1_000_000
) -> AsyncIterator[PostgresEventStore]:
    """Open an event store: `async with eventspine.connect("postgresql://…") as store`.

    An empty database gets its tables; an existing one is only changed by `eventspine migrate`. `event_types` are
    registered; types that were registered before need not be given again.

    Raises:
        SettingsError: the DSN is wrong, the login is refused, or the tables are of another version.
        SchemaError: an event type is registered under that version with another schema.
        Unavailable: Postgres is away.
    """
    async with open_pool(dsn, max_connections=max_connections) as pool:
        async with translated(), pool.acquire() as connection:
            await migrate(connection, only_if_empty=True)
        store = PostgresEventStore(pool, max_event_bytes=max_event_bytes)
        await store.register(event_types)
        yield store
