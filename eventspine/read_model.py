"""Where read models lie: what the scheme of `read_model_dsn` says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from .connect import open_pool
from .consumers import PostgresSink, Sink
from .consumers.admin import ProjectionAdmin
from .consumers.postgres_admin import PostgresProjectionAdmin
from .schemas import SettingsError

__all__ = ["open_admin", "open_sink"]


@asynccontextmanager
async def open_sink(dsn: str) -> AsyncIterator[Sink]:
    """Open what projections write to."""
    if _is_redis(dsn):
        from .consumers.redis_client import open_redis
        from .consumers.redis_sink import RedisSink

        async with open_redis(dsn) as client:
            yield RedisSink(client)
        return
    async with open_pool(dsn, max_connections=2) as pool:
        yield PostgresSink(pool)


@asynccontextmanager
async def open_admin(dsn: str) -> AsyncIterator[ProjectionAdmin]:
    """Open what looks after the projections there, with all that it needs made."""
    if _is_redis(dsn):
        from .consumers.redis_admin import RedisProjectionAdmin
        from .consumers.redis_client import open_redis

        async with open_redis(dsn) as client:
            yield RedisProjectionAdmin(client)
        return
    async with open_pool(dsn, max_connections=1) as pool:
        admin = PostgresProjectionAdmin(pool)
        await admin.prepare()
        yield admin


def _is_redis(dsn: str) -> bool:
    if urlsplit(dsn).scheme not in ("redis", "rediss"):
        return False
    try:
        import redis  # noqa: F401
    except ImportError as error:
        raise SettingsError('read models in Redis need one more package: pip install "eventspine[redis]"') from error
    return True
