"""Every error that eventspine raises.

    EventspineError
    ├── InvalidEvent          refused before anything was written; the caller's data must change
    │   └── UnknownEventType  no schema is registered under that name (and version)
    ├── ConcurrencyError      the stream is not at the expected version: reload, decide again
    │   └── ConditionFailed   an event that the append's condition forbids was recorded: read again, decide again
    ├── EventIdTaken          an event id is already recorded elsewhere or with other content
    ├── SchemaError           a schema that is invalid or contradicts a registered one
    ├── DecodeError           bytes that no known schema can read
    ├── Unavailable           a server is away; the only error that is worth a retry
    ├── Fenced                another process took over this work: stop
    ├── IntegrityError        the log, a topic or a cursor contradict each other: stop and look
    ├── ProjectionError       a projection's code or table is wrong
    ├── StaleReadModel        a read model did not come as far as asked in time: wait longer, or show what is there
    │   └── EventSetAside     waiting is in vain: the event is parked, or waits behind one that is
    ├── ReactionError         a reaction's code is wrong, or it is to halt
    ├── Undelivered           what a reaction does outside the store was not taken; raised by reactions
    ├── SettingsError         a setting is missing or makes no sense
    └── LocalStackError       a server of `eventspine up` can't be fetched, started or stopped

Each carries its facts as attributes, says them in one sentence and says what to do next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = [
    "ConcurrencyError",
    "ConditionFailed",
    "DecodeError",
    "EventIdTaken",
    "EventSetAside",
    "EventspineError",
    "Fenced",
    "IntegrityError",
    "InvalidEvent",
    "LocalStackError",
    "ProjectionError",
    "ReactionError",
    "SchemaError",
    "SettingsError",
    "StaleReadModel",
    "Unavailable",
    "Undelivered",
    "UnknownEventType",
]


class EventspineError(Exception):
    """Anything that eventspine raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it pass between processes: constructors take facts, not the sentence."""
        return _restore, (type(self), self.args, vars(self))


def _restore(cls: type[EventspineError], args: tuple[Any, ...], facts: dict[str, Any]) -> EventspineError:
    error = cls.__new__(cls, *args)
    vars(error).update(facts)
    return error


class InvalidEvent(EventspineError, ValueError):
    """Refuse an event (or its stream's name) before anything is written.

    Attributes: `stream_id`, `event_type` ("" where unknown), `reason`.
    """

    def __init__(self, reason: str, *, stream_id: str = "", event_type: str = "") -> None:
        where = " ".join(filter(None, [event_type, f"for stream {stream_id!r}" if stream_id else ""]))
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.stream_id = stream_id
        self.event_type = event_type


class UnknownEventType(InvalidEvent):
    """Refuse an event whose type has no registered schema."""


class ConcurrencyError(EventspineError):
    """Report that a stream is not where the append expected it. Nothing was written.

    Attributes: `stream_id`, `expected` (version or ANY/STREAM_EXISTS/NO_STREAM as given), `actual` (the stream's
    version at that moment, 0 = no event).
    """

    def __init__(self, stream_id: str, *, expected: Any, actual: int) -> None:
        super().__init__(
            f"stream {stream_id!r} is at version {actual}, not at the expected {expected}; "
            "read the stream again, decide again, and append with its present version"
        )
        self.stream_id = stream_id
        self.expected = expected
        self.actual = actual


class ConditionFailed(ConcurrencyError):
    """Report that an event that matches the append's condition was recorded after the position that it names.

    Nothing was written. Attributes: `stream_id`, `after`, `position` (of the first such event; also `expected` and `actual`).
    """

    def __init__(self, stream_id: str, *, after: int, position: int) -> None:
        EventspineError.__init__(
            self,
            f"append to {stream_id!r}: the event at position {position} matches the condition's query, and was recorded after "
            f"position {after}; read the query again, decide again, and append after the last event that was read",
        )
        self.stream_id = stream_id
        self.expected = self.after = after
        self.actual = self.position = position


class EventIdTaken(EventspineError):
    """Report an event id that is already recorded in another place or with another content. Nothing was written."""

    def __init__(self, stream_id: str, *, event_ids: list[str]) -> None:
        super().__init__(
            f"append to {stream_id!r} refused: event id {', '.join(event_ids)} is already recorded elsewhere or with "
            "other data; give a new fact a new event_id, and retry an append only with the same events"
        )
        self.stream_id = stream_id
        self.event_ids = event_ids


class SchemaError(EventspineError, ValueError):
    """Refuse a schema that is invalid or that contradicts the one registered under the same name and version."""


class DecodeError(EventspineError):
    """Report bytes that can't be read: foreign, truncated, or of an unknown schema id."""


class Unavailable(EventspineError):
    """Report that a server did not answer in time. Retrying is safe: appends are idempotent by event id."""


class Fenced(EventspineError):
    """Report that another process has taken over this work. Nothing of ours was committed after that."""


class IntegrityError(EventspineError):
    """Report that log, topic and cursor contradict each other. Going on could lose or repeat events."""


class ProjectionError(EventspineError):
    """Report that a projection's handler failed, or that its table is not as declared."""


class StaleReadModel(EventspineError):
    """Report that a read model did not come as far as asked in time. What was recorded is recorded: nothing is lost.

    Attributes: `projection`, `position` (that was asked for), `reached` (up to which it has come there), `stream_id` ("" where
    all events up to the position are meant).
    """

    def __init__(self, projection: str, *, position: int, reached: int, stream_id: str = "", waited_s: float) -> None:
        where = f" of stream {stream_id!r}" if stream_id else ""
        super().__init__(
            f"projection {projection} has not taken position {position}{where} within {waited_s:g} s; there it has come to "
            f"{reached}. Wait longer or show what is there; if it stays so, see `eventspine projections status {projection}`"
        )
        self.projection = projection
        self.position = position
        self.reached = reached
        self.stream_id = stream_id


class EventSetAside(StaleReadModel):
    """Report that waiting is in vain: the event, or one before it in its stream, could not be applied and is parked.

    Attributes: those of StaleReadModel, and `by` ("projection" or "relay"), `reason`.
    """

    def __init__(self, projection: str, *, position: int, stream_id: str, by: str, reason: str) -> None:
        look = f"eventspine projections parked list {projection}" if by == "projection" else "eventspine relay parked list"
        EventspineError.__init__(
            self,
            f"projection {projection} does not have position {position} of stream {stream_id!r}: the {by} has set it aside "
            f"({reason}). Show what is there; for whoever is to mend it: `{look}`",
        )
        self.projection = projection
        self.position = position
        self.reached = position - 1
        self.stream_id = stream_id
        self.by = by
        self.reason = reason


class ReactionError(EventspineError):
    """Report that a reaction's code is wrong, or that an event failed whose reaction is to halt then."""


class Undelivered(EventspineError):
    """Report that an effect outside the store was not taken. A reaction raises it to say what is worth another try.

    Attributes: `final`, whether another try is in vain: the event is then parked at once; `retry_after_s`, how long the other
    side asks to wait, None if it says nothing.
    """

    def __init__(self, reason: str, *, final: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.final = final
        self.retry_after_s = retry_after_s


class SettingsError(EventspineError, ValueError):
    """Report a missing or senseless setting."""


class LocalStackError(EventspineError):
    """Report that a local server can't be fetched, started or stopped: what, why, what to do, and where the log is.

    Attributes: `log_path`, the server's log file, None if it has none yet.
    """

    def __init__(self, said: str, *, log_path: Path | None = None) -> None:
        super().__init__(f"{said} (log: {log_path})" if log_path else said)
        self.log_path = log_path
