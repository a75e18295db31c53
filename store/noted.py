"""What is recorded while a program works on one thing, like a web request: noted where somebody asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..schemas import Event

__all__ = ["note_recorded", "noting"]

_noted: ContextVar[dict[str, int] | None] = ContextVar("eventspine_noted", default=None)


@contextmanager
def noting() -> Iterator[dict[str, int]]:
    """Collect the last position of each stream that is appended to inside, also in tasks and threads that are started there."""
    positions: dict[str, int] = {}
    token = _noted.set(positions)
    try:
        yield positions
    finally:
        _noted.reset(token)


def note_recorded(events: Iterable[Event]) -> None:
    """Note events that were recorded, if somebody collects. The store calls it for all that it appends."""
    positions = _noted.get()
    if positions is not None:
        for event in events:
            positions[event.stream_id] = max(event.global_position, positions.get(event.stream_id, 0))
