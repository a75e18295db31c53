"""A projection: the code that turns events into a read model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from ..schemas import Event, ProjectionError
from ..schemas.handlers import handlers_of
from .sql_writer import Sql, SqlWriter
from .table import Rows, Table, TableWriter

__all__ = ["Projection", "on_batch"]

Handler = Callable[..., None]


class Projection:
    """Base of all projections: declare tables as class attributes, handle events by methods marked with `@on`.

        class OrderSummary(Projection):
            categories = ("Order",)
            table = Table("order_summaries", columns={"id": "text", "status": "text"}, key="id")

            @on("OrderPlaced")
            def placed(self, event, orders):
                orders.upsert(id=event.data["order_id"], status="placed")

    A handler takes the event, then one writer for each declared `Table` or `Sql`, in the order of declaration. It runs in
    memory, must not wait for anything, and may run again for the same event: all that counts is what it writes through its
    writers. Methods marked with `@on_batch` take a list of events instead, all of one batch, behind the other handlers.

    `name` (by default the class's name in snake_case) is the Kafka group and the key of the offsets: a projection under a
    new name starts from the beginning. `categories` says which streams it reads; by default all.

    `migrations` are SQL statements that lead tables from an older declaration to this one: each runs once, in order, before the
    tables are looked at; new tables are made as declared, without them. Add to them at the end, and change none that ran.

    `poison` says what becomes of an event that a handler or the database refuses, or that can't be decoded: "park" sets it aside
    with all that follows in its stream, until somebody retries or discards it; "halt" ends the consumer; "skip" goes on behind
    it. Whatever is set aside is kept in the table `projection_parked`, with the reason.
    """

    name: ClassVar[str] = ""
    categories: ClassVar[Sequence[str]] = ()
    migrations: ClassVar[Sequence[str]] = ()
    poison: ClassVar[Literal["park", "halt", "skip"]] = "park"
    tables: ClassVar[tuple[Table, ...]] = ()
    models: ClassVar[tuple[Table | Sql, ...]] = ()
    _handlers: ClassVar[dict[str, str]] = {}
    _batch_handlers: ClassVar[dict[str, tuple[str, ...]]] = {}
    _handled: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if cls.poison not in ("park", "halt", "skip"):
            raise ProjectionError(f"projection {cls.name}: poison is {cls.poison!r}; it is one of park, halt, skip")
        members = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        cls.models = tuple(value for value in members.values() if isinstance(value, (Table, Sql)))
        cls.tables = tuple(value for value in cls.models if isinstance(value, Table))
        cls._handlers = handlers_of(cls, ProjectionError)
        if handlers_of(cls, ProjectionError, kind="reacts"):
            raise ProjectionError(f"projection {cls.name}: `by` in @on is for process managers; leave it out")
        cls._batch_handlers = {name: value.handles_batch for name, value in members.items() if hasattr(value, "handles_batch")}
        cls._handled = frozenset(cls._handlers).union(*cls._batch_handlers.values())

    @property
    def event_types(self) -> frozenset[str]:
        """The event types that there are handlers for."""
        return self._handled

    def handles(self, event_type: str) -> bool:
        """Whether there is a handler for this event type."""
        return event_type in self._handled

    def handlers(self) -> dict[str, Handler]:
        """Return what handles each event type."""
        return {event_type: getattr(self, attribute) for event_type, attribute in self._handlers.items()}

    def batch_handlers(self, events: Sequence[Event]) -> list[tuple[Handler, list[Event]]]:
        """Return the handlers of whole batches, with the events of their types, in order; none without events."""
        chosen = [
            (getattr(self, attribute), [event for event in events if event.event_type in event_types])
            for attribute, event_types in self._batch_handlers.items()
        ]
        return [(handler, of_types) for handler, of_types in chosen if of_types]

    def writers(self, rows: Mapping[str, Rows]) -> list[TableWriter | SqlWriter]:
        """Return what the handlers write through; `rows` are those that were fetched, by table."""
        return [model.writer(rows.get(model.name)) for model in self.models]


def on_batch(*event_types: str | type) -> Callable[[Handler], Handler]:
    """Mark a method as the handler of all events of these types in a batch: it takes them as a list, in order."""
    names = tuple(each if isinstance(each, str) else each.__name__ for each in event_types)

    def mark(handler: Handler) -> Handler:
        handler.__dict__["handles_batch"] = names
        return handler

    return mark
