"""The store: streams with optimistic concurrency, and one log of them all."""

from .protocol import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    EventStore,
    Expected,
    ExpectedVersion,
    Snapshot,
    StreamAppend,
    Subscription,
)
from .query import AppendCondition, Query, QueryItem

__all__ = [
    "ANY",
    "NO_STREAM",
    "STREAM_EXISTS",
    "AppendCondition",
    "EventStore",
    "Expected",
    "ExpectedVersion",
    "Query",
    "QueryItem",
    "Snapshot",
    "StreamAppend",
    "Subscription",
]
