"""The relay's loop: become the leader, find the cursor, publish what follows it, for ever."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from ..schemas import Fenced, SettingsError, StoredEvent, Unavailable, schema_id_of
from ..schemas.envelope import PinnedEnvelope
from ..schemas.kafka import topic_of
from ..schemas.retry import Backoff
from ..store.postgres.log import AppendSignal, Lead, PostgresLog
from .cursor import TOPIC_SETTINGS, Cursor, check_history, cursor_topic, next_cursor, read_cursor
from .publisher import SUBJECT_NAMES, Publisher, record_of, subjects_of
from .topics import TopicSettings, ensure_topic

__all__ = ["Relay", "check_options"]

logger = logging.getLogger(__name__)

_VALUE_FORMATS = ("data", "envelope")


class Relay:
    """Publishes the log of one store to Kafka: every event, in order, once.

    Any number of processes may run the same relay (same `name` and `topic_prefix`): one leads, the others stand by. That
    there is one leader is only for peace; that nothing is published twice holds without it, by Kafka's producer epoch.

    A crash at any point loses and repeats nothing: events and cursor are committed in one Kafka transaction, and readers
    with `isolation.level=read_committed` see both or neither.

    Options: `value_format` "data" publishes an event's data with its envelope in the headers, "envelope" one record with both in
    the value, for readers that see no headers. `subject_strategy` is how subjects are called, by the names of Confluent's
    clients. `batch_events` and `batch_bytes` bound one transaction. `poll_s` bounds the delay when a notification of an
    append is lost. `give_up_after_s` is how long it keeps trying while Kafka or Postgres is away before it raises.

    Attributes: `position` is the last position published, `published` how many events this object has published, `state`
    one of starting, standby, publishing, waiting, stopped.
    """

    def __init__(
        self,
        log: PostgresLog,
        bootstrap: str,
        *,
        name: str = "relay",
        topic_prefix: str = "events.",
        source: str = "/eventspine",
        value_format: str = "data",
        subject_strategy: str = "TopicRecordNameStrategy",
        topics: TopicSettings | None = None,
        batch_events: int = 5_000,
        batch_bytes: int = 16_000_000,
        poll_s: float = 0.5,
        give_up_after_s: float = 300.0,
    ) -> None:
        check_options(value_format, subject_strategy)
        self.position = 0
        self.published = 0
        self.state = "starting"
        self._log = log
        self._bootstrap = bootstrap
        self._name = name
        self._prefix = topic_prefix
        self._source = source
        self._topics = topics or TopicSettings()
        self._batch_events = batch_events
        self._batch_bytes = batch_bytes
        self._poll_s = poll_s
        self._backoff = Backoff(give_up_after_s=give_up_after_s)
        self._cursor_topic = cursor_topic(topic_prefix)
        self._known_topics: set[str] = set()
        self._known_subjects: set[tuple[str, int]] = set()
        self._subject_strategy = subject_strategy
        self._full_names: dict[int, str] = {}
        self._envelopes: dict[int, PinnedEnvelope] | None = {} if value_format == "envelope" else None
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask for an end after the batch that is under way; an idle relay ends within `poll_s`."""
        self._stop.set()

    async def run(self) -> None:
        """Publish until `stop()`.

        Raises:
            IntegrityError: log and cursor contradict each other.
            SettingsError, EventspineError: Kafka or Postgres refuses something that a retry can't mend.
            Unavailable: one of them was away for longer than `give_up_after_s`.
        """
        while not self._stop.is_set():
            try:
                await self._lead_and_publish()
            except (Unavailable, Fenced) as error:
                if not self._backoff.failing:
                    logger.warning("relay waits: %s", error, extra={"relay": self._name, "position": self.position})
                delay_s = self._backoff.next_delay_s()
                if delay_s is None:
                    raise
                self.state = "waiting"
                await self._pause(delay_s)
        self.state = "stopped"

    async def _lead_and_publish(self) -> None:
        async with self._log.lead(f"relay {self._prefix} {self._name}") as lead:
            while not await lead.try_acquire():
                if self.state != "standby":
                    logger.info("relay stands by: another process leads", extra={"relay": self._name})
                    self.state = "standby"
                await self._pause(1.0)
                if self._stop.is_set():
                    return
            async with self._log.listen() as appended:
                publisher = Publisher(self._bootstrap, f"{self._prefix}{self._name}")
                try:
                    await self._publish(publisher, lead, appended)
                finally:
                    await asyncio.to_thread(publisher.discard)

    async def _publish(self, publisher: Publisher, lead: Lead, appended: AppendSignal) -> None:
        """Publish from the cursor on. The order of the first three steps is what makes a restart safe: fence, then read."""
        await self._ensure_topic(self._cursor_topic, partitions=1, settings=TOPIC_SETTINGS)
        await asyncio.to_thread(publisher.start)
        cursor = await asyncio.to_thread(read_cursor, self._bootstrap, self._cursor_topic, self._name)
        check_history(cursor, await self._log.event_id_at(cursor.position))
        logger.info("relay publishes", extra={"relay": self._name, "position": cursor.position})
        self.position = cursor.position
        self.state = "publishing"

        events = await self._read_after(cursor)
        while not self._stop.is_set():
            if lead.lost:
                raise Unavailable("the connection to Postgres that holds the leadership was lost")
            if not events:
                self._say_that_all_is_well()
                await appended.wait(self._poll_s)
                events = await self._read_after(cursor)
                continue
            cursor = next_cursor(cursor, events)
            await self._prepare(events)
            reading = asyncio.create_task(self._read_after(cursor))  # fetch the next batch while this one is committed
            try:
                records = [
                    record_of(event, prefix=self._prefix, source=self._source, envelopes=self._envelopes) for event in events
                ]
                await asyncio.to_thread(publisher.publish, records, self._cursor_topic, self._name, cursor)
                self._say_that_all_is_well()
                self.position = cursor.position
                self.published += len(events)
                events = await reading
            finally:
                reading.cancel()

    async def _read_after(self, cursor: Cursor) -> list[StoredEvent]:
        return await self._log.read_stored(cursor.position, self._batch_events, self._batch_bytes)

    async def _prepare(self, events: list[StoredEvent]) -> None:
        """Make topics, envelopes and subjects that are new with this batch."""
        topics = {topic_of(event.stream_type, self._prefix) for event in events} - self._known_topics
        for topic in topics:
            settings = {"retention.ms": str(self._topics.retention_ms)}
            await self._ensure_topic(topic, partitions=self._topics.partitions, settings=settings)
        self._known_topics |= topics
        try:
            subjects = self._subjects(events)
        except KeyError:
            if self._envelopes is None:
                self._full_names = {pin.schema_id: pin.event_type.full_name for pin in await self._log.pinned_types()}
            else:
                self._envelopes |= await self._log.pin_envelopes({schema_id_of(event.payload) for event in events})
            subjects = self._subjects(events)
        if subjects - self._known_subjects:
            await self._log.register_subjects(subjects - self._known_subjects)
            self._known_subjects |= subjects

    def _subjects(self, events: list[StoredEvent]) -> set[tuple[str, int]]:
        strategy, envelopes = self._subject_strategy, self._envelopes
        return subjects_of(events, self._full_names, self._prefix, strategy=strategy, envelopes=envelopes)

    async def _ensure_topic(self, topic: str, *, partitions: int, settings: dict[str, str]) -> None:
        replication = self._topics.replication
        await asyncio.to_thread(
            ensure_topic, self._bootstrap, topic, partitions=partitions, replication=replication, settings=settings
        )

    def _say_that_all_is_well(self) -> None:
        if self._backoff.failing:
            logger.info("relay goes on", extra={"relay": self._name, "position": self.position})
            self._backoff.reset()
        self.state = "publishing"

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()


def check_options(value_format: str, subject_strategy: str) -> None:
    """Check the two options that are names.

    Raises:
        SettingsError: there is no such value.
    """
    for option, value, known in (
        ("value_format", value_format, _VALUE_FORMATS),
        ("subject_strategy", subject_strategy, tuple(SUBJECT_NAMES)),
    ):
        if value not in known:
            raise SettingsError(f"{option} is {value!r}; it is one of {', '.join(known)}")
