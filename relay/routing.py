"""What users write to say which events are published, where, and in what form: a `Routing`, and what its rules come to.

Everything here is decided without I/O, and most of it once for each category and event type: a rule that names these never looks
at an event's data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from inspect import iscoroutinefunction
from typing import Any, Final
from uuid import UUID

from ..schemas import Event, EventspineError, EventType, InvalidEvent, SettingsError

__all__ = ["Routing", "apply", "check_topic", "key_of", "matches", "patterns_of", "topic_name", "unmatched"]

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_BY_NAME: Final = {"category": "{category}", "type": "{type}"}
_SAMPLE: Final = {"category": "Order", "type": "OrderPlaced"}


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which events are published, under which topic and key, and in what form.

    `topic` is "category" (default), "type", a mapping of patterns to names, or a function of the event; the topic prefix is put
    before what it says. In a mapping the first pattern that matches counts, a name may hold `{category}` and `{type}`, and what
    no pattern matches goes to its category. `key` is "stream" (default), the name of a data field ("customer_id", "customer.id"),
    or a function of the event that returns a text or bytes. `include` and `exclude` are patterns, or a function that says True or
    False; an event is published if it is included and not excluded.

    A pattern is the name of an event type or of a category, or both as `Category/Type`; `*`, `?` and `[…]` stand for what they
    stand for in file names.

    `transform` maps event types to functions that make of an event the one that is published: one of `public_types`, the event
    itself (it is published as it is), or None (it is not). Topic and key are then those of what was made. `public_types` are
    registered when the relay starts.

    Functions see the event as the program reads it, in the schema version that it declares, with personal fields as they are
    stored; `tags` are left out. They must give the same for the same event whenever they are called, because a record may be
    made again, as to verify what is on Kafka. An event that a function fails on is parked, and what follows in its stream
    behind it.

    Raises:
        SettingsError: a rule can't be right.
    """

    topic: str | Mapping[str, str] | Callable[[Event], str] = "category"
    key: str | Callable[[Event], str | bytes] = "stream"
    include: str | Collection[str] | Callable[[Event], bool] = "*"
    exclude: str | Collection[str] | Callable[[Event], bool] = ()
    transform: Mapping[str, Callable[[Event], Event | None]] = field(default_factory=dict)
    public_types: Sequence[EventType] = ()

    def __post_init__(self) -> None:
        for name, function in [
            *((name, getattr(self, name)) for name in ("topic", "key", "include", "exclude")),
            *((f"transform[{name!r}]", function) for name, function in self.transform.items()),
        ]:
            if iscoroutinefunction(function):
                raise SettingsError(f"the routing's {name} is an async function; it is called for each event: write a plain one")
            if name.startswith("transform") and not callable(function):
                raise SettingsError(f"the routing's {name} is {function!r}; it must be a function of the event")
        self._check_topic()
        if not callable(self.key) and (not isinstance(self.key, str) or not all(self.key.split("."))):
            raise SettingsError(f"the routing's key is {self.key!r}; it is 'stream', the name of a data field, or a function")
        for name in ("include", "exclude"):
            rule = getattr(self, name)
            if not callable(rule) and not (isinstance(rule, Collection) and all(isinstance(each, str) and each for each in rule)):
                raise SettingsError(f"the routing's {name} is {rule!r}; it holds patterns, or is a function")
        if not callable(self.include) and not self.include:
            raise SettingsError("the routing's include is empty, so nothing would be published: leave it out to publish all")
        for each in self.public_types:
            if not isinstance(each, EventType):
                raise SettingsError(f"the routing's public_types hold {each!r}, which is no EventType")

    def _check_topic(self) -> None:
        if isinstance(self.topic, Mapping):
            for pattern, name in self.topic.items():
                try:
                    check_topic(name.format(**_SAMPLE))
                except (AttributeError, KeyError, IndexError, ValueError) as error:
                    why = error if isinstance(error, SettingsError) else "a name may hold {category} and {type}, and nothing else"
                    raise SettingsError(f"the routing's topic for {pattern!r} is {name!r}: {why}") from error
        elif not callable(self.topic) and self.topic not in _BY_NAME:
            raise SettingsError(
                f"the routing's topic is {self.topic!r}; it is 'category', 'type', a mapping of patterns to names "
                f"({{'*': {self.topic!r}}} is one topic for all), or a function"
            )


