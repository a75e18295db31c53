"""Reactions: the code that has effects outside a read model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from ...schemas import Event, ReactionError
from ...schemas.handlers import handlers_of
from ...store import Aggregate
from .context import Context

__all__ = ["Callback", "ProcessManager", "Reaction", "Reactions", "Rules", "by_stream", "reaction_of"]

_POLICIES = ("park", "halt", "skip")


class Rules:
    """How a reaction is run. Declared as class attributes of `Reactions` and of `ProcessManager`.

    `start` says where a reaction begins that was never run, and must be given: "beginning" is with the first event of the log,
    "now" with the first one that is recorded after its first start, a number with the first one behind that global position. No
    event before that is ever reacted to. `name` (by default the class's name in snake_case) is the Kafka group and the key of
    everything that is kept: under a new name it starts anew, and has its effects anew. `categories` says which streams it reads;
    by default all.

    An event whose handler raises is tried `max_attempts` times, with pauses that double from `first_pause_s` to `most_pause_s`
    and are jittered; each try ends after `timeout_s`. Conflicts with others, and a store that is away, don't count. Then `poison`
    says what becomes of it: "park" sets it aside with all that follows in its stream, until somebody retries or discards it;
    "halt" ends the process; "skip" goes on behind it. Up to `concurrency` streams are handled at a time by each process, and each
    stream's events in order.
    """

    name: ClassVar[str] = ""
    categories: ClassVar[Sequence[str]] = ()
    start: ClassVar[Literal["beginning", "now"] | int | None] = None
    poison: ClassVar[Literal["park", "halt", "skip"]] = "park"
    max_attempts: ClassVar[int] = 8
    first_pause_s: ClassVar[float] = 0.2
    most_pause_s: ClassVar[float] = 30.0
    timeout_s: ClassVar[float] = 60.0
    concurrency: ClassVar[int] = 16

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


class Reaction(Rules):
    """What a `ReactionConsumer` runs: rules, and what happens at an event."""

    def handles(self, event_type: str) -> bool:
        """Whether events of this type are to be decoded and handed over."""
        raise NotImplementedError

    async def react(self, event: Event, context: Context) -> None:
        """React to an event. May run again for the same one; what it did through its context is recorded when it has returned."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of what was opened; called at the end."""


class Reactions(Reaction):
    """Base of reactions without a state of their own: async methods marked with `@on` take the event and a `Context`.

        class Receipts(Reactions):
            start = "now"
            categories = ("Order",)

            @on("OrderPaid")
            async def paid(self, event, context):
                context.append(f"Receipt-{event.event_id}", Event(event_type="ReceiptIssued", data={…}))

    What a handler does through its context is recorded once, however often the event is delivered. What it does by itself (a call
    to another service) happens at least once: give `context.idempotency_key` along.
    """

    _handlers: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._handlers = handlers_of(cls, ReactionError)
        if handlers_of(cls, ReactionError, kind="reacts"):
            raise ReactionError(f"{cls.__name__}: `by` is for process managers; leave it out, or derive from ProcessManager")
        _check_async(cls, cls._handlers)

    def handles(self, event_type: str) -> bool:
        return event_type in self._handlers

    async def react(self, event: Event, context: Context) -> None:
        await getattr(self, self._handlers[event.event_type])(event, context)


class ProcessManager(Rules, Aggregate):
    """Base of process managers: a state folded from a stream of its own, `{Name}-{id}`, and reactions to other streams' events.

        class Shipping(ProcessManager):
            start = "beginning"
            categories = ("Order", "Shipping")
            status: str = "new"

            @on("OrderPaid", by=by_stream)                 # for the process of the same id as the order
            async def paid(self, event, context):
                if self.status == "new":
                    self.record("ShippingBegun", {})       # into its own stream
                    context.append(f"Parcel-{self.id}", Event(event_type="ParcelRequested", data={}))
                    context.schedule(self.stream_id, ParcelOverdue(), after=timedelta(days=2), key="overdue")

            @on("ShippingBegun")                           # without `by`: folds the state, as in an aggregate
            def _begun(self, event):
                self.status = "begun"

    Handlers with `by` are async; they get the process as its stream tells. What they record in their own stream is appended at
    the version that was read; if another event of the same process was faster, the handler runs again on the newer state. All
    that a handler does in the store (own events, those of other streams, what it schedules) is recorded at once: all or none, and
    once.
    """

    _reactions: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._reactions = handlers_of(cls, ReactionError, kind="reacts")
        _check_async(cls, cls._reactions)
        for event_type, attribute in cls._handlers.items():
            if inspect.iscoroutinefunction(getattr(cls, attribute)):
                raise ReactionError(
                    f"{cls.__name__}.{attribute} is async and folds {event_type}: give @on a `by` if it reacts, or make it a "
                    "plain method if it changes the state"
                )


class Processes(Reaction):
    """A class of process managers as a reaction: each event goes to the process that it is for."""

    def __init__(self, process_type: type[ProcessManager]) -> None:
        self._type = process_type
        configure(self, **{rule: getattr(process_type, rule) for rule in Rules.__annotations__})

    def handles(self, event_type: str) -> bool:
        return event_type in self._type._reactions

    async def react(self, event: Event, context: Context) -> None:
        attribute = self._type._reactions[event.event_type]
        chosen = getattr(self._type, attribute).by(event)
        if chosen is not None:
            process = await context.load(self._type, str(chosen))
            context.scope = f"{process.id}/"
            await getattr(process, attribute)(event, context)


class Callback(Reaction):
    """Calls an async function of your own for each event, as `function(event, idempotency_key)`: at least once, in stream order.

    With `event_types`, for these only.
    """

    def __init__(
        self,
        function: Callable[[Event, str], Any],
        *,
        name: str,
        start: Literal["beginning", "now"] | int,
        categories: Sequence[str] = (),
        event_types: Sequence[str | type] = (),
        **rules: Any,
    ) -> None:
        configure(self, name=name, start=start, categories=categories, **rules)
        self._function = function
        self._event_types = frozenset(each if isinstance(each, str) else each.__name__ for each in event_types)

    def handles(self, event_type: str) -> bool:
        return not self._event_types or event_type in self._event_types

    async def react(self, event: Event, context: Context) -> None:
        await self._function(event, context.idempotency_key)


def configure(reaction: Reaction, **rules: Any) -> None:
    """Set rules on one object.

    Raises:
        ReactionError: there is no such rule.
    """
    for rule, value in rules.items():
        if rule not in Rules.__annotations__:
            raise ReactionError(f"{type(reaction).__name__} takes no {rule!r}; it takes {', '.join(Rules.__annotations__)}")
        setattr(reaction, rule, value)


def by_stream(event: Event) -> str:
    """Correlate by stream: the process of an event of `Order-7` has the id `7`."""
    return event.stream_id.partition("-")[2]


def reaction_of(declared: Any) -> Reaction:
    """Return what a `ReactionConsumer` runs, of what people declare: a class of `Reactions` or `ProcessManager`, or an object.

    Raises:
        ReactionError: it is none of these, or its rules make no sense.
    """
    if isinstance(declared, type) and issubclass(declared, ProcessManager):
        reaction: Reaction = Processes(declared)
    elif isinstance(declared, type) and issubclass(declared, Reaction):
        reaction = declared()
    elif isinstance(declared, Reaction):
        reaction = declared
    else:
        raise ReactionError(f"{declared!r} is no Reactions, no ProcessManager, no Webhook and no Callback")
    start = reaction.start
    if start not in ("beginning", "now") and not (type(start) is int and start >= 0):
        raise ReactionError(
            f"reaction {reaction.name}: start is {start!r}; say where it begins when it runs for the first time: "
            'start = "beginning" (with the first event of the log), "now" (with what comes from then on), or a position behind '
            "which it begins. Effects of a whole history are rarely wanted, so there is no default"
        )
    if reaction.poison not in _POLICIES:
        raise ReactionError(f"reaction {reaction.name}: poison is {reaction.poison!r}; it is one of {', '.join(_POLICIES)}")
    if reaction.max_attempts < 1 or reaction.concurrency < 1:
        raise ReactionError(f"reaction {reaction.name}: max_attempts and concurrency are 1 or more")
    return reaction


def _check_async(cls: type[Any], handlers: dict[str, str]) -> None:
    for event_type, attribute in handlers.items():
        if not inspect.iscoroutinefunction(getattr(cls, attribute)):
            raise ReactionError(f"{cls.__name__}.{attribute} reacts to {event_type}: write it as `async def`")
