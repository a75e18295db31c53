"""Handlers of event types: methods that are marked with `@on`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["handlers_of", "on"]

Handler = TypeVar("Handler", bound=Callable[..., Any])


def on(*event_types: str | type, by: Callable[[Any], str | None] | None = None) -> Callable[[Handler], Handler]:
    """Mark a method as the handler of these event types: of a `Projection`, an `Aggregate`, `Reactions` or a `ProcessManager`.

    A class (dataclass, pydantic model) stands for the event type of its name; `event.data_as(Class)` makes an instance.

    `by` makes it a handler of a `ProcessManager` that reacts: `by(event)` is the id of the process that the event is for, or None
    if it is for none.
    """
    names = tuple(each if isinstance(each, str) else each.__name__ for each in event_types)

    def mark(handler: Handler) -> Handler:
        handler.__dict__["handles" if by is None else "reacts"] = names
        if by is not None:
            handler.__dict__["by"] = by
        return handler

    return mark


def handlers_of(cls: type[Any], error: type[Exception], *, kind: str = "handles") -> dict[str, str]:
    """Return the handlers of a class and its bases: event type → the method's name. A method that is overridden counts once.

    `kind` "reacts" asks for those that were marked with `by`.

    Raises:
        error: two methods handle the same event type.
    """
    members = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
    handlers: dict[str, str] = {}
    for attribute, member in members.items():
        for event_type in getattr(member, kind, ()):
            if event_type in handlers:
                raise error(f"{cls.__name__}: {handlers[event_type]} and {attribute} both handle {event_type}")
            handlers[event_type] = attribute
    return handlers
