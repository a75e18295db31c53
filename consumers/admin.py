"""What people ask of projections: how far they are, what is parked, to pause, to begin anew."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from .places import Partition
from .projection import Projection

__all__ = ["ParkedEvent", "ProjectionAdmin", "ProjectionPlace"]


class ProjectionPlace(NamedTuple):
    """How far a projection is in one partition; `events` were taken, of which `parked` are set aside; `idle_s` since it moved;
    `built_to` is the position up to which it was built from the log, `last_late` the number of the last record taken that came
    late."""

    projection: str
    partition: Partition
    epoch: int
    next_offset: int
    last_position: int
    events: int
    parked: int
    paused: bool
    idle_s: float
    built_to: int = 0
    last_late: int = 0


class ParkedEvent(NamedTuple):
    """An event that was set aside, with the record that it came in."""

    partition: Partition
    stream_id: str
    position: int
    event_type: str
    state: str
    reason: str
    tries: int
    asked: str | None
    parked_at: datetime
    headers: bytes
    value: bytes


class ProjectionAdmin(Protocol):
    """Looks after the projections of one read model's server. Whoever runs them follows within seconds."""

    async def prepare(self) -> None:
        """Make what is kept beside the rows, where it is missing."""

    async def places(self, projection: str = "") -> list[ProjectionPlace]:
        """Return how far a projection is, or all of them, by partition."""

    async def parked(self, projection: str, stream_id: str = "", *, limit: int = 1000) -> list[ParkedEvent]:
        """Return what is set aside, by stream, in order."""

    async def pause(self, projection: str, paused: bool) -> None:
        """Let a projection stand still, wherever it runs, or go on."""

    async def ask(self, projection: str, what: str, stream_id: str = "") -> Sequence[str]:
        """Ask to `retry` what is parked, to `discard` a stream's first parked event, or `discard-all`; return the streams.

        Raises:
            SettingsError: nothing is parked there.
        """

    async def reset(self, projection: Projection) -> int:
        """Remove a projection's rows and forget how far it was; return in how many partitions. It begins anew at once."""
