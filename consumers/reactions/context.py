"""What a handler of a reaction gets beside the event: it collects what is to be recorded. No I/O but reading streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID, uuid5

import msgspec

from ...schemas import Event, ReactionError, category_of
from ...store import ANY, Aggregate, Decider, ExpectedVersion, StreamAppend
from ...store.postgres import Effects, Scheduled

__all__ = ["Context", "Streams", "effect_id"]

_NAMESPACE: Final = UUID("6a2f7f0e-54f1-5a86-9c0e-3b6d1c1f6b57")

AnyAggregate = TypeVar("AnyAggregate", bound=Aggregate)


class Streams(Protocol):
    """Where a handler reads: the store, or a test's streams in memory."""

    def iterate_stream(self, stream_id: str, from_version: int = 0) -> AsyncIterator[Event]:
        """Yield a stream's events from a version on, in order."""


def effect_id(reaction: str, cause: UUID, effect: int | str) -> UUID:
    """Return the id of an event that a reaction appends: the same at every delivery of its cause.

    `effect` counts the events that are appended, or names a scheduled one. The first, 0, is the mark of the whole reaction.
    """
    return uuid5(_NAMESPACE, f"{reaction}/{cause}/{effect}")


@dataclass
class _Part:
    """What goes to one stream: from an aggregate, by a decider, or plainly."""

    stream_id: str
    expected: ExpectedVersion
    how: str
    events: list[Event] = field(default_factory=list)
    aggregate: Aggregate | None = None
    state: Any = None


class Context:
    """Collects what a handler does in the store: it is recorded when the handler has returned, all or none, and once.

    Each event that comes of it gets the correlation id, the user and the trace of the event that caused it, whose id is its
    `causation_id`; metadata of its own wins. Its `event_id` is derived from reaction, cause and count, whatever it was.

    Attributes: `event`, the cause; `idempotency_key`, the same at every delivery of this event to this reaction: for services
    outside the store; `scope` begins the keys of scheduled events: those of a process manager are each process's own.
    """

    def __init__(self, reaction: str, event: Event, streams: Streams) -> None:
        self.event = event
        self.idempotency_key = f"{reaction}:{event.event_id}"
        self.scope = ""
        self._reaction = reaction
        self._streams = streams
        self._parts: dict[str, _Part] = {}
        self._scheduled: list[Scheduled] = []
        self._cancelled: list[str] = []

    def append(self, stream_id: str, *events: Any, expected_version: ExpectedVersion = ANY) -> None:
        """Append events to a stream: `Event`s, or instances of dataclasses or pydantic models.

        Appends to the same stream are one append, at the version that the first of them expects. A version that is not met lets
        the handler run again.

        Raises:
            ReactionError: the stream was loaded as an aggregate, or decided on, by this handler: record the event there.
        """
        part = self._part(stream_id, expected_version, "appended to")
        part.events += [each if isinstance(each, Event) else Event.of(each) for each in events]

    async def load(self, aggregate_type: type[AnyAggregate], id: str) -> AnyAggregate:
        """Return an aggregate as its stream tells. What its commands record is appended at the version that was read."""
        part = self._parts.get(f"{aggregate_type.stream_type}-{id}")
        if part is None or part.aggregate is None:
            aggregate = aggregate_type(id)
            async for event in self._streams.iterate_stream(aggregate.stream_id, 1):
                aggregate.replay(event)
            part = self._part(aggregate.stream_id, aggregate.version, "loaded")
            part.aggregate = aggregate
        if not isinstance(part.aggregate, aggregate_type):
            raise ReactionError(f"stream {part.stream_id!r} was loaded as {type(part.aggregate).__name__} by this handler")
        return part.aggregate

    async def execute(self, decider: Decider[Any, Any], id: str, command: Any) -> Sequence[Event]:
        """Let a decider decide on a command, and return what happens: it is appended at the version that was read.

        What `decide` raises comes out here; nothing happens then.
        """
        stream_id = f"{decider.stream_type}-{id}"
        part = self._parts.get(stream_id)
        if part is None:
            state, version = decider.initial, 0
            async for event in self._streams.iterate_stream(stream_id, 1):
                state, version = decider.evolve(state, event), event.version
            part = self._part(stream_id, version, "decided on")
            part.state = state
        elif part.how != "decided on":
            raise self._mixed(part, "decided on")
        decided = list(decider.decide(part.state, command))
        for event in decided:
            part.state = decider.evolve(part.state, event)
        part.events += decided
        return decided

    def schedule(
        self, stream_id: str, event: Any, *, at: datetime | None = None, after: timedelta | None = None, key: str = ""
    ) -> None:
        """Append an event to a stream later: `at` a time (aware), or so long `after` the reaction is recorded (database's clock).

        It is appended once, at any version, within about a second after it is due while some process runs this reaction. With a
        `key`, `cancel(key)` can prevent it until then. Keys are the reaction's own; of a process manager, each process's.

        Raises:
            ReactionError: not just one of `at` and `after` is given, or `at` is naive.
        """
        if (at is None) == (after is None):
            raise ReactionError("a scheduled event is due at a time, or after a while: give just one of at= and after=")
        if at is not None and at.utcoffset() is None:
            raise ReactionError("at= is naive; use an aware time, like datetime.now(timezone.utc)")
        made = event if isinstance(event, Event) else Event.of(event)
        self._scheduled.append(Scheduled(stream_id, made, at, after, self.scope + key if key else ""))

    def cancel(self, key: str) -> None:
        """Cancel what this reaction scheduled under a key before. What is appended already stays.

        Raises:
            ReactionError: the key is empty.
        """
        if not key:
            raise ReactionError("what was scheduled without a key can't be cancelled: give schedule() and cancel() the same key")
        self._cancelled.append(self.scope + key)

    def effects(self) -> Effects:
        """Return all that was collected, as it is to be recorded."""
        cause, metadata = self.event.event_id, self.event.as_cause()
        appends: list[StreamAppend] = []
        count = 0
        for part in self._parts.values():
            events = []
            for event in part.events if part.aggregate is None else part.aggregate.pending:
                events.append(_caused(event, effect_id(self._reaction, cause, count), metadata))
                count += 1
            if events:
                appends.append(StreamAppend(part.stream_id, category_of(part.stream_id), events, part.expected))
        scheduled = [
            each._replace(event=_caused(each.event, effect_id(self._reaction, cause, f"scheduled/{number}"), metadata))
            for number, each in enumerate(self._scheduled)
        ]
        return Effects(effect_id(self._reaction, cause, 0), appends, scheduled, list(dict.fromkeys(self._cancelled)))

    def _part(self, stream_id: str, expected: ExpectedVersion, how: str) -> _Part:
        part = self._parts.setdefault(stream_id, _Part(stream_id, expected, how))
        if part.how != how:
            raise self._mixed(part, how)
        return part

    def _mixed(self, part: _Part, how: str) -> ReactionError:
        return ReactionError(
            f"stream {part.stream_id!r} was {part.how} by this handler, and can't be {how} as well: use one way for a stream"
        )


def _caused(event: Event, event_id: UUID, cause: Mapping[str, Any]) -> Event:
    return msgspec.structs.replace(event, event_id=event_id, stream_id="", metadata={**cause, **event.metadata})
