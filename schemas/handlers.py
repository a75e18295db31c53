"""Handlers of event types: methods that are marked with `@on`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["handlers_of", "on"]

Handler = TypeVar("Handler", bound=Callable[..., None])


def on(*event_types: str | type) -> Callable[[Handler], Handler]:
    """Mark a method as the handler of these event types: of a `Projection`, or of an `Aggregate`.

    A class (dataclass, pydantic model) stands for the event type of its name; `event.data_as(Class)` makes an instance.
    """
    names = tuple(each if isinstance(each, str) else each.__name__ for each in event_types)

    def mark(handler: Handler) -> Handler:
        handler.__dict__["handles"] = names
        return handler

    return mark


def handlers_of(cls: type[Any], error: type[Exception]) -> dict[str, str]:
    """Return the handlers of a class and its bases: event type → the method's name. A method that is overridden counts once.

    Raises:
        error: two methods handle the same event type.
    """
    members = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
    handlers: dict[str, str] = {}
    for attribute, member in members.items():
        for event_type in getattr(member, "handles", ()):
            if event_type in handlers:
                raise error(f"{cls.__name__}: {handlers[event_type]} and {attribute} both handle {event_type}")
            handlers[event_type] = attribute
    return handlers
