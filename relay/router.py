"""Where an event goes on Kafka, and in what form: topic, key, value, headers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec

from ..schemas import Event, EventspineError, EventType, PinnedType, SettingsError, StoredEvent, Upcaster, schema_id_of
from ..schemas.cloudevents import Header, HeaderWriter
from ..schemas.codec import Codec
from ..schemas.envelope import PinnedEnvelope, envelop
from ..schemas.kafka import topic_of
from .cursor import cursor_topic
from .routing import Routing, apply, check_topic, key_of, matches, patterns_of, topic_name, unmatched
from .source import Pins

__all__ = ["LATER", "SUBJECT_NAMES", "VALUE_FORMATS", "Misrouted", "Routed", "Router", "check_options"]

logger = logging.getLogger(__name__)

VALUE_FORMATS: Final = ("data", "envelope")

SUBJECT_NAMES: Final[Mapping[str, Callable[[str, str], str]]] = {
    "TopicRecordNameStrategy": lambda topic, full_name: f"{topic}-{full_name}",
    "RecordNameStrategy": lambda topic, full_name: full_name,
    "TopicNameStrategy": lambda topic, full_name: f"{topic}-value",
}
"""How a subject is called after the topic and the record, under each of the names that Confluent's clients give these ways.

Source: https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#subject-name-strategy
"""

_KEPT: Final = ("timestamp", "correlation_id", "causation_id", "traceparent", "tracestate")
"""What an event that was made of another takes over from that one's metadata."""

_read_json = msgspec.json.Decoder(dict[str, Any])
_write_json = msgspec.json.Encoder()


class Routed(NamedTuple):
    """A record before its partition is known."""

    topic: str
    key: bytes
    value: bytes
    headers: list[Header]


LATER: Final[list[Header]] = []
"""In place of headers: they are made when the record is published, by `Router.headers`."""


class Misrouted(EventspineError):
    """Report that an event can't be published, whose place is known all the same: its shard has to park it.

    Attributes: `topic`, `key`.
    """

    def __init__(self, said: str, *, topic: str, key: bytes) -> None:
        super().__init__(said)
        self.topic = topic
        self.key = key


class _Plan(NamedTuple):
    """What a routing comes to for one event type of a category, without looking at an event."""

    published: bool
    decodes: bool
    transform: Callable[[Event], Event | None] | None


