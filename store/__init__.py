"""The store: streams with optimistic concurrency, and one log of them all."""

from .protocol import ANY, NO_STREAM, STREAM_EXISTS, EventStore, Expected, ExpectedVersion

__all__ = ["ANY", "NO_STREAM", "STREAM_EXISTS", "EventStore", "Expected", "ExpectedVersion"]
