"""Where an event goes on Kafka, and in what form: topic, key, value, headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from ..schemas import SettingsError, StoredEvent, schema_id_of
from ..schemas.cloudevents import Header, HeaderWriter
from ..schemas.envelope import PinnedEnvelope, envelop
from ..schemas.kafka import topic_of
from ..store.postgres.log import PostgresLog

__all__ = ["SUBJECT_NAMES", "VALUE_FORMATS", "Routed", "Router", "check_options"]

VALUE_FORMATS: Final = ("data", "envelope")

SUBJECT_NAMES: Final[Mapping[str, Callable[[str, str], str]]] = {
    "TopicRecordNameStrategy": lambda topic, full_name: f"{topic}-{full_name}",
    "RecordNameStrategy": lambda topic, full_name: full_name,
    "TopicNameStrategy": lambda topic, full_name: f"{topic}-value",
}
"""How a subject is called after the topic and the record, under each of the names that Confluent's clients give these ways.

Source: https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#subject-name-strategy
"""


class Routed(NamedTuple):
    """A record before its partition is known."""

    topic: str
    key: bytes
    value: bytes
    headers: list[Header]


class Router:
    """Routes events: topic by category, key by stream, the stored bytes untouched.

    The envelope goes into the headers, or with `value_format` "envelope" into the value.
    """

    def __init__(
        self,
        log: PostgresLog,
        *,
        prefix: str,
        source: str,
        value_format: str = "data",
        subject_strategy: str = "TopicRecordNameStrategy",
    ) -> None:
        check_options(value_format, subject_strategy)
        self._log = log
        self._prefix = prefix
        self._headers = HeaderWriter(source)
        self._enveloped = value_format == "envelope"
        self._subject_of = SUBJECT_NAMES[subject_strategy]
        self._topics: dict[str, str] = {}
        self._kinds: set[tuple[str, str, int]] = set()  # category, event type, schema version: what is prepared
        self._envelopes: dict[int, PinnedEnvelope] = {}
        self._full_names: dict[int, str] = {}
        self._listed: set[tuple[str, int]] = set()

    async def prepare(self, events: Sequence[StoredEvent]) -> None:
        """Pin the envelopes and list the subjects that are new with these events. Comes before `route`.

        Raises:
            SettingsError, SchemaError, Unavailable: an envelope could not be registered.
        """
        new = {(event.stream_type, event.event_type, event.schema_version): event for event in events}
        for kind in self._kinds:
            new.pop(kind, None)
        if not new:
            return
        ids = {schema_id_of(event.payload) for event in new.values()}
        if self._enveloped:
            self._envelopes |= await self._log.pin_envelopes(ids - self._envelopes.keys())
        elif ids - self._full_names.keys():
            self._full_names = {pin.schema_id: pin.event_type.full_name for pin in await self._log.pinned_types()}
        subjects = {self._subject(event) for event in new.values()} - self._listed
        await self._log.register_subjects(subjects)
        self._listed |= subjects
        self._kinds |= new.keys()

    def route(self, event: StoredEvent) -> Routed | None:
        """Return the record of an event, None if it is not published."""
        stream_type = event.stream_type
        topic = self._topics.get(stream_type)
        if topic is None:
            topic = self._topics[stream_type] = topic_of(stream_type, self._prefix)
        if self._enveloped:
            return Routed(topic, event.stream_id.encode(), *envelop(event, self._envelopes[schema_id_of(event.payload)].header))
        return Routed(topic, event.stream_id.encode(), event.payload, self._headers.headers(event))

    def _subject(self, event: StoredEvent) -> tuple[str, int]:
        """Return under which subject a registry lists the schema of an event's record, and its id."""
        schema_id = schema_id_of(event.payload)
        topic = topic_of(event.stream_type, self._prefix)
        if self._enveloped:
            envelope = self._envelopes[schema_id]
            return self._subject_of(topic, envelope.full_name), envelope.schema_id
        return self._subject_of(topic, self._full_names[schema_id]), schema_id


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