def matches(patterns: Iterable[str], category: str, event_type: str) -> bool:
    """Tell whether one of the patterns names an event type of a category."""
    for pattern in patterns:
        fits = re.compile(translate(pattern)).match
        if fits(f"{category}/{event_type}") if "/" in pattern else fits(event_type) or fits(category):
            return True
    return False


def topic_name(topic: str | Mapping[str, str], category: str, event_type: str) -> str:
    """Return where events of a type and category go, before the prefix; for a rule that is no function."""
    if isinstance(topic, str):
        name = _BY_NAME[topic]
    else:
        name = next((name for pattern, name in topic.items() if matches([pattern], category, event_type)), "{category}")
    return name.format(category=category, type=event_type)


def check_topic(topic: object) -> str:
    """Return a topic's name if Kafka takes it.

    Source: `Topic.validate` in https://github.com/apache/kafka/blob/4.0.0/clients/src/main/java/org/apache/kafka/common/internals/Topic.java

    Raises:
        SettingsError: it is no such name.
    """
    if not isinstance(topic, str) or topic in (".", "..") or _TOPIC.fullmatch(topic) is None:
        raise SettingsError(
            f"{topic!r} can't be a topic: that is a text of 1 to 249 letters, digits, '.', '_' or '-', and neither '.' nor '..'"
        )
    return topic


def key_of(key: str | Callable[[Event], str | bytes], event: Event) -> bytes:
    """Return the key of an event, by a field of its data or by a function.

    Raises:
        InvalidEvent: there is no such field, or it is no text, UUID or whole number.
        SettingsError: the function returned neither text nor bytes, or nothing in them.
    """
    if callable(key):
        said = apply("key", key, event)
        if not isinstance(said, (str, bytes)) or not said:
            raise SettingsError(f"the routing's key function returned {said!r}; a key is a text or bytes, not empty")
        return said if isinstance(said, bytes) else said.encode()
    value: Any = event.data
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise InvalidEvent(f"its data has no field {key!r}, which is the key", event_type=event.event_type)
        value = value[name]
    if isinstance(value, bool) or not isinstance(value, (str, UUID, int)) or value == "":
        raise InvalidEvent(
            f"its field {key!r}, the key, is {value!r}; a key is a text that is not empty, a UUID or a whole number",
            event_type=event.event_type,
        )
    return str(value).encode()


def apply(what: str, function: Callable[[Event], Any], event: Event) -> Any:
    """Call a user's function.

    Raises:
        EventspineError: it raised something; says which of them.
    """
    try:
        return function(event)
    except Exception as error:
        raise EventspineError(f"the routing's {what} function raised {type(error).__name__}: {error}") from error


def unmatched(routing: Routing, event_types: Collection[str], categories: Collection[str]) -> list[str]:
    """Return the names in a routing that are neither an event type nor a category, as slips of the pen are."""
    patterns = [*patterns_of(routing.include), *patterns_of(routing.exclude), *routing.transform]
    if isinstance(routing.topic, Mapping):
        patterns += routing.topic
    pairs = {("", each) for each in event_types} | {(each, "") for each in categories}
    full = {(category, event_type) for category in categories for event_type in event_types}
    return sorted({each for each in patterns if not any(matches([each], *pair) for pair in (full if "/" in each else pairs))})


def patterns_of(rule: str | Collection[str] | Callable[[Event], bool]) -> Collection[str]:
    """Return the patterns of `include` or `exclude`, () of a function."""
    if callable(rule):
        return ()
    return (rule,) if isinstance(rule, str) else rule
