"""Consumers: Kafka to read models, exactly once. Knows no relay."""

from ..schemas.handlers import on
from .consumer import Consumer
from .projection import Projection
from .sink import PostgresSink
from .table import Table, TableWriter

__all__ = ["Consumer", "PostgresSink", "Projection", "Table", "TableWriter", "on"]
