"""The event store on Postgres: the authority."""

from .group import WorkerGroup
from .log import PostgresLog
from .migrate import grant_application, grant_relay, migrate
from .outbox import Message, PostgresOutbox
from .store import PostgresEventStore

__all__ = [
    "Message",
    "PostgresEventStore",
    "PostgresLog",
    "PostgresOutbox",
    "WorkerGroup",
    "grant_application",
    "grant_relay",
    "migrate",
]
