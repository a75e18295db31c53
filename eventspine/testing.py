"""Tests of rules without a server: given what happened, when a command comes, then this happens, or it is refused.

given(order_decider, placed, paid).when(ShipOrder("7", "post")).then(shipped)
given(Order, placed).when(lambda order: order.pay(499)).raises(Refused, match="costs 500")

And of reactions: given what streams hold, when an event of a stream comes, then this is recorded.

reacted = await reacting(Shipping, {"Shipping-7": [begun]}).when("Order-7", paid)
reacted.then({"Shipping-7": [sent]}, cancelled=["overdue"])
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import msgspec

from .consumers import Context
from .consumers.reactions import Reaction, reaction_of
from .schemas import Codec, Event, EventType, PinnedType, Upcaster
from .store import Aggregate, Decider
from .store.postgres import Effects

__all__ = ["Given", "GivenStreams", "Outcome", "Reacted", "given", "reacting"]

Command = TypeVar("Command")
AnyAggregate = TypeVar("AnyAggregate", bound=Aggregate)


class Outcome:
    """What a command came to: events, or an error."""

    def __init__(self, events: Sequence[Event], error: Exception | None) -> None:
        self.events = tuple(events)
        self.error = error

    def then(self, *events: Event) -> None:
        """Assert that just these events happened, in this order: by type, data and tags."""
        if self.error is not None:
            raise AssertionError(f"it was refused: {self.error!r}") from self.error
        happened, expected = list(map(_facts, self.events)), list(map(_facts, events))
        if happened != expected:
            raise AssertionError(f"other events happened\nhappened: {happened}\nexpected: {expected}")

    def raises(self, error: type[Exception], *, match: str = "") -> None:
        """Assert that the command was refused with this error; `match` is a regular expression that its text contains."""
        if self.error is None:
            raise AssertionError(f"it was not refused; happened: {list(map(_facts, self.events))}")
        if not isinstance(self.error, error) or not re.search(match, str(self.error)):
            raise AssertionError(
                f"it was refused with {self.error!r}, not with {error.__name__} matching {match!r}"
            ) from self.error


class Given(Generic[Command]):
    """A history, and what makes a command of it."""

    def __init__(self, run: Callable[[Command], Sequence[Event]], codec: Codec | None) -> None:
        self._run = run
        self._codec = codec

    def when(self, command: Command) -> Outcome:
        """Run a command on the history. With event types, an event that `append` would refuse is an error here as well."""
        try:
            events = self._run(command)
        except Exception as error:
            return Outcome((), error)
        _check(self._codec, events)
        return Outcome(events, None)


def given(
    rules: Decider[Any, Any] | type[Aggregate],
    *events: Event,
    id: str = "1",
    event_types: Sequence[EventType] = (),
    upcasters: Sequence[Upcaster] = (),
) -> Given[Any]:
    """Begin a test: these events happened to one stream. `rules` is a decider (commands are its own), or an aggregate's class
    (a command is a function that takes the aggregate).

    Give `event_types` to validate what is given and what happens against the schemas, as `append` does, and to read what is given
    in an older `schema_version` in today's shape, by `upcasters` too.
    """
    codec = _codec_of(event_types, upcasters)
    stream_id = f"{rules.stream_type}-{id}"
    history = [msgspec.structs.replace(event, stream_id=stream_id, version=n) for n, event in enumerate(events, 1)]
    _check(codec, history)
    history = codec.upcast(history) if codec is not None else history

    def run(command: Any) -> Sequence[Event]:
        if isinstance(rules, Decider):
            state = rules.initial
            for event in history:
                state = rules.evolve(state, event)
            return rules.decide(state, command)
        aggregate = rules(id)
        for event in history:
            aggregate.replay(event)
        command(aggregate)
        return aggregate.pending

    return Given(run, codec)


class Reacted:
    """What a reaction came to: what it would record, or an error."""

    def __init__(self, effects: Effects | None, scope: str, error: Exception | None) -> None:
        self.effects = effects
        self.error = error
        self._scope = scope

    def then(
        self,
        appended: Mapping[str, Sequence[Event]] | None = None,
        *,
        scheduled: Sequence[tuple[str, Event, datetime | timedelta]] = (),
        cancelled: Sequence[str] = (),
    ) -> None:
        """Assert that just this is recorded: events by stream, scheduled ones with stream and time, cancelled keys."""
        if self.effects is None:
            raise AssertionError(f"it failed: {self.error!r}") from self.error
        happened = {
            "appended": {each.stream_id: list(map(_facts, each.events)) for each in self.effects.appends},
            "scheduled": [(each.stream_id, _facts(each.event), each.at or each.after) for each in self.effects.scheduled],
            "cancelled": [key.removeprefix(self._scope) for key in self.effects.cancelled],
        }
        expected = {
            "appended": {stream: list(map(_facts, events)) for stream, events in (appended or {}).items()},
            "scheduled": [(stream, _facts(event), when) for stream, event, when in scheduled],
            "cancelled": list(cancelled),
        }
        if happened != expected:
            raise AssertionError(f"something else is recorded\nrecorded: {happened}\nexpected: {expected}")

    def raises(self, error: type[Exception], *, match: str = "") -> None:
        """Assert that the handler failed with this error; `match` is a regular expression that its text contains."""
        if self.error is None:
            raise AssertionError(f"it did not fail; recorded: {self.effects}")
        if not isinstance(self.error, error) or not re.search(match, str(self.error)):
            raise AssertionError(f"it failed with {self.error!r}, not with {error.__name__} matching {match!r}") from self.error


class GivenStreams:
    """Streams, and the reaction that may read them."""

    def __init__(self, reaction: Reaction, streams: Mapping[str, Sequence[Event]], codec: Codec | None) -> None:
        self._reaction = reaction
        self._streams = streams
        self._codec = codec

    async def when(self, stream_id: str, event: Event) -> Reacted:
        """Deliver an event of a stream. With event types, an event that `append` would refuse is an error here as well."""
        _check(self._codec, [event])
        before = len(self._streams.get(stream_id, ()))
        position = sum(map(len, self._streams.values())) + 1
        recorded = msgspec.structs.replace(
            event, stream_id=stream_id, version=before + 1, global_position=position, created_at=datetime.now(UTC)
        )
        context = Context(self._reaction.name, recorded, self)
        try:
            if self._reaction.handles(event.event_type):
                await self._reaction.react(recorded, context)
        except Exception as error:
            return Reacted(None, "", error)
        effects = context.effects()
        for append in effects.appends:
            _check(self._codec, append.events)
        _check(self._codec, [each.event for each in effects.scheduled])
        return Reacted(effects, context.scope, None)

    async def iterate_stream(self, stream_id: str, from_version: int = 0) -> AsyncIterator[Event]:
        """Yield what is given of a stream."""
        for version, event in enumerate(self._streams.get(stream_id, ()), 1):
            if version >= from_version:
                yield msgspec.structs.replace(event, stream_id=stream_id, version=version)


def reacting(
    reaction: Any, streams: Mapping[str, Sequence[Event]] | None = None, *, event_types: Sequence[EventType] = ()
) -> GivenStreams:
    """Begin a test of a reaction: a class of `Reactions` or `ProcessManager`, or an object. `streams` hold what happened so far.

    Give `event_types` to validate what is delivered and what is recorded against the schemas, as `append` does.
    """
    return GivenStreams(reaction_of(reaction), streams or {}, _codec_of(event_types, ()))


def _codec_of(event_types: Sequence[EventType], upcasters: Sequence[Upcaster]) -> Codec | None:
    if not event_types:
        return None
    codec = Codec()
    pinned = [PinnedType(number, event_type) for number, event_type in enumerate(event_types, 1)]
    codec.add(pinned, declared=event_types, upcasters=upcasters)
    return codec


def _check(codec: Codec | None, events: Sequence[Event]) -> None:
    for event in events if codec is not None else ():
        assert codec is not None
        codec.encode(event.event_type, event.schema_version, event.data)


def _facts(event: Event) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    return event.event_type, dict(event.data), tuple(sorted(event.tags))
