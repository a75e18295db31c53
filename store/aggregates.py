"""Aggregates: state folded from a stream, commands that record events, and repositories that load and save them."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

import msgspec

from ..schemas import ConcurrencyError, Event, EventspineError, InvalidEvent
from ..schemas.handlers import handlers_of
from ..schemas.retry import Backoff, wait_or_raise
from .protocol import EventStore, Snapshot

__all__ = ["Aggregate", "Repository", "SnapshottedRepository", "conflict_backoff"]

logger = logging.getLogger(__name__)


class Aggregate:
    """Base of all aggregates: annotate the state, record events in commands, apply them by methods marked with `@on`.

        class Order(Aggregate):
            status: str = "unknown"
            total_cents: int = 0

            def place(self, customer_id: str, total_cents: int) -> None:
                if self.status != "unknown":
                    raise Refused(f"order {self.id} is {self.status} already")
                self.record("OrderPlaced", {"customer_id": customer_id, "total_cents": total_cents})

            @on("OrderPlaced")
            def _placed(self, event: Event) -> None:
                self.status, self.total_cents = "placed", event.data["total_cents"]

    The state is what the class annotates with a default; each aggregate gets a copy of the defaults. It changes only in handlers:
    they run again for every event when the aggregate is loaded. Events without a handler only count.

    `stream_type` (by default the class's name) is the category: the aggregate of id `7` is the stream `Order-7`.
    `snapshot_version` rises when the state's shape changes: older snapshots are then ignored.
    """

    stream_type: ClassVar[str] = ""
    snapshot_version: ClassVar[int] = 1
    _handlers: ClassVar[dict[str, str]] = {}
    _state: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "stream_type" not in cls.__dict__:
            cls.stream_type = cls.__name__
        cls._handlers = handlers_of(cls, EventspineError)
        cls._state = _state_of(cls)

    def __init__(self, id: str) -> None:
        self.id = id
        self.version = 0  # of the last event that is recorded; what is pending comes behind it
        self._pending: list[Event] = []
        for name in self._state:
            setattr(self, name, copy.deepcopy(getattr(type(self), name)))

    @property
    def stream_id(self) -> str:
        return f"{self.stream_type}-{self.id}"

    @property
    def pending(self) -> tuple[Event, ...]:
        """The events that commands recorded since the aggregate was loaded or saved."""
        return tuple(self._pending)

    def record(
        self,
        event_type: Any,
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        tags: tuple[str, ...] = (),
    ) -> Event:
        """Record an event: apply it to the state, and keep it until the aggregate is saved.

        Give an event type and its data, or an instance of a dataclass or pydantic model alone: `self.record(OrderPaid(500))`.

        Raises:
            InvalidEvent: neither of these.
        """
        if isinstance(event_type, str) and data is None:
            raise InvalidEvent("an event has data: give it beside the event type", event_type=event_type)
        if not isinstance(event_type, str) and data is not None:
            raise InvalidEvent("an instance has its data itself: give no other beside it")
        if isinstance(event_type, str):
            event = Event(event_type=event_type, data=data or {}, metadata=metadata or {}, tags=tags, stream_id=self.stream_id)
        else:
            event = Event.of(event_type, metadata=metadata or {}, tags=tags, stream_id=self.stream_id)
        self._apply(event)
        self._pending.append(event)
        return event

    def replay(self, event: Event) -> None:
        """Apply an event that is in the stream already; for repositories.

        Raises:
            EventspineError: it is not the next one of this stream.
        """
        if (event.stream_id, event.version) != (self.stream_id, self.version + 1) or self._pending:
            raise EventspineError(
                f"{event.stream_id}@{event.version} does not follow {self.stream_id}@{self.version} "
                f"with {len(self._pending)} pending events: load the aggregate anew"
            )
        self._apply(event)
        self.version = event.version

    def snapshot(self) -> dict[str, Any]:
        """Return the state as JSON values. Override it, together with `restore`, for state that is not annotated."""
        return {name: msgspec.to_builtins(getattr(self, name), str_keys=True) for name in self._state}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the state to what `snapshot` returned, once it was JSON.

        Raises:
            Exception: the state has another shape; the snapshot is then ignored.
        """
        types = get_type_hints(type(self))
        restored = {name: msgspec.convert(state[name], types[name], str_keys=True) for name in self._state}
        for name, value in restored.items():
            setattr(self, name, value)

    def _apply(self, event: Event) -> None:
        handler = self._handlers.get(event.event_type)
        if handler is not None:
            getattr(self, handler)(event)

    def _saved(self) -> None:
        self.version += len(self._pending)
        self._pending.clear()


AnyAggregate = TypeVar("AnyAggregate", bound=Aggregate)


class Repository(Generic[AnyAggregate]):
    """Loads aggregates of one class from their streams, and saves what their commands recorded.

    `tries` bounds how often `execute` decides anew after a conflict.
    """

    def __init__(self, store: EventStore, aggregate_type: type[AnyAggregate], *, tries: int = 5) -> None:
        self._store = store
        self._type = aggregate_type
        self._tries = tries

    async def load(self, id: str) -> AnyAggregate:
        """Return the aggregate as its stream tells; one of version 0 if there is no such stream."""
        aggregate = self._type(id)
        await self._replay(aggregate)
        return aggregate

    async def save(self, aggregate: AnyAggregate, *, metadata: Mapping[str, Any] | None = None) -> list[Event]:
        """Append what is pending at the version that was loaded, and return the recorded copies; [] if nothing is.

        `metadata` goes to each event that does not say otherwise itself. After an error the events are still pending: after
        `Unavailable` save again, which never makes a duplicate; after `ConcurrencyError` load and decide again (`execute` does).

        Raises: as `EventStore.append`.
        """
        if not aggregate.pending:
            return []
        events = [with_metadata(event, metadata) for event in aggregate.pending]
        recorded = await self._store.append(aggregate.stream_id, aggregate.stream_type, events, aggregate.version)
        aggregate._saved()
        return recorded

    async def execute(
        self,
        id: str,
        command: Callable[[AnyAggregate], Awaitable[None] | None],
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> AnyAggregate:
        """Load an aggregate, let a command work on it, save it; if somebody else was faster, do all of it over.

            await orders.execute("7", lambda order: order.pay(500), metadata={"user_id": "u1"})

        The command may run several times, each time on the newest state. What it raises ends the attempt; nothing is saved then.

        Raises:
            ConcurrencyError: others were faster `tries` times in a row.
        """
        backoff = conflict_backoff()
        for left in range(self._tries - 1, -1, -1):
            aggregate = await self.load(id)
            done = command(aggregate)
            if inspect.isawaitable(done):
                await done
            try:
                await self.save(aggregate, metadata=metadata)
            except ConcurrencyError as conflict:
                if not left:
                    raise
                await wait_or_raise(backoff, conflict)
            else:
                return aggregate
        raise ValueError(f"tries={self._tries}: give 1 or more")

    async def _replay(self, aggregate: AnyAggregate) -> None:
        async for event in self._store.iterate_stream(aggregate.stream_id, aggregate.version + 1):
            aggregate.replay(event)


class SnapshottedRepository(Repository[AnyAggregate]):
    """A repository for long streams: it loads the last snapshot and the events behind it, and saves a snapshot each time that a
    version passes a multiple of `every`.

    Snapshots are a cache. One of another `snapshot_version`, of another shape, or of a history that the stream does not have, is
    ignored and replaced; when one can't be saved, that is logged, for the events are recorded.

    Raises:
        EventspineError: the aggregate's state does not survive JSON and back.
    """

    def __init__(self, store: EventStore, aggregate_type: type[AnyAggregate], *, every: int = 50, tries: int = 5) -> None:
        super().__init__(store, aggregate_type, tries=tries)
        if every < 1:
            raise EventspineError(f"every={every}: a snapshot is saved each so many events; give 1 or more")
        self._every = every
        try:
            aggregate_type("probe").restore(msgspec.json.decode(msgspec.json.encode(aggregate_type("probe").snapshot())))
        except Exception as error:
            raise EventspineError(
                f"the state of {aggregate_type.__name__} does not survive JSON and back ({error}); annotate it with types that "
                "do, or override snapshot() and restore()"
            ) from error

    async def load(self, id: str) -> AnyAggregate:
        snapshot = await self._store.load_snapshot(self._type(id).stream_id, schema_version=self._type.snapshot_version)
        aggregate = None if snapshot is None else await self._from_snapshot(id, snapshot)
        if aggregate is None:
            return await super().load(id)
        await self._replay(aggregate)
        return aggregate

    async def save(self, aggregate: AnyAggregate, *, metadata: Mapping[str, Any] | None = None) -> list[Event]:
        before = aggregate.version
        recorded = await super().save(aggregate, metadata=metadata)
        if recorded and aggregate.version // self._every > before // self._every:
            try:
                await self._store.save_snapshot(
                    aggregate.stream_id,
                    aggregate.stream_type,
                    {"last_event_id": str(recorded[-1].event_id), "state": aggregate.snapshot()},
                    version=aggregate.version,
                    schema_version=aggregate.snapshot_version,
                )
            except Exception as error:  # the events are recorded: the command has succeeded, and loading needs no snapshot
                logger.warning("no snapshot of %s@%s: %s", aggregate.stream_id, aggregate.version, error)
        return recorded

    async def _from_snapshot(self, id: str, snapshot: Snapshot) -> AnyAggregate | None:
        aggregate = self._type(id)
        found = await self._store.read_stream(snapshot.stream_id, snapshot.version, 1)
        try:
            if not found or found[0].version != snapshot.version or str(found[0].event_id) != snapshot.state["last_event_id"]:
                raise ValueError("the stream has another event at that version")
            aggregate.restore(snapshot.state["state"])
        except Exception as error:
            logger.warning("snapshot %s@%s is ignored: %s", snapshot.stream_id, snapshot.version, error)
            return None
        aggregate.version = snapshot.version
        return aggregate


def conflict_backoff() -> Backoff:
    """How long to wait before deciding anew: writers that collided shall not do so again in step."""
    return Backoff(first_s=0.002, most_s=0.1)


def with_metadata(event: Event, metadata: Mapping[str, Any] | None) -> Event:
    """Return the event with `metadata` where it has none itself."""
    return event if not metadata else msgspec.structs.replace(event, metadata={**metadata, **event.metadata})


def _state_of(cls: type[Any]) -> tuple[str, ...]:
    """Return the attributes that a class and its bases annotate with a default."""
    annotated = {name: hint for base in reversed(cls.__mro__) for name, hint in inspect.get_annotations(base).items()}
    return tuple(name for name, hint in annotated.items() if "ClassVar" not in str(hint) and hasattr(cls, name))
