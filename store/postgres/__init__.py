"""The event store on Postgres: the authority."""

from .log import PostgresLog, StoredEvent
from .migrate import migrate
from .store import PostgresEventStore

__all__ = ["PostgresEventStore", "PostgresLog", "StoredEvent", "migrate"]
