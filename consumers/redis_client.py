"""What the Redis sink and its admin share: connection, scripts, names of keys, errors in our own words."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..schemas import EventspineError, IntegrityError, ProjectionError, SettingsError, Unavailable
from .places import Partition, Place

__all__ = [
    "PROJECTIONS",
    "Keys",
    "Record",
    "StoredPlace",
    "load_script",
    "open_redis",
    "partition_of",
    "place_id",
    "torn",
    "translated",
]

PROJECTIONS: Final = "eventspine:projections"
"""The names of all projections that were ever prepared."""

# In a script, Redis 6 puts its own words before the code, and the client does not tell it.
_LATER: Final = re.compile(r"(?:^|-)(BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|TRYAGAIN)\b")
_LATER_CLASSES: Final = (ClusterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError)


class StoredPlace(msgspec.Struct, omit_defaults=True):
    """A place as Redis has it. Numbers are texts there: the numbers of Lua hold no 64 bits."""

    epoch: int
    next_offset: int
    last_position: int
    events: int
    last_late: int
    built_to: int
    updated_at: float
    owner: str = ""
    topic_id: str | None = None

    @property
    def place(self) -> Place:
        return Place(self.epoch, self.next_offset, self.last_position, self.events, self.last_late, self.built_to)


class Record(msgspec.Struct):
    """An event that is set aside, with the record that it came in. `member` names it among those that are parked or waiting."""

    member: str
    topic: str
    partition: int
    position: int
    late: int
    stream_id: str
    event_type: str
    state: str
    reason: str
    tries: int
    parked_at: float
    headers: bytes
    key: bytes
    value: bytes


class Keys(NamedTuple):
    """The names of what is kept beside a projection's rows, all in one slot of a cluster. No table has an empty name."""

    places: str  # hash: "topic:number" -> StoredPlace, JSON
    parked: str  # sorted set: what is parked or waiting, by partition, stream and position
    records: str  # hash: "topic:number:position" -> Record, JSON
    asked: str  # hash: the same -> what somebody asks for it
    tables: str  # hash: table -> its declaration
    paused: str  # is there while the projection is paused
    sweeping: str  # is there from a reset until its rows are gone
    scratch: str  # for sums beyond the numbers of Lua
    begun: str  # set: a token, from a script's first write to its last; one that stays is a script that was applied in part

    @classmethod
    def of(cls, projection: str) -> Keys:
        """Return a projection's.

        Raises:
            ProjectionError: its name would not be read as one.
        """
        if not projection or "{" in projection or "}" in projection:
            raise ProjectionError(f"projection {projection!r}: in Redis, its name has to be one, and without braces")
        return cls(*(f"{{{projection}}}::{name}" for name in cls._fields))


def torn(projection: str) -> IntegrityError:
    """Return what to say of a projection of which a script was applied in part."""
    return IntegrityError(
        f"projection {projection}: Redis applied a part of a batch, because its append-only file was cut in a transaction. Rows "
        f"may be wrong, so nothing more is applied: build it again (`eventspine projections reset {projection}`), and set "
        "aof-load-truncated no in Redis"
    )


def place_id(partition: Partition) -> str:
    return f"{partition.topic}:{partition.number}"


def partition_of(id_: bytes) -> Partition:
    topic, _, number = id_.decode().rpartition(":")
    return Partition(topic, int(number))


def load_script(client: Redis, name: str) -> AsyncScript:
    """Return a script, which is sent again when the server does not know it (any more)."""
    return client.register_script(files("eventspine.consumers").joinpath(f"lua/{name}.lua").read_text(encoding="utf-8"))


@asynccontextmanager
async def open_redis(dsn: str, *, max_connections: int = 4, timeout_s: float = 60.0) -> AsyncIterator[Redis]:
    """Open a Redis client and close it at the end; `redis://user:password@host:port/database`, `rediss://…` for TLS.

    The client itself never repeats a command: whether one that was cut off has happened, only the places tell.

    Raises:
        SettingsError: the DSN is wrong, or the login is refused.
        Unavailable: Redis is away.
    """
    if urlsplit(dsn).scheme not in ("redis", "rediss"):
        raise SettingsError(f"{dsn.partition(':')[0]!r} is no Redis; use redis://host:port")
    try:
        client = Redis.from_url(
            dsn,
            retry=Retry(NoBackoff(), 0),
            max_connections=max_connections,
            socket_timeout=timeout_s,
            socket_connect_timeout=10,
            socket_keepalive=True,
        )
    except ValueError as error:
        raise SettingsError(f"the DSN of Redis: {error}; use redis://user:password@host:port/database") from error
    try:
        async with translated(client):
            await cast(Awaitable[Any], client.ping())
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def translated(client: Redis) -> AsyncIterator[None]:
    """Turn whatever the driver raises inside into an EventspineError; the driver's error stays as its cause.

    Raises:
        Unavailable: the server is away, starting, out of memory, a replica, or busy with another script: retry.
        SettingsError: the login is refused, a right is missing, or it is a cluster.
        EventspineError: anything else that Redis refused.
    """
    try:
        yield
    except (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError) as error:
        raise SettingsError(f"Redis refused the login: {error}; check user and password in the DSN") from error
    except NoPermissionError as error:
        raise SettingsError(
            f"Redis refused: {error}; allow the user the keys of the projection ({{name}}:*) and {PROJECTIONS}, and all commands "
            "on hashes, sorted sets and scripts"
        ) from error
    except AskError as error:
        raise SettingsError(f"Redis is a cluster, and the keys are on another node ({error}): name that, or a proxy") from error
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise Unavailable(f"Redis is away: {error or type(error).__name__}") from error
    except RedisError as error:
        if isinstance(error, _LATER_CLASSES) or _LATER.search(str(error)):
            # Perhaps its name leads to another server by now, after a fail-over.
            await client.connection_pool.disconnect(inuse_connections=False)
            raise Unavailable(f"Redis can't do it now: {error}") from error
        raise EventspineError(f"Redis refused: {error}") from error
