"""Consumers: Kafka to read models, exactly once. Knows no relay."""

from ..schemas.handlers import on
from .consumer import Consumer
from .log_consumer import LogConsumer
from .memory import MemoryReadModel
from .projection import Projection, on_batch
from .reactions import (
    Callback,
    Context,
    ProcessManager,
    ReactionConsumer,
    Reactions,
    Scheduler,
    Webhook,
    by_stream,
)
from .read_model import ReadModel
from .sink import PostgresSink, Sink
from .sql_writer import Sql, SqlWriter
from .table import Table, TableWriter

__all__ = [
    "Callback",
    "Consumer",
    "Context",
    "LogConsumer",
    "MemoryReadModel",
    "PostgresSink",
    "ProcessManager",
    "Projection",
    "ReactionConsumer",
    "Reactions",
    "ReadModel",
    "Scheduler",
    "Sink",
    "Sql",
    "SqlWriter",
    "Table",
    "TableWriter",
    "Webhook",
    "by_stream",
    "on",
    "on_batch",
]
