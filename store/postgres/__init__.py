"""The event store on Postgres: the authority."""

from .group import WorkerGroup
from .log import PostgresLog
from .migrate import grant_application, grant_relay, migrate
from .store import PostgresEventStore

__all__ = ["PostgresEventStore", "PostgresLog", "WorkerGroup", "grant_application", "grant_relay", "migrate"]
