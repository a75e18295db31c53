"""What every backend pages by in the same way."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ..schemas import Event
from .protocol import EventStore

__all__ = ["iterate_stream"]


async def iterate_stream(
    store: EventStore, stream_id: str, first: int, last: int, *, backwards: bool, batch_size: int
) -> AsyncIterator[Event]:
    """Yield a stream's events with `first <= version <= last`, in order or the last first, at most `batch_size` in memory."""
    while first <= last:
        events = await store.read_stream(stream_id, first, batch_size, to_version=last, backwards=backwards)
        for event in events:
            yield event
        if len(events) < batch_size:
            return
        first, last = (first, events[-1].version - 1) if backwards else (events[-1].version + 1, last)
