"""Queries over the log: what a filtered read, a subscription and an append condition look for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..schemas import Event, InvalidEvent

__all__ = ["AppendCondition", "Query", "QueryItem"]


@dataclass(frozen=True, init=False)
class QueryItem:
    """Match the events that have all that is named here; what is not named does not matter.

    `event_types` and `categories`: one of them. `tags`: every one of them. `correlation_id`: this one.
    """

    event_types: tuple[str, ...]
    tags: tuple[str, ...]
    categories: tuple[str, ...]
    correlation_id: str | None

    def __init__(
        self,
        *,
        event_types: Iterable[str] = (),
        tags: Iterable[str] = (),
        categories: Iterable[str] = (),
        correlation_id: str | None = None,
    ) -> None:
        for name, given in (("event_types", event_types), ("tags", tags), ("categories", categories)):
            texts = (given,) if isinstance(given, str) else tuple(given)
            for text in texts:
                if not isinstance(text, str) or not text or "\0" in text:
                    raise InvalidEvent(f"{name} of a query holds {text!r}; give texts that are not empty")
            object.__setattr__(self, name, tuple(sorted(set(texts))))
        if correlation_id is not None and (not isinstance(correlation_id, str) or "\0" in correlation_id):
            raise InvalidEvent(f"correlation_id of a query is {correlation_id!r}; give a text")
        object.__setattr__(self, "correlation_id", correlation_id)

    def matches(self, event: Event) -> bool:
        """Tell whether a recorded event matches."""
        return (
            (not self.event_types or event.event_type in self.event_types)
            and (not self.categories or event.category in self.categories)
            and (self.correlation_id is None or event.correlation_id == self.correlation_id)
            and (not self.tags or set(self.tags) <= set(event.tags))
        )


@dataclass(frozen=True, init=False)
class Query:
    """Match the events that match one of the items; without items, every event.

    `Query(QueryItem(tags=["course:c1"], event_types=["CourseDefined"]), QueryItem(tags=["student:s9"]))`
    """

    items: tuple[QueryItem, ...]

    def __init__(self, *items: QueryItem) -> None:
        if not all(isinstance(item, QueryItem) for item in items):
            raise InvalidEvent("a query is made of QueryItem objects: Query(QueryItem(tags=[…]), …)")
        object.__setattr__(self, "items", items)

    def matches(self, event: Event) -> bool:
        """Tell whether a recorded event matches."""
        return not self.items or any(item.matches(event) for item in self.items)


@dataclass(frozen=True)
class AppendCondition:
    """Let an append pass only if no event that matches `query` was recorded after position `after`.

    `after` is the position of the last event that was read for the decision, 0 if there was none. So a decision stands on
    what was read, whatever streams it came from: a dynamic consistency boundary.

    Source: https://dcb.events/specification/
    """

    query: Query
    after: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.query, Query):
            raise InvalidEvent(f"the condition's query is {type(self.query).__name__}; give a Query")
        if type(self.after) is not int or not 0 <= self.after < 2**63:
            raise InvalidEvent(f"after={self.after!r}: give the position of the last event that was read, 0 for none")
