"""Where read models lie: what the scheme of `read_model_dsn` says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .connect import open_pool
from .consumers import PostgresSink, Sink
from .consumers.admin import ProjectionAdmin
from .consumers.postgres_admin import PostgresProjectionAdmin
from .schemas import SettingsError

if TYPE_CHECKING:
    from .consumers.opensearch_client import SearchServer

__all__ = ["open_admin", "open_sink"]


@asynccontextmanager
async def open_sink(dsn: str) -> AsyncIterator[Sink]:
    """Open what projections write to."""
    if _in_opensearch(dsn):
        from .consumers.opensearch_sink import OpenSearchSink

        async with _opensearch(dsn) as server:
            yield OpenSearchSink(server)
        return
    async with open_pool(dsn, max_connections=2) as pool:
        yield PostgresSink(pool)


@asynccontextmanager
async def open_admin(dsn: str) -> AsyncIterator[ProjectionAdmin]:
    """Open what looks after the projections there, with all that it needs made."""
    if _in_opensearch(dsn):
        from .consumers.opensearch_admin import OpenSearchProjectionAdmin

        async with _opensearch(dsn) as server:
            looks_after = OpenSearchProjectionAdmin(server)
            await looks_after.prepare()
            yield looks_after
        return
    async with open_pool(dsn, max_connections=1) as pool:
        admin = PostgresProjectionAdmin(pool)
        await admin.prepare()
        yield admin


def _in_opensearch(dsn: str) -> bool:
    """Whether a DSN leads to OpenSearch.

    Raises:
        SettingsError: it does, and the extra is not installed.
    """
    if not dsn.startswith("opensearch"):
        return False
    if not all(map(find_spec, ("opensearchpy", "aiohttp"))):
        raise SettingsError('a read model in OpenSearch needs its client: pip install "eventspine[opensearch]"')
    return True


@asynccontextmanager
async def _opensearch(dsn: str) -> AsyncIterator[SearchServer]:
    from .consumers.opensearch_client import open_opensearch

    async with open_opensearch(dsn) as server:
        yield server
