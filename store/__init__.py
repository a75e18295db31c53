"""The store: streams with optimistic concurrency, and one log of them all."""

from .aggregates import Aggregate, Repository, SnapshottedRepository
from .commands import Decider, handle_command
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
    "Aggregate",
    "AppendCondition",
    "Decider",
    "EventStore",
    "Expected",
    "ExpectedVersion",
    "Query",
    "QueryItem",
    "Repository",
    "Snapshot",
    "SnapshottedRepository",
    "StreamAppend",
    "Subscription",
    "handle_command",
]
