"""A projection: the code that turns events into a read model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from ..schemas import Event, EventspineError, ProjectionError
from ..schemas.handlers import handlers_of
from .table import Statement, Table, TableWriter

__all__ = ["Projection"]


class Projection:
    """Base of all projections: declare tables as class attributes, handle events by methods marked with `@on`.

        class OrderSummary(Projection):
            categories = ("Order",)
            table = Table("order_summaries", columns={"id": "text", "status": "text"}, key="id")

            @on("OrderPlaced")
            def placed(self, event, orders):
                orders.upsert(id=event.data["order_id"], status="placed")

    A handler takes the event, then one `TableWriter` for each declared table, in the order of declaration. It runs in
    memory, must not wait for anything, and may run again for the same event after a failure: all that counts is what it
    writes through its writers.

    `name` (by default the class's name in snake_case) is the Kafka group and the key of the offsets: a projection under a
    new name starts from the beginning. `categories` says which streams it reads; by default all.
    """

    name: ClassVar[str] = ""
    categories: ClassVar[Sequence[str]] = ()
    tables: ClassVar[tuple[Table, ...]] = ()
    _handlers: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        members = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        cls.tables = tuple(value for value in members.values() if isinstance(value, Table))
        cls._handlers = handlers_of(cls, ProjectionError)

    def handles(self, event_type: str) -> bool:
        """Whether there is a handler for this event type."""
        return event_type in self._handlers

    def fold(self, events: Sequence[Event]) -> list[Statement]:
        """Run the handlers over a batch, in order, and return what they wrote as statements.

        Raises:
            ProjectionError: a handler failed; it names the event.
        """
        writers = [TableWriter(table) for table in self.tables]
        handlers = {event_type: getattr(self, attribute) for event_type, attribute in self._handlers.items()}
        for event in events:
            handler = handlers.get(event.event_type)
            if handler is None:
                continue
            try:
                handler(event, *writers)
            except Exception as error:
                said = str(error) if isinstance(error, EventspineError) else repr(error)
                raise ProjectionError(
                    f"projection {self.name} failed at {event.event_type} (stream {event.stream_id!r}, version {event.version}, "
                    f"global position {event.global_position}): {said}; nothing of this batch was written: mend the "
                    "handler and start again"
                ) from error
        return [statement for writer in writers for statement in writer.flush()]
