"""The contract of an event store, in words. `tests/contract` is the same contract in code."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from ..schemas import Event

__all__ = ["ANY", "NO_STREAM", "STREAM_EXISTS", "EventStore", "Expected", "ExpectedVersion"]


class Expected(enum.Enum):
    """What an append can expect of a stream when it does not name a version."""

    ANY = "any version"
    NO_STREAM = "no stream"
    STREAM_EXISTS = "an existing stream"

    def __str__(self) -> str:
        return self.value


ANY: Final = Expected.ANY
NO_STREAM: Final = Expected.NO_STREAM
STREAM_EXISTS: Final = Expected.STREAM_EXISTS

ExpectedVersion = int | Expected


class EventStore(Protocol):
    """An append-only store of streams, and one log of them all.

    Order: within a stream, versions are 1, 2, … without a gap. Over all streams, global positions are 1, 2, … without a
    gap, and an event becomes visible only after all events before it. A reader that asks for what comes after the last
    position it saw therefore misses nothing and sees nothing twice.

    Durability: what `append` returned is stored. If `append` raised `Unavailable` or was cancelled, its events may or may
    not be stored; the same append again (same event ids) finds out, and never makes a duplicate.
    """

    async def append(
        self, stream_id: str, stream_type: str, events: Sequence[Event], expected_version: ExpectedVersion
    ) -> list[Event]:
        """Append events to one stream, all or none, and return the recorded copies, in order.

        `expected_version` is the version that the stream must have: 0 or NO_STREAM for a new one, ANY to not care,
        STREAM_EXISTS for any but a new one. If the same events (by id and data) are recorded at exactly that place already,
        this is a retry: the originals are returned and nothing is written.

        Raises:
            ConcurrencyError: the stream is at another version.
            InvalidEvent: an event or the stream's name is refused (UnknownEventType: no schema is registered).
            EventIdTaken: an event id is recorded elsewhere, or with other data.
            Unavailable: the store did not answer in time.
        """
        ...

    async def read_stream(self, stream_id: str, from_version: int = 0, limit: int | None = None) -> list[Event]:
        """Return a stream's events with `version >= from_version`, in order; [] for a stream that does not exist."""
        ...

    async def read_all(self, from_position: int = 0, limit: int = 1000) -> list[Event]:
        """Return at most `limit` events of the log with `global_position > from_position`, in order."""
        ...

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""
        ...

    def subscribe(self, *, from_position: int = 0, batch_size: int = 1000) -> AsyncIterator[Event]:
        """Yield every event after `from_position`, in order, each once, then each new one soon after its append; never ends.

        Survives the store going away and coming back. At most `batch_size` events are held in memory.
        """
        ...

    async def load_checkpoint(self, subscription_id: str) -> int:
        """Return the position that was saved under this name, 0 if none was."""
        ...

    async def save_checkpoint(self, subscription_id: str, last_position: int) -> None:
        """Save how far a subscription has come. A position never goes back: a lower one than the saved is ignored."""
        ...
