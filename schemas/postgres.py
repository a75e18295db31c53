"""What every part that talks to Postgres shares: statements from `.sql` files, and driver errors in our own words."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from .errors import EventspineError, SettingsError, Unavailable

__all__ = ["Connection", "PgBouncerConnection", "learn_types", "load_sql", "quoted", "translated"]

Connection = asyncpg.Connection | PoolConnectionProxy
"""A connection, one's own or borrowed from a pool."""

_AWAY = (
    OSError,  # refused, reset, unreachable; TimeoutError is one of them
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,  # the connection (or pool) was closed under us
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.QueryCanceledError,  # a statement_timeout
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.ReadOnlySQLTransactionError,  # a fail-over is under way: this server is (still) a standby
)
_POOLED = (  # a statement that was prepared on one of PgBouncer's server connections is not there, or another's is
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.InvalidSQLStatementNameError,
)
_NOT_MIGRATED = (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.UndefinedColumnError)


class PgBouncerConnection(asyncpg.Connection):
    """A connection to PgBouncer in transaction mode, where each transaction may run on another connection of the server.

    So nothing is left behind on one, and nothing is cleared there: it may be another client's by now. Notifications don't come
    this way; who would listen polls.
    """

    keeps_session = False

    async def add_listener(self, channel: str, callback: Any) -> None:
        """Do nothing: LISTEN would stay on a connection that others use."""

    async def remove_listener(self, channel: str, callback: Any) -> None:
        """Do nothing."""

    def get_reset_query(self) -> str:
        """Return no statement: a transaction leaves nothing to reset."""
        return ""


def load_sql(package: str, name: str) -> str:
    """Return the text of `name`.sql, which stands in the folder of `package`."""
    return files(package).joinpath(f"{name}.sql").read_text(encoding="utf-8")


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


async def learn_types(connection: asyncpg.Connection) -> None:
    """Let asyncpg ask for the types of our statements now, in a transaction that is rolled back.

    It switches jit off for that question, and on again, for the whole session: behind PgBouncer, on two different ones.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.fetchrow(load_sql("eventspine.schemas", "sql/array_types"))
    finally:
        await transaction.rollback()


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn whatever asyncpg raises inside into an EventspineError; the driver's error stays as its cause.

    Raises:
        Unavailable: the server is away, starting, stopping or out of resources: retry.
        SettingsError: tables are missing, the login is refused, a right is missing, or PgBouncer is between and nobody said so.
        EventspineError: anything else that Postgres refused.
    """
    try:
        yield
    except _NOT_MIGRATED as error:
        raise SettingsError(f"{error}; the database lacks our tables or has old ones: run `eventspine migrate`") from error
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.ClientConfigurationError,
    ) as error:
        raise SettingsError(f"Postgres refused the connection: {error}; check the DSN") from error
    except _POOLED as error:
        raise SettingsError(
            f"{error.args[0]}: PgBouncer stands between, which keeps no prepared statements in transaction mode; add "
            "?pgbouncer=true to the DSN, or statement_cache_size=0 to asyncpg.create_pool() if the pool is yours"
        ) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise SettingsError(f"Postgres refused: {error}; grant the right or use another role") from error
    except _AWAY as error:
        refusal = _refused_certificate(error)
        if refusal is not None:
            raise SettingsError(
                f"Postgres or this program refuses the other's certificate: {refusal.args[-1]}; check sslmode, sslrootcert, "
                "sslcert and sslkey in the DSN"
            ) from error
        raise Unavailable(f"Postgres is away: {error or type(error).__name__}") from error
    except asyncpg.PostgresError as error:
        raise EventspineError(f"Postgres refused ({error.sqlstate}): {error}") from error


def _refused_certificate(error: BaseException) -> ssl.SSLError | None:
    """Return the error of TLS by which one side refuses the other's certificate, or finds that ours and its key don't fit.

    A handshake that was cut off is none. What the server says comes only after the handshake, as the cause of a lost connection.
    """
    for each in (error, error.__cause__, error.__context__):
        if isinstance(each, ssl.SSLError):
            reason = each.reason or ""
            if isinstance(each, ssl.SSLCertVerificationError) or "ALERT" in reason or "MISMATCH" in reason:
                return each
    return None
