"""The contract of an event store, in words. `tests/contract` is the same contract in code."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

from ..schemas import Event
from .query import AppendCondition, Query

__all__ = [
    "ANY",
    "NO_STREAM",
    "STREAM_EXISTS",
    "EventStore",
    "Expected",
    "ExpectedVersion",
    "Snapshot",
    "StreamAppend",
    "Subscription",
]


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


class StreamAppend(NamedTuple):
    """What `append_streams` writes to one of its streams."""

    stream_id: str
    stream_type: str
    events: Sequence[Event]
    expected_version: ExpectedVersion


class Snapshot(NamedTuple):
    """A stream's state at a version, as its owner wrote it. A cache: never needed to be right, always allowed to be missing."""

    stream_id: str
    version: int
    schema_version: int
    state: Mapping[str, Any]
    created_at: datetime


class Subscription(Protocol):
    """The log from a position on, event by event, without end. Iterate it with `async for`; `aclose()` ends it early.

    At most one batch of events is held in memory; while the loop's body works, nothing is read ahead beyond that.
    """

    @property
    def position(self) -> int:
        """Up to where everything was seen: of the last event that was given out, or beyond it where nothing matched."""
        ...

    @property
    def caught_up(self) -> bool:
        """Whether the end of the log was reached; False again when more than a batch comes in at once."""
        ...

    def __aiter__(self) -> Subscription: ...

    async def __anext__(self) -> Event: ...

    async def aclose(self) -> None: ...


class EventStore(Protocol):
    """An append-only store of streams, and one log of them all.

    Order: within a stream, versions are 1, 2, … without a gap. Over all streams, global positions are 1, 2, … without a
    gap, and an event becomes visible only after all events before it. A reader that asks for what comes after the last
    position it saw therefore misses nothing and sees nothing twice.

    Durability: what `append` returned is stored. If `append` raised `Unavailable` or was cancelled, its events may or may
    not be stored; the same append again (same event ids) finds out, and never makes a duplicate.
    """

    async def append(
        self,
        stream_id: str,
        stream_type: str,
        events: Sequence[Event],
        expected_version: ExpectedVersion,
        *,
        condition: AppendCondition | None = None,
    ) -> list[Event]:
        """Append events to one stream, all or none, and return the recorded copies, in order.

        `expected_version` is the version that the stream must have: 0 or NO_STREAM for a new one, ANY to not care,
        STREAM_EXISTS for any but a new one. If the same events (by id and data) are recorded at exactly that place already,
        this is a retry: the originals are returned and nothing is written. With a `condition`, the append fails if a matching
        event was recorded after the position that it names, in whatever stream.

        Raises:
            ConcurrencyError: the stream is at another version (ConditionFailed: an event matches the condition).
            InvalidEvent: an event or the stream's name is refused (UnknownEventType: no schema is registered).
            EventIdTaken: an event id is recorded elsewhere, or with other data.
            Unavailable: the store did not answer in time.
        """
        ...

    async def append_streams(
        self, appends: Sequence[StreamAppend], *, condition: AppendCondition | None = None
    ) -> list[list[Event]]:
        """Append to several streams, each at its own expected version, all or none; return the copies, stream by stream.

        Raises: as `append`; ConcurrencyError names the first stream that is not as expected.
        """
        ...

    async def read_stream(
        self,
        stream_id: str,
        from_version: int = 0,
        limit: int | None = None,
        *,
        to_version: int | None = None,
        backwards: bool = False,
    ) -> list[Event]:
        """Return a stream's events with `from_version <= version <= to_version`, in order, or the last first.

        At most `limit` of them; [] for a stream that does not exist.
        """
        ...

    def iterate_stream(
        self,
        stream_id: str,
        from_version: int = 0,
        *,
        to_version: int | None = None,
        backwards: bool = False,
        batch_size: int = 500,
    ) -> AsyncIterator[Event]:
        """Yield what `read_stream` returns, with at most `batch_size` events in memory."""
        ...

    async def read_all(self, from_position: int = 0, limit: int = 1000) -> list[Event]:
        """Return at most `limit` events of the log with `global_position > from_position`, in order."""
        ...

    async def read(
        self,
        query: Query,
        *,
        from_position: int = 0,
        to_position: int | None = None,
        limit: int | None = None,
        backwards: bool = False,
    ) -> list[Event]:
        """Return the events that match, with `from_position < global_position <= to_position`, in order, or the last first."""
        ...

    async def read_event(self, event_id: UUID) -> Event | None:
        """Return the event with this id, None if there is none."""
        ...

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""
        ...

    def subscribe(self, *, query: Query | None = None, from_position: int = 0, batch_size: int = 1000) -> Subscription:
        """Yield every matching event after `from_position`, in order, each once, then each new one soon after its append.

        Never ends. Survives the store going away and coming back.
        """
        ...

    async def load_checkpoint(self, subscription_id: str) -> int:
        """Return the position that was saved under this name, 0 if none was."""
        ...

    async def save_checkpoint(self, subscription_id: str, last_position: int) -> None:
        """Save how far a subscription has come. A position never goes back: a lower one than the saved is ignored."""
        ...

    async def load_snapshot(self, stream_id: str, *, schema_version: int = 1) -> Snapshot | None:
        """Return the last snapshot of a stream's state, None if there is none of this schema version."""
        ...

    async def save_snapshot(
        self, stream_id: str, stream_type: str, state: Mapping[str, Any], *, version: int, schema_version: int = 1
    ) -> None:
        """Save a stream's state at a version. One is kept: a snapshot of an older version or schema version is ignored."""
        ...
