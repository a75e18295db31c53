"""The event: one immutable fact, and the names it goes by."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from time import time_ns
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid7

from .errors import DecodeError, InvalidEvent

__all__ = [
    "Event",
    "StoredEvent",
    "category_of",
    "check_stream_id",
    "check_tags",
    "data_of",
    "normalise_metadata",
    "recorded",
    "rfc3339",
    "rfc3339_now",
]

_read_json = msgspec.json.Decoder(dict[str, Any])

_STREAM_ID = re.compile(r"(?P<category>[A-Za-z_][A-Za-z0-9_.]*)-(?P<id>[^\x00-\x1f\x7f]+)")
_MAX_STREAM_ID_CHARS = 400
_TAG = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_MAX_TAGS = 100
_KEPT = (bytes, bytearray, date, datetime, time, timedelta, Decimal, UUID)
_IDENTIFIERS = ("correlation_id", "causation_id", "user_id")
_PASSED_ON = ("user_id", "traceparent", "tracestate")
_TRACE = {
    "traceparent": re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(r"[\t\x20-\x7e]*"),
}


Model = TypeVar("Model")


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):  # no part of a cycle, so nothing for the garbage collector
    """A fact: what happened, to which stream, who or what caused it, and, once recorded, its places.

    To append one, give `event_type` and `data`; `event_id` is a new UUIDv7 unless given. `metadata` holds the
    envelope: `correlation_id`, `causation_id`, `user_id` (strings), `timestamp` (when it happened: an aware datetime or
    an ISO 8601 string with offset; the time of the append unless given), and the user's own JSON values. `tags` name what
    the event is about beside its stream ("course:c1", "student:s9"), so that queries find it.

    `append` and every read return recorded copies, in which `stream_id`, `schema_version`, `version` (1, 2, … in
    the stream), `global_position` (1, 2, … in the log) and `created_at` (the database's clock) are set; before that they
    are empty, 0 and None. `schema_version` 0 asks for the newest registered version of the type.
    """

    event_type: str
    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = msgspec.field(default_factory=dict)
    event_id: UUID = msgspec.field(default_factory=uuid7)
    tags: tuple[str, ...] = ()
    stream_id: str = ""
    schema_version: int = 0
    version: int = 0
    global_position: int = 0
    created_at: datetime | None = None

    @classmethod
    def of(cls, instance: Any, **more: Any) -> Event:
        """Make an event of an instance of a dataclass or pydantic model; the class's name is the event type.

        `more` are the other arguments of `Event`: metadata, tags, event_id, schema_version.

        Raises:
            InvalidEvent: it is no such instance.
        """
        return cls(event_type=type(instance).__name__, data=data_of(instance), **more)

    def data_as(self, model: type[Model]) -> Model:
        """Return the data as an instance of a dataclass or pydantic model.

        Raises:
            DecodeError: the data does not fit the model.
        """
        try:
            validate: Callable[[Any], Model] | None = getattr(model, "model_validate", None)  # pydantic's
            if validate is not None:
                return validate(dict(self.data))
            return msgspec.convert(dict(self.data), model)
        except (ValueError, TypeError, msgspec.ValidationError) as error:
            where = f"stream {self.stream_id!r}, version {self.version}" if self.stream_id else "not recorded"
            raise DecodeError(f"{self.event_type} ({where}) does not fit {model.__name__}: {error}") from error

    @property
    def category(self) -> str:
        """The `{Type}` of the stream."""
        return self.stream_id.partition("-")[0]

    @property
    def correlation_id(self) -> str | None:
        return self.metadata.get("correlation_id")

    @property
    def causation_id(self) -> str | None:
        return self.metadata.get("causation_id")

    @property
    def user_id(self) -> str | None:
        return self.metadata.get("user_id")

    @property
    def timestamp(self) -> datetime | None:
        """When the fact happened, as its author says; aware, UTC. None before the append if none was given."""
        value = self.metadata.get("timestamp")
        return datetime.fromisoformat(value) if isinstance(value, str) else value

    def as_cause(self) -> dict[str, Any]:
        """Return the metadata of what this event causes: its id as `causation_id`, its `correlation_id` (or its id, if it began
        the conversation), its `user_id`, and its trace context."""
        event_id = str(self.event_id)
        passed_on = {name: self.metadata[name] for name in _PASSED_ON if self.metadata.get(name) is not None}
        return {"causation_id": event_id, "correlation_id": self.correlation_id or event_id, **passed_on}


class StoredEvent(NamedTuple):
    """An event as it lies in the log: bytes and texts, nothing decoded."""

    global_position: int
    event_id: str
    stream_id: str
    stream_type: str
    event_type: str
    version: int
    schema_version: int
    payload: bytes
    created_at: datetime
    metadata: str


def recorded(stored: StoredEvent, data: Mapping[str, Any]) -> Event:
    """Return the event that is stored so, with its data decoded. Its tags stay in the store."""
    return Event(
        event_type=stored.event_type,
        data=data,
        metadata=_read_json.decode(stored.metadata),
        event_id=UUID(stored.event_id),
        stream_id=stored.stream_id,
        schema_version=stored.schema_version,
        version=stored.version,
        global_position=stored.global_position,
        created_at=stored.created_at,
    )


def data_of(instance: Any) -> dict[str, Any]:
    """Return an instance of a dataclass or pydantic model as an event's data: names and values, nested ones as well.

    Raises:
        InvalidEvent: it is no such instance.
    """
    if hasattr(instance, "model_dump"):
        instance = instance.model_dump()
    elif not is_dataclass(instance) or isinstance(instance, type):
        raise InvalidEvent(f"{instance!r} is no instance of a dataclass or pydantic model")
    data = msgspec.to_builtins(instance, builtin_types=_KEPT)
    assert isinstance(data, dict)
    return data


def category_of(stream_id: str) -> str:
    """Return the category of a stream: `Order` for `Order-abc123`."""
    return stream_id.partition("-")[0]


def check_stream_id(stream_id: str, stream_type: str) -> None:
    """Check that a stream is named `{Type}-{id}` and that the type given beside it agrees.

    The type becomes part of a Kafka topic's name, so it holds letters, digits, `_` and `.` only.

    Raises:
        InvalidEvent: what is wrong with the name.
    """
    match = _STREAM_ID.fullmatch(stream_id) if isinstance(stream_id, str) else None
    if match is None:
        raise InvalidEvent(
            "a stream is named {Type}-{id}, like 'Order-abc123': a type of letters, digits, '_' or '.', a hyphen, and an "
            "id without control characters",
            stream_id=repr(stream_id) if not isinstance(stream_id, str) else stream_id,
        )
    if match[1] != stream_type:
        raise InvalidEvent(
            f"the stream's type is {match[1]!r}, but stream_type={stream_type!r} was given",
            stream_id=stream_id,
        )
    if len(stream_id) > _MAX_STREAM_ID_CHARS:
        raise InvalidEvent(f"the name has {len(stream_id)} characters; {_MAX_STREAM_ID_CHARS} is the limit")
    try:
        stream_id.encode()
    except UnicodeEncodeError as error:
        raise InvalidEvent(f"the name is not valid Unicode ({error.reason})") from error


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return an event's tags as they are stored: sorted, each once.

    Raises:
        InvalidEvent: a tag is no text of 1 to 200 characters, or there are more than 100.
    """
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidEvent(f"tags is {type(tags).__name__}; give a tuple or list of texts, like ('course:c1',)")
    given = list(tags)
    for tag in given:
        if not isinstance(tag, str) or _TAG.fullmatch(tag) is None:
            raise InvalidEvent(f"the tag {tag!r} is no text of 1 to 200 characters without control characters")
        try:
            tag.encode()
        except UnicodeEncodeError as error:
            raise InvalidEvent(f"the tag {tag!r} is not valid Unicode ({error.reason})") from error
    distinct = tuple(sorted(set(given)))
    if len(distinct) > _MAX_TAGS:
        raise InvalidEvent(f"the event has {len(distinct)} tags; {_MAX_TAGS} is the limit")
    return distinct


_second = (0, "")


def rfc3339_now() -> str:
    """Return the present time like `rfc3339`, at a third of its cost: the text of a second is made once."""
    global _second
    seconds, nanoseconds = divmod(time_ns(), 1_000_000_000)
    at, text = _second
    if at != seconds:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _second = (seconds, text)
    return f"{text}.{nanoseconds // 1000:06d}Z"


def rfc3339(moment: datetime) -> str:
    """Write an aware datetime in UTC, with microseconds and `Z`, so that texts sort like times."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def normalise_metadata(metadata: Mapping[str, Any], *, now: str) -> dict[str, Any]:
    """Return the envelope as it is stored: ids as strings, `timestamp` in UTC as RFC 3339 (`now` where it is missing).

    Raises:
        InvalidEvent: an identifier that is no string or UUID, a timestamp that is naive or unreadable, a trace context that is
            not in the form of https://www.w3.org/TR/trace-context/.
    """
    normal = dict(metadata)
    for name in _IDENTIFIERS:
        value = normal.get(name)
        if isinstance(value, UUID):
            normal[name] = str(value)
        elif value is None:
            normal.pop(name, None)
        elif not isinstance(value, str):
            raise InvalidEvent(f"metadata[{name!r}] is {type(value).__name__}; it must be a string or a UUID")
    for name, form in _TRACE.items():
        if name in normal and not (isinstance(normal[name], str) and form.fullmatch(normal[name])):
            if normal[name] is not None:
                raise InvalidEvent(
                    f"metadata[{name!r}] is {normal[name]!r}; give it in the form of W3C Trace Context, or not at all"
                )
            del normal[name]
    moment = normal.get("timestamp")
    if moment is None:
        normal["timestamp"] = now
        return normal
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError as error:
            raise InvalidEvent(f"metadata['timestamp'] {moment!r} is not an ISO 8601 time") from error
    if not isinstance(moment, datetime):
        raise InvalidEvent(f"metadata['timestamp'] is {type(moment).__name__}; it must be an aware datetime")
    if moment.utcoffset() is None:
        raise InvalidEvent("metadata['timestamp'] is naive; use an aware one, like datetime.now(timezone.utc)")
    normal["timestamp"] = rfc3339(moment)
    return normal
