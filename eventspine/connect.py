"""The front door: one call from a DSN to an event store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from .schemas import EventType, RegistryClient, SettingsError
from .schemas.compatibility import Level
from .schemas.postgres import PgBouncerConnection, learn_types, translated
from .schemas.upcasting import Upcaster
from .store.postgres import PostgresEventStore, migrate

if TYPE_CHECKING:
    from .store.dynamodb import Table

__all__ = ["connect", "need_dynamodb", "open_dynamodb", "open_pool"]


@asynccontextmanager
async def open_pool(dsn: str, *, max_connections: int = 10, command_timeout_s: float = 60.0) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool of Postgres connections and close it at the end.

    `command_timeout_s` bounds every statement, so that a server that vanished without a word is noticed.

    A connection that comes back is not reset, which would be a second round trip for each statement: nothing that eventspine does
    outlasts its transaction. If you use the pool too, set with `SET LOCAL`, and lock with `pg_advisory_xact_lock`; or call
    `await connection.reset()` before you give it back.

    Through PgBouncer in transaction mode, the DSN ends in `?pgbouncer=true`: then no prepared statement, no LISTEN and no setting
    is left on a connection between transactions, and subscriptions poll. `?pgbouncer=false` is for a pooler that keeps sessions.

    Raises:
        SettingsError: the DSN is no Postgres DSN, the login is refused, or a pooler is between and the DSN says nothing of it.
        Unavailable: Postgres is away.
    """
    if urlsplit(dsn).scheme not in ("postgresql", "postgres"):
        raise SettingsError(f"{dsn.partition(':')[0]!r} is no store that eventspine knows; use postgresql://user@host/database")
    _check_files(dsn)
    address, pgbouncer = _take_pgbouncer(dsn)
    async with translated():
        pool = await asyncpg.create_pool(
            address,
            min_size=1,
            max_size=max_connections,
            command_timeout=command_timeout_s,
            timeout=10,
            statement_cache_size=0 if pgbouncer else 100,
            connection_class=PgBouncerConnection if pgbouncer else asyncpg.Connection,
            init=learn_types if pgbouncer else None,
            reset=None if pgbouncer else _leave_as_it_is,
        )
    try:
        if pgbouncer is None:
            await _check_direct(pool)
        yield pool
    finally:
        try:
            async with asyncio.timeout(10):
                await pool.close()
        except TimeoutError:  # a connection is still in use: cut it
            pool.terminate()


async def _leave_as_it_is(connection: asyncpg.Connection) -> None:
    """Send nothing when a connection comes back to the pool."""


def need_dynamodb() -> None:
    """Raise SettingsError if the extra `dynamodb` is not installed."""
    if find_spec("aiobotocore") is None:
        raise SettingsError('DynamoDB needs another package: pip install "eventspine[dynamodb]"')


@asynccontextmanager
async def open_dynamodb(dsn: str) -> AsyncIterator[Table]:
    """Open the table that a DSN names.

    Raises:
        SettingsError: the DSN names none, or the extra is missing.
    """
    need_dynamodb()
    from .store.dynamodb import open_table

    async with open_table(dsn) as table:
        yield table


@asynccontextmanager
async def connect(
    dsn: str,
    *,
    event_types: Sequence[EventType] = (),
    upcasters: Sequence[Upcaster] = (),
    compatibility: Level = Level.FULL_TRANSITIVE,
    as_written: bool = False,
    registry: RegistryClient | None = None,
    max_connections: int = 10,
    max_event_bytes: int = 1_000_000,
) -> AsyncIterator[PostgresEventStore]:
    """Open an event store: `async with eventspine.connect("postgresql://…") as store`.

    An empty database gets its tables; an existing one is only changed by `eventspine migrate`. `event_types` are registered, and
    declared as what this program appends and reads; see `PostgresEventStore.register`. Of types that were registered before and
    are not given, the highest registered version counts. `as_written` leaves what is read in the version that it was written in.
    With a `registry` of yours, new event types get their ids from it.

    Raises:
        SettingsError: the DSN is wrong, the login is refused, or the tables are of another version.
        SchemaError: an event type is registered under that version with another schema, is not compatible with earlier ones, or
            older events can't be read as the version that is given.
        Unavailable: Postgres is away.
    """
    async with open_pool(dsn, max_connections=max_connections) as pool:
        async with translated(), pool.acquire() as connection:
            await migrate(connection, only_if_empty=True)
        store = PostgresEventStore(pool, max_event_bytes=max_event_bytes, as_written=as_written, registry=registry)
        await store.register(event_types, upcasters, compatibility=compatibility)
        yield store


def _check_files(dsn: str) -> None:
    """Look at the files of TLS that the DSN names: what asyncpg says of a missing one reads like a server that is away.

    Raises:
        SettingsError: one can't be read.
    """
    for option, path in parse_qsl(urlsplit(dsn).query):
        if option in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
            try:
                Path(path).open("rb").close()
            except OSError as error:
                raise SettingsError(f"{option} in the DSN: {path}: {error.strerror}; name a file that can be read") from error


def _take_pgbouncer(dsn: str) -> tuple[str, bool | None]:
    """Return the DSN without `pgbouncer=…`, which is not for Postgres, and what it said; None if it said nothing."""
    parts = urlsplit(dsn)
    options = parse_qsl(parts.query, keep_blank_values=True)
    said = [value for name, value in options if name == "pgbouncer"]
    if not said:
        return dsn, None
    if said[-1] not in ("true", "false"):
        raise SettingsError(f"pgbouncer={said[-1]} in the DSN: say true (it is between, in transaction mode) or false")
    query = urlencode([option for option in options if option[0] != "pgbouncer"])
    return urlunsplit(parts._replace(query=query)), said[-1] == "true"


async def _check_direct(pool: asyncpg.Pool) -> None:
    """Refuse a pooler that nobody told of.

    A statement that is prepared on one connection and looked for on another fails at random times, or finds another client's
    under the same name. A pooler is known by the process id that it gives its clients: it is not the server's.

    Raises:
        SettingsError: a pooler is between.
    """
    async with translated(), pool.acquire() as connection:
        direct = connection.get_server_pid() == await connection.fetchval("SELECT pg_backend_pid()")
    if not direct:
        raise SettingsError(
            "a pooler stands between this program and Postgres: add ?pgbouncer=true to the DSN for PgBouncer in transaction "
            "mode, or ?pgbouncer=false if it keeps sessions (pool_mode=session)"
        )
