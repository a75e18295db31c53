"""The event store on Postgres: the authority."""

from .group import WorkerGroup
from .log import PostgresLog
from .migrate import grant_application, grant_relay, migrate
from .outbox import Message, PostgresOutbox
from .reactions import Effects, PostgresReactions, Scheduled
from .store import PostgresEventStore

__all__ = [
    "Effects",
    "Message",
    "PostgresEventStore",
    "PostgresLog",
    "PostgresOutbox",
    "PostgresReactions",
    "Scheduled",
    "WorkerGroup",
    "grant_application",
    "grant_relay",
    "migrate",
]
