"""Consumers: Kafka to read models, exactly once. Knows no relay."""

from ..schemas.handlers import on
from .consumer import Consumer
from .log_consumer import LogConsumer
from .memory import MemoryReadModel
from .projection import Projection, on_batch
from .read_model import ReadModel
from .sink import PostgresSink, Sink
from .sql_writer import Sql, SqlWriter
from .table import Table, TableWriter

__all__ = [
    "Consumer",
    "LogConsumer",
    "MemoryReadModel",
    "PostgresSink",
    "Projection",
    "ReadModel",
    "Sink",
    "Sql",
    "SqlWriter",
    "Table",
    "TableWriter",
    "on",
    "on_batch",
]
