"""The consumer's loop: Kafka batches to handlers to one transaction of the read model's database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from ..schemas import Codec, DecodeError, Event, EventType, Fenced, IntegrityError, PinnedType, Unavailable
from ..schemas.codec import UnknownSchemaId
from ..schemas.envelope import RecordReader
from ..schemas.kafka import KafkaAccess, client_settings, kafka_error, topic_of, translated_kafka
from ..schemas.privacy import KeyRing, reveal_events
from ..schemas.retry import Backoff
from ..schemas.upcasting import Upcaster
from .places import Partition, Place, Record, new_records
from .projection import Projection
from .sink import PostgresSink

__all__ = ["Consumer"]

logger = logging.getLogger(__name__)


class Consumer:
    """Runs one projection as a member of its consumer group, exactly once into the read model.

    Start as many processes as there are partitions at most: Kafka's group protocol shares the partitions among them. Events
    of one stream are handled in order; events of different streams only if they lie in the same partition.

    A crash at any point loses and repeats nothing: rows and offsets are one transaction, and offsets are read from there,
    not from Kafka. (They are committed to Kafka too, so that its own tools show the lag.) A process that lost its partitions
    without noticing can't write: its epoch is older.

    `load_event_types` returns the registered event types; called at the start and when an unknown schema id turns up.
    `event_types` and `upcasters` say in which version handlers see events: the highest that is given of each type, or the highest
    that is registered. With `keys`, handlers see personal fields as they were given; without, as they are stored: encrypted.
    `batch_events` bounds what is held in memory. `session_timeout_s` is how soon Kafka gives a dead member's partitions to the
    others (the broker's lower bound is 6 s by default). `give_up_after_s` is how long it keeps trying while Kafka or Postgres is
    away before it raises.

    Attributes: `state` is one of starting, consuming, waiting, stopped; `places` says how far each owned partition has come.
    """

    def __init__(
        self,
        projection: Projection,
        sink: PostgresSink,
        bootstrap: str | KafkaAccess,
        *,
        load_event_types: Callable[[], Awaitable[Sequence[PinnedType]]],
        event_types: Sequence[EventType] = (),
        upcasters: Sequence[Upcaster] = (),
        keys: KeyRing | None = None,
        topic_prefix: str = "events.",
        batch_events: int = 10_000,
        session_timeout_s: float = 10.0,
        give_up_after_s: float = 300.0,
    ) -> None:
        self.state = "starting"
        self.places: dict[Partition, Place] = {}
        self._projection = projection
        self._sink = sink
        self._bootstrap = bootstrap
        self._load_event_types = load_event_types
        self._event_types = event_types
        self._upcasters = upcasters
        self._keys = keys
        self._prefix = topic_prefix
        self._batch_events = batch_events
        self._session_timeout_s = session_timeout_s
        self._backoff = Backoff(give_up_after_s=give_up_after_s)
        self._codec = Codec()
        self._reader = RecordReader(self._codec)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask for an end after the batch that is under way."""
        self._stop.set()

    async def run(self) -> None:
        """Consume until `stop()`.

        Raises:
            ProjectionError: a handler failed, or a table is not as declared.
            DecodeError: a record is not one of ours.
            IntegrityError: Kafka no longer has records that this projection has not seen.
            SchemaError: events of some version can't be read in the version that handlers are to see.
            SettingsError, EventspineError: Kafka or Postgres refuses something that a retry can't mend.
            Unavailable: one of them was away for longer than `give_up_after_s`.
        """
        while not self._stop.is_set():
            try:
                await self._consume_as_member()
            except (Unavailable, Fenced) as error:
                if not self._backoff.failing:
                    logger.warning("consumer waits: %s", error, extra={"projection": self._projection.name})
                delay_s = self._backoff.next_delay_s()
                if delay_s is None:
                    raise
                self.state = "waiting"
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._stop.wait()
        self.state = "stopped"

    async def _consume_as_member(self) -> None:
        """Join the group and consume until asked to stop, or until the first error: then everything in memory is forgotten.

        The Kafka client is used from one thread only. Rebalance callbacks run inside its poll, so never while a batch is being
        written: a partition is given up between two batches, with nothing of it in flight.
        """
        await self._sink.prepare(self._projection)
        self._codec.add(await self._load_event_types(), declared=self._event_types, upcasters=self._upcasters)
        loop = asyncio.get_running_loop()
        kafka = KafkaConsumer(self._settings())
        with ThreadPoolExecutor(1, thread_name_prefix=f"kafka-{self._projection.name}") as thread:

            def assigned(_: KafkaConsumer, partitions: list[TopicPartition]) -> None:
                mine = [Partition(each.topic, each.partition) for each in partitions]
                claim = asyncio.run_coroutine_threadsafe(self._sink.claim(self._projection, mine), loop)
                claimed = claim.result()
                self.places |= claimed
                kafka.incremental_assign([TopicPartition(*each, claimed[each].next_offset) for each in mine])
                logger.info("partitions assigned", extra={"projection": self._projection.name, "partitions": mine})

            def revoked(_: KafkaConsumer, partitions: list[TopicPartition]) -> None:
                for each in partitions:
                    self.places.pop(Partition(each.topic, each.partition), None)
                kafka.incremental_unassign(partitions)
                logger.info("partitions revoked", extra={"projection": self._projection.name, "partitions": partitions})

            try:
                with translated_kafka("to join the consumer group"):
                    kafka.subscribe(self._topics(), on_assign=assigned, on_revoke=revoked, on_lost=revoked)
                while not self._stop.is_set():
                    messages = await loop.run_in_executor(thread, self._poll, kafka)
                    if messages:
                        await self._apply(messages)
                        await loop.run_in_executor(thread, self._report, kafka)
                    if self._backoff.failing and self.places:
                        logger.info("consumer goes on", extra={"projection": self._projection.name})
                        self._backoff.reset()
                    self.state = "consuming"
            finally:
                self.places.clear()
                await loop.run_in_executor(thread, kafka.close)

    def _settings(self) -> dict[str, Any]:
        return client_settings(self._bootstrap) | {
            "group.id": f"{self._prefix}{self._projection.name}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            # Offsets come from the read model. One that Kafka does not have any more is an error, never a reason to skip.
            "auto.offset.reset": "error",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": int(self._session_timeout_s * 1000),
            "topic.metadata.refresh.interval.ms": 5_000,  # how soon the topic of a new category is found
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 65_536,
        }

    def _topics(self) -> list[str]:
        if self._projection.categories:
            return [topic_of(category, self._prefix) for category in self._projection.categories]
        # A regular expression, to librdkafka: everything below the prefix that can be a category.
        escaped = "".join(f"\\{sign}" if not sign.isalnum() and sign != "_" else sign for sign in self._prefix)
        return [f"^{escaped}[A-Za-z_][A-Za-z0-9_.]*$"]

    def _poll(self, kafka: KafkaConsumer) -> list[Message]:
        """Wait for a message, then take what else is there already."""
        with translated_kafka("to consume"):
            first = kafka.poll(0.2)
            messages = [] if first is None else [first, *kafka.consume(self._batch_events - 1, 0.0)]
        for message in messages:
            error = message.error()
            if error is None:
                continue
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise IntegrityError(
                    f"Kafka no longer has the next record of {message.topic()}[{message.partition()}] that projection "
                    f"{self._projection.name} needs ({error.str()}): the topic's retention is shorter than the projection was "
                    "away, or the topic was made anew. Nothing was skipped; build the projection again from the log"
                )
            if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:  # a category without events yet has no topic
                raise kafka_error(error, "to consume")
        return [message for message in messages if message.error() is None]

    def _report(self, kafka: KafkaConsumer) -> None:
        """Tell Kafka how far we are: for its tools only, so a failure harms nobody."""
        offsets = [TopicPartition(*partition, place.next_offset) for partition, place in self.places.items()]
        with suppress(KafkaException):
            kafka.commit(offsets=offsets, asynchronous=True)

    async def _apply(self, messages: list[Message]) -> None:
        new, after = new_records([_arrived(message) for message in messages], self.places)
        if not after:
            return
        events = await self._decode([each for each in new if self._projection.handles(each.event_type)])
        if self._keys is not None and self._codec.holds_personal:
            events = await reveal_events(self._codec, self._keys, events)
        events = self._codec.upcast(events)
        await self._sink.write(self._projection, self._projection.fold(events), self.places, after)
        self.places |= after

    async def _decode(self, arrivals: list[Arrival]) -> list[Event]:
        try:
            return [self._event(each) for each in arrivals]
        except UnknownSchemaId:  # registered since we loaded
            self._codec.add(await self._load_event_types())
            return [self._event(each) for each in arrivals]

    def _event(self, arrival: Arrival) -> Event:
        try:
            return self._reader.event(arrival.headers, arrival.message.value() or b"")
        except UnknownSchemaId:
            raise
        except DecodeError as error:
            raise DecodeError(f"{_where(arrival.message)}: {error}") from error


class Arrival(NamedTuple):
    """A message and its headers, which the client copies at every look."""

    message: Message
    headers: dict[str, bytes]

    @property
    def event_type(self) -> str:
        return self.headers.get("ce_type", b"").decode()


def _arrived(message: Message) -> tuple[Record, Arrival]:
    headers: dict[str, bytes] = dict(message.headers() or ())  # type: ignore[arg-type]
    position = headers.get("ce_globalposition", b"")
    if not position.isdigit():
        raise DecodeError(f"{_where(message)}: not published by eventspine (no header ce_globalposition)")
    late = headers.get("ce_latenumber", b"0")
    if not late.isdigit():
        raise DecodeError(f"{_where(message)}: the header ce_latenumber is no number: {late[:100]!r}")
    partition = Partition(message.topic() or "", message.partition() or 0)
    return Record(partition, message.offset() or 0, int(position), int(late)), Arrival(message, headers)


def _where(message: Message) -> str:
    return f"{message.topic()}[{message.partition()}] offset {message.offset()}"
