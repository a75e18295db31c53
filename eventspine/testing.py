"""Tests of rules without a server: given what happened, when a command comes, then this happens, or it is refused.

given(order_decider, placed, paid).when(ShipOrder("7", "post")).then(shipped)
given(Order, placed).when(lambda order: order.pay(499)).raises(Refused, match="costs 500")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from .schemas import Codec, Event, EventType, PinnedType, Upcaster
from .store import Aggregate, Decider

__all__ = ["Given", "Outcome", "given"]

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
    codec = None
    if event_types:
        codec = Codec()
        pinned = [PinnedType(number, event_type) for number, event_type in enumerate(event_types, 1)]
        codec.add(pinned, declared=event_types, upcasters=upcasters)
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


def _check(codec: Codec | None, events: Sequence[Event]) -> None:
    for event in events if codec is not None else ():
        assert codec is not None
        codec.encode(event.event_type, event.schema_version, event.data)


def _facts(event: Event) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    return event.event_type, dict(event.data), tuple(sorted(event.tags))
