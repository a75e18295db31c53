"""The event store on DynamoDB."""

from __future__ import annotations

from .log import DynamoDBLog
from .store import DynamoDBEventStore
from .table import Table, open_table

__all__ = ["DynamoDBEventStore", "DynamoDBLog", "Table", "open_table"]
