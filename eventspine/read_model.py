"""Where read models lie: what the scheme of `read_model_dsn` says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from urllib.parse import urlsplit

from .connect import open_pool
from .consumers import PostgresSink, Projection, ReadModel, Sink
from .consumers.admin import ProjectionAdmin
from .consumers.postgres_admin import PostgresProjectionAdmin
from .schemas import SettingsError
from .store.postgres.published import Published

__all__ = ["in_postgres", "open_admin", "open_read_models", "open_sink"]

# By scheme: the extra, and the packages that it brings.
_EXTRAS = {
    "redis": ("redis", ("redis",)),
    "rediss": ("redis", ("redis",)),
    "opensearch": ("opensearch", ("opensearchpy", "aiohttp")),
    "opensearch+https": ("opensearch", ("opensearchpy", "aiohttp")),
}


@asynccontextmanager
async def open_sink(dsn: str) -> AsyncIterator[Sink]:
    """Open what projections write to.

    Raises:
        SettingsError: the DSN is wrong, the login is refused, or an extra is missing.
        Unavailable: the server is away.
    """
    extra = _extra_of(dsn)
    if extra == "redis":
        from .consumers.redis_client import open_redis
        from .consumers.redis_sink import RedisSink

        async with open_redis(dsn) as client:
            yield RedisSink(client)
    elif extra == "opensearch":
        from .consumers.opensearch_client import open_opensearch
        from .consumers.opensearch_sink import OpenSearchSink

        async with open_opensearch(dsn) as server:
            yield OpenSearchSink(server)
    else:
        async with open_pool(dsn, max_connections=2) as pool:
            yield PostgresSink(pool)


@asynccontextmanager
async def open_admin(dsn: str, *, prepare: bool = True) -> AsyncIterator[ProjectionAdmin]:
    """Open what looks after the projections there, with all that it needs made, unless it is not to `prepare` that.

    Raises:
        SettingsError, Unavailable: as `open_sink`.
    """
    extra = _extra_of(dsn)
    admin: ProjectionAdmin
    if extra == "redis":
        from .consumers.redis_admin import RedisProjectionAdmin
        from .consumers.redis_client import open_redis

        async with open_redis(dsn) as client:
            yield RedisProjectionAdmin(client)
    elif extra == "opensearch":
        from .consumers.opensearch_admin import OpenSearchProjectionAdmin
        from .consumers.opensearch_client import open_opensearch

        async with open_opensearch(dsn) as server:
            admin = OpenSearchProjectionAdmin(server)
            if prepare:
                await admin.prepare()
            yield admin
    else:
        async with open_pool(dsn, max_connections=2) as pool:
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


def in_postgres(dsn: str) -> bool:
    """Whether a DSN leads to Postgres, as far as its scheme says."""
    return urlsplit(dsn).scheme not in _EXTRAS


def _extra_of(dsn: str) -> str:
    """Return which extra a DSN needs, "" for none.

    Raises:
        SettingsError: it is not installed.
    """
    extra, packages = _EXTRAS.get(urlsplit(dsn).scheme, ("", ()))
    if not all(map(find_spec, packages)):
        raise SettingsError(
            f'a read model behind {urlsplit(dsn).scheme}:// needs more packages: pip install "eventspine[{extra}]"'
        )
    return extra
