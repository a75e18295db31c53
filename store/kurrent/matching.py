"""Which of the log's events a query wants: decided on the envelope, before any data is decoded."""

from __future__ import annotations

from ...schemas import Event
from ..query import Query
from .envelope import Envelope, Seen

__all__ = ["matches"]


def matches(query: Query | None, seen: Seen, envelope: Envelope) -> bool:
    """Tell whether an event is no system's own, and a query wants it."""
    if seen.event_type.startswith("$") or seen.name.startswith("$"):
        return False
    if query is None or not query.items:
        return True
    return query.matches(
        Event(event_type=seen.event_type, data={}, metadata=envelope.metadata, stream_id=seen.name, tags=envelope.tags)
    )
