"""The event store on Postgres: the authority."""

from .log import PostgresLog
from .migrate import grant_application, migrate
from .store import PostgresEventStore

__all__ = ["PostgresEventStore", "PostgresLog", "grant_application", "migrate"]
