"""What every part that talks to Postgres shares: statements from `.sql` files, and driver errors in our own words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from .errors import EventspineError, SettingsError, Unavailable

__all__ = ["Connection", "load_sql", "translated"]

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
_NOT_MIGRATED = (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.UndefinedColumnError)


def load_sql(package: str, name: str) -> str:
    """Return the text of `name`.sql, which stands in the folder of `package`."""
    return files(package).joinpath(f"{name}.sql").read_text(encoding="utf-8")


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn whatever asyncpg raises inside into an EventspineError; the driver's error stays as its cause.

    Raises:
        Unavailable: the server is away, starting, stopping or out of resources: retry.
        SettingsError: tables are missing, the login is refused, or a right is missing.
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
    except asyncpg.InsufficientPrivilegeError as error:
        raise SettingsError(f"Postgres refused: {error}; grant the right or use another role") from error
    except _AWAY as error:
        raise Unavailable(f"Postgres is away: {error or type(error).__name__}") from error
    except asyncpg.PostgresError as error:
        raise EventspineError(f"Postgres refused ({error.sqlstate}): {error}") from error