class Router:
    """Routes events: by default topic by category, key by stream, the stored bytes untouched; otherwise as a `Routing` says.

    The envelope goes into the headers, or with `value_format` "envelope" into the value. `event_types` and `upcasters` are what
    the program declares: functions of the routing see events as these say.

    `route(event)` returns the record of an event, None if it is not published, and raises whatever makes that impossible. Give it
    events that `prepare` has seen. `plan(event)` may leave the headers to `headers(event)`: made at the last moment, the many
    small objects of a batch need not all be there at once.
    """

    positions_in_headers: Final = True

    def __init__(
        self,
        log: Pins,
        *,
        prefix: str,
        source: str,
        value_format: str = "data",
        subject_strategy: str = "TopicRecordNameStrategy",
        routing: Routing | None = None,
        event_types: Sequence[EventType] = (),
        upcasters: Sequence[Upcaster] = (),
    ) -> None:
        check_options(value_format, subject_strategy)
        routing = routing or Routing()
        self._by_rule = routing != Routing()
        self.route: Callable[[StoredEvent], Routed | None] = self._by_rules if self._by_rule else self._by_default
        self.plan = self.route if self._by_rule or value_format == "envelope" else self._plan_by_default
        self._log = log
        self._prefix = prefix
        self._headers = HeaderWriter(source)
        self.headers = self._headers.headers
        self._enveloped = value_format == "envelope"
        self._subject_of = SUBJECT_NAMES[subject_strategy]
        self._topics: dict[str, str] = {}
        self._kinds: set[tuple[str, str, int]] = set()  # category, event type, schema version: what is prepared
        self._envelopes: dict[int, PinnedEnvelope] = {}
        self._full_names: dict[int, str] = {}
        self._listed: set[tuple[str, int]] = set()
        self._routing = routing
        self._event_types = (*event_types, *routing.public_types)
        self._upcasters = tuple(upcasters)
        self._public = {(each.name, each.schema_version) for each in routing.public_types}
        self._public_names = {each.name for each in routing.public_types}
        self._plans: dict[tuple[str, str], _Plan] = {}
        self._fixed: dict[tuple[str, str], str] = {}  # topics of kinds whose events need no look
        self._topics_by_kind: dict[tuple[str, str], str] = {}
        self._legal: set[str] = set()
        self._codec = Codec()
        self._found: set[tuple[str, bytes]] = set()  # topic and first five bytes of values that were made
        self._to_list: set[tuple[str, bytes]] = set()
        self._started = False

    @property
    def by_stream(self) -> bool:
        """Whether `place` can say where an event goes: its topic and key depend on its category, type and stream only."""
        routing = self._routing
        return not callable(routing.topic) and routing.key == "stream" and (not routing.transform or routing.topic == "category")

    async def start(self) -> None:
        """Register the public event types, and learn those of the log, if there is something to decide by them.

        Raises:
            SettingsError: a right is missing for a public type that is new.
            SchemaError: a public type contradicts a registered one, or upcasters are missing.
            Unavailable: Postgres is away, or with a new type the registry.
        """
        if self._started or not self._by_rule:
            self._started = True
            return
        if self._public:
            await self._log.register_event_types(self._routing.public_types, self._upcasters)
        await self._learn()
        if self._enveloped and self._public:
            pins = [self._codec.pinned_type(*each) for each in self._public]
            self._envelopes |= await self._log.pin_envelopes({pin.schema_id for pin in pins if pin is not None})
        event_types = {pin.event_type.name for pin in self._codec.pinned()}
        slips = unmatched(self._routing, event_types, set(await self._log.categories_of_types(self._prefix)))
        if slips:
            logger.warning("the routing names what is neither an event type nor a category yet: %s", ", ".join(slips))
        self._started = True

    async def prepare(self, events: Sequence[StoredEvent]) -> None:
        """Pin the envelopes and list the subjects that are new with these events. Comes before `route`.

        Raises:
            SettingsError, SchemaError, Unavailable: an envelope, or at the start a public type, could not be registered.
        """
        if not self._started:
            await self.start()
        new = {(event.stream_type, event.event_type, event.schema_version): event for event in events}
        for kind in self._kinds:
            new.pop(kind, None)
        if not new:
            return
        if self._by_rule:
            await self._prepare_rules([event for event in new.values() if self._plan_of(event).published])
            self._kinds |= new.keys()
            return
        ids = {schema_id_of(event.payload) for event in new.values()}
        if self._enveloped:
            self._envelopes |= await self._log.pin_envelopes(ids - self._envelopes.keys())
        elif ids - self._full_names.keys():
            self._know(await self._log.pinned_types())
        await self._list((topic_of(event.stream_type, self._prefix), schema_id_of(event.payload)) for event in new.values())
        self._kinds |= new.keys()

    async def list_subjects(self) -> None:
        """List the subjects of what `route` made since the last time: a function may say any topic. Comes before publishing.

        Raises:
            Unavailable: Postgres is away.
        """
        if self._to_list:
            found = frozenset(self._to_list)
            await self._list((topic, self._data_id(header)) for topic, header in found)
            self._to_list -= found

    def place(self, event: StoredEvent) -> tuple[str, bytes] | None:
        """Return topic and key of an event without looking at its payload, None if it is not published for its type or category.

        Only for a router that is `by_stream`. One that has a place may still not be published, as a function says.
        """
        if self._by_rule and not self._plan_of(event).published:
            return None
        return self._topic_by_kind(event.stream_type, event.event_type), event.stream_id.encode()

    def _by_default(self, event: StoredEvent) -> Routed | None:
        stream_type = event.stream_type
        topic = self._topics.get(stream_type)
        if topic is None:
            topic = self._topics[stream_type] = topic_of(stream_type, self._prefix)
        if self._enveloped:
            return Routed(topic, event.stream_id.encode(), *envelop(event, self._envelopes[schema_id_of(event.payload)].header))
        return Routed(topic, event.stream_id.encode(), event.payload, self._headers.headers(event))

    def _plan_by_default(self, event: StoredEvent) -> Routed | None:
        topic = self._topics.get(event.stream_type)
        if topic is None:
            topic = self._topics[event.stream_type] = topic_of(event.stream_type, self._prefix)
        return Routed(topic, event.stream_id.encode(), event.payload, LATER)

    def _by_rules(self, stored: StoredEvent) -> Routed | None:
        topic = self._fixed.get((stored.stream_type, stored.event_type))
        if topic is not None:
            return self._routed(topic, stored.stream_id.encode(), stored)
        plan = self._plan_of(stored)
        if not plan.published:
            return None
        if plan.decodes:
            try:
                return self._by_functions(stored, plan)
            except Exception as error:
                if not self.by_stream:
                    raise
                topic, key = self._topic_by_kind(stored.stream_type, stored.event_type), stored.stream_id.encode()
                raise Misrouted(f"{type(error).__name__}: {error}", topic=topic, key=key) from error
        topic = self._fixed[stored.stream_type, stored.event_type] = self._topic_by_kind(stored.stream_type, stored.event_type)
        return self._routed(topic, stored.stream_id.encode(), stored)

    def _by_functions(self, stored: StoredEvent, plan: _Plan) -> Routed | None:
        routing, event = self._routing, self._decoded(stored)
        if callable(routing.include) and not _yes("include", routing.include, event):
            return None
        if callable(routing.exclude) and _yes("exclude", routing.exclude, event):
            return None
        if plan.transform is not None:
            made = apply(f"transform of {event.event_type}", plan.transform, event)
            if made is None:
                return None
            if made is not event:
                stored, event = self._made(stored, event, made)
        if callable(routing.topic):
            said = apply("topic", routing.topic, event)
            topic = self._checked(f"{self._prefix}{said}" if isinstance(said, str) else said)
        else:
            topic = self._topic_by_kind(stored.stream_type, stored.event_type)
        key = stored.stream_id.encode() if routing.key == "stream" else key_of(routing.key, event)
        routed = self._routed(topic, key, stored)
        found = (topic, routed.value[:5])
        if found not in self._found:
            self._found.add(found)
            self._to_list.add(found)
        return routed

    def _routed(self, topic: str, key: bytes, stored: StoredEvent) -> Routed:
        if self._enveloped:
            return Routed(topic, key, *envelop(stored, self._envelopes[schema_id_of(stored.payload)].header))
        return Routed(topic, key, stored.payload, self._headers.headers(stored))

    def _plan_of(self, event: StoredEvent) -> _Plan:
        """Return what is decided, once, without looking into an event."""
        category, event_type = event.stream_type, event.event_type
        plan = self._plans.get((category, event_type))
        if plan is not None:
            return plan
        routing = self._routing
        included = callable(routing.include) or matches(patterns_of(routing.include), category, event_type)
        published = included and not matches(patterns_of(routing.exclude), category, event_type)
        transform = routing.transform.get(event_type)
        by_functions = any(map(callable, (routing.topic, routing.include, routing.exclude)))
        decodes = published and (by_functions or routing.key != "stream" or transform is not None)
        plan = self._plans[category, event_type] = _Plan(published, decodes, transform)
        return plan

    def _topic_by_kind(self, category: str, event_type: str) -> str:
        topic = self._topics_by_kind.get((category, event_type))
        if topic is None:
            assert not callable(self._routing.topic)
            topic = self._checked(self._prefix + topic_name(self._routing.topic, category, event_type))
            self._topics_by_kind[category, event_type] = topic
        return topic

    def _checked(self, topic: object) -> str:
        if topic not in self._legal:
            if check_topic(topic) == cursor_topic(self._prefix):
                raise SettingsError(f"{topic!r} is the topic of the relay's cursors: choose another name for events")
            self._legal.add(str(topic))
        return str(topic)

    def _decoded(self, stored: StoredEvent) -> Event:
        """Return an event as the program reads it."""
        event = stored.decoded(self._codec.decode(stored.payload))
        return self._codec.upcast([event])[0]

    def _made(self, stored: StoredEvent, source: Event, made: object) -> tuple[StoredEvent, Event]:
        """Return what a transform made of an event, as it would be stored and as it is read: with the places of its source.

        Raises:
            SettingsError: it is no event of a public type.
            InvalidEvent: its data does not fit its schema.
        """
        said = f"the routing's transform of {source.event_type} returned"
        if not isinstance(made, Event):
            raise SettingsError(f"{said} {type(made).__name__}; it returns an Event, or None")
        if made.event_type not in self._public_names:
            raise SettingsError(f"{said} an event of type {made.event_type!r}; name its EventType in the routing's public_types")
        encoded = self._codec.encode(made.event_type, made.schema_version, made.data)
        if (made.event_type, encoded.schema_version) not in self._public:
            raise SettingsError(
                f"{said} {made.event_type} version {encoded.schema_version}, which is not in the routing's public_types"
            )
        metadata = {**made.metadata}
        for name in _KEPT:
            metadata.pop(name, None)
            if name in source.metadata:
                metadata[name] = source.metadata[name]
        event = msgspec.structs.replace(
            source,
            event_type=made.event_type,
            schema_version=encoded.schema_version,
            data=encoded.data,
            metadata=metadata,
        )
        as_stored = stored._replace(
            event_type=made.event_type,
            schema_version=encoded.schema_version,
            payload=encoded.payload,
            metadata=_write_json.encode(metadata).decode(),
        )
        return as_stored, event

    async def _prepare_rules(self, events: Sequence[StoredEvent]) -> None:
        ids = {schema_id_of(event.payload) for event in events}
        if any(not self._codec.knows_id(each) for each in ids):
            await self._learn()
        if self._enveloped:
            self._envelopes |= await self._log.pin_envelopes(ids - self._envelopes.keys())
        fixed = []
        for event in events:
            if not self._plan_of(event).decodes:
                with suppress(SettingsError):  # a name that can't be a topic: `route` says so of each event
                    fixed.append((self._topic_by_kind(event.stream_type, event.event_type), schema_id_of(event.payload)))
        await self._list(fixed)

    async def _learn(self) -> None:
        pins = await self._log.pinned_types()
        self._codec.add(pins, declared=self._event_types, upcasters=self._upcasters)
        self._know(pins)

    def _know(self, pins: Iterable[PinnedType]) -> None:
        self._full_names = {pin.schema_id: pin.event_type.full_name for pin in pins}

    def _data_id(self, header: bytes) -> int:
        """Return the schema id of the data of a value that begins like this."""
        if not self._enveloped:
            return schema_id_of(header)
        return next(data_id for data_id, envelope in self._envelopes.items() if envelope.header == header)

    async def _list(self, published: Iterable[tuple[str, int]]) -> None:
        """List the schemas of records under their subjects; given as topic and schema id of the data."""
        subjects = {self._subject(*each) for each in published} - self._listed
        if subjects:
            await self._log.register_subjects(subjects)
            self._listed |= subjects

    def _subject(self, topic: str, data_schema_id: int) -> tuple[str, int]:
        """Return under which subject a registry lists the schema of records, and its id."""
        if self._enveloped:
            envelope = self._envelopes[data_schema_id]
            return self._subject_of(topic, envelope.full_name), envelope.schema_id
        return self._subject_of(topic, self._full_names[data_schema_id]), data_schema_id


def _yes(what: str, function: Callable[[Event], bool], event: Event) -> bool:
    """Return what a function says. Anything but True or False is refused: None may be a forgotten `return`, and publish."""
    said = apply(what, function, event)
    if not isinstance(said, bool):
        raise SettingsError(f"the routing's {what} function returned {said!r}; it returns True or False")
    return said


def check_options(value_format: str, subject_strategy: str) -> None:
    """Check the two options that are names.

    Raises:
        SettingsError: there is no such value.
    """
    for option, value, known in (
        ("value_format", value_format, VALUE_FORMATS),
        ("subject_strategy", subject_strategy, tuple(SUBJECT_NAMES)),
    ):
        if value not in known:
            raise SettingsError(f"{option} is {value!r}; it is one of {', '.join(known)}")
