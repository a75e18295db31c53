"""The event store on Postgres: the authority."""

from .log import PostgresLog
from .migrate import migrate
from .store import PostgresEventStore

__all__ = ["PostgresEventStore", "PostgresLog", "migrate"]
