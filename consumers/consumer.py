"""The consumer's loop: Kafka batches to handlers to one transaction of the read model's database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from ..schemas import DecodeError, Event, EventType, Fenced, IntegrityError, PinnedType, Unavailable
from ..schemas.envelope import RecordReader
from ..schemas.kafka import KafkaAccess, answer_of, client_settings, kafka_error, topic_of, translated_kafka
from ..schemas.privacy import KeyRing
from ..schemas.retry import Backoff, wait_or_raise
from ..schemas.upcasting import Upcaster
from .counters import Counters
from .decoding import Arrival, Decoder, arrived_before
from .engine import Engine
from .parked import Kept, Parked, read_headers, write_headers
from .places import Item, Partition, Place
from .projection import Projection
from .sink import Sink

__all__ = ["Consumer"]

logger = logging.getLogger(__name__)

_partition = lru_cache(maxsize=4096)(Partition)

_LOOK_EVERY_S: Final = 1.0
_STAY_ALIVE_S: Final = 2.0
_TOPICS_EVERY_S: Final = 5.0


class Consumer:
    """Runs one projection as a member of its consumer group, exactly once into the read model.

    Start as many processes as there are partitions at most: Kafka's group protocol shares the partitions among them. Events
    of one stream are handled in order; events of different streams only if they lie in the same partition.

    A crash at any point loses and repeats nothing: rows and offsets are one transaction, and offsets are read from there,
    not from Kafka. (They are committed to Kafka too, so that its own tools show the lag.) A process that lost its partitions
    without noticing can't write: its epoch is older. While a batch is written, the next one is fetched, decoded and folded; no
    more than these two are in memory, beside what the Kafka client fetches ahead (64 MB at most).

    `load_event_types` returns the registered event types; called at the start and when an unknown schema id turns up.
    `event_types` and `upcasters` say in which version handlers see events: the highest that is given of each type, or the highest
    that is registered. With `keys`, handlers see personal fields as they were given; without, as they are stored: encrypted.
    `batch_events` bounds a batch. `session_timeout_s` is how soon Kafka gives a dead member's partitions to the others (the
    broker's lower bound is 6 s by default); with `group_protocol` "consumer" (KIP-848) the broker's own setting counts.
    A member with an `instance_id` (static membership) keeps its partitions over a restart that is shorter than that.
    `give_up_after_s` is how long it keeps trying while Kafka or Postgres is away before it raises.

    Attributes: `state` is one of starting, consuming, paused, waiting, stopped; `places` says how far each owned partition has
    come, `parked_streams` how many of their streams are set aside; `counters` count since the start.
    """

    def __init__(
        self,
        projection: Projection,
        sink: Sink,
        bootstrap: str | KafkaAccess,
        *,
        load_event_types: Callable[[], Awaitable[Sequence[PinnedType]]],
        event_types: Sequence[EventType] = (),
        upcasters: Sequence[Upcaster] = (),
        keys: KeyRing | None = None,
        topic_prefix: str = "events.",
        batch_events: int = 10_000,
        session_timeout_s: float = 10.0,
        group_protocol: str = "classic",
        instance_id: str = "",
        give_up_after_s: float = 300.0,
    ) -> None:
        self.state = "starting"
        self.counters = Counters()
        self._projection = projection
        self._sink = sink
        self._bootstrap = bootstrap
        self._prefix = topic_prefix
        self._batch_events = batch_events
        self._session_timeout_s = session_timeout_s
        self._group_protocol = group_protocol
        self._instance_id = instance_id
        self._backoff = Backoff(give_up_after_s=give_up_after_s)
        self._decoder = Decoder(load_event_types, event_types=event_types, upcasters=upcasters, keys=keys)
        self._reader = RecordReader(self._decoder.codec)
        self._engine: Engine | None = None
        self._stop = asyncio.Event()

    @property
    def places(self) -> dict[Partition, Place]:
        return self._engine.places if self._engine is not None else {}

    @property
    def parked_streams(self) -> int:
        return self._engine.parked_streams if self._engine is not None else 0

    def stop(self) -> None:
        """Ask for an end after the batch that is under way."""
        self._stop.set()

    async def run(self) -> None:
        """Consume until `stop()`.

        Raises:
            ProjectionError: a handler failed and the projection is to halt then, or a table is not as declared.
            DecodeError: a record is not one of ours.
            IntegrityError: Kafka no longer has records that this projection has not seen, or a topic was made anew.
            SchemaError: events of some version can't be read in the version that handlers are to see.
            SettingsError, EventspineError: Kafka or Postgres refuses something that a retry can't mend.
            Unavailable: one of them was away for longer than `give_up_after_s`.
        """
        while not self._stop.is_set():
            try:
                await self._consume_as_member()
            except (Unavailable, Fenced) as error:
                self.counters.retries += 1
                if not self._backoff.failing:
                    logger.warning("consumer waits: %s", error, extra={"projection": self._projection.name})
                self.state = "waiting"
                await wait_or_raise(self._backoff, error, self._stop)
        self.state = "stopped"

    async def _consume_as_member(self) -> None:
        """Join the group and consume until asked to stop, or until the first error: then everything in memory is forgotten."""
        await self._sink.prepare(self._projection)
        await self._decoder.load()
        engine = self._engine = Engine(self._projection, self._sink, keep=_kept, read=self._read_parked)
        member = _Member(self._bootstrap, self._settings(), engine, self._projection.name, self._batch_events, self.counters)
        try:
            with translated_kafka("to join the consumer group"):
                await member.join(self._topics())
            await self._consume(engine, member)
        finally:
            await member.leave()
            engine.release(list(engine.places))  # behind the last write, which asks what is parked

    async def _consume(self, engine: Engine, member: _Member) -> None:
        looked_at = float("-inf")
        while not self._stop.is_set():
            began = time.perf_counter()
            messages = await member.poll()
            consumed = time.perf_counter()
            staged = None
            if messages:
                handles = self._projection.handles
                items = await self._decoder.items(messages, arrived=_arrived, handles=handles, read=self._event)
                staged = engine.stage(items)
                self.counters.took(began, consumed)
            await member.written()
            if staged is not None:
                member.writing = asyncio.create_task(self.counters.write(engine, staged))
            if time.monotonic() - looked_at > _LOOK_EVERY_S:
                await member.written()
                await member.pause(await engine.look_at_parked())
                await member.report()
                looked_at = time.monotonic()
                await member.check_topics()
            if self._backoff.failing and self.places:
                logger.info("consumer goes on", extra={"projection": self._projection.name})
                self._backoff.reset()
            self.state = "paused" if member.paused else "consuming"
        await member.written()
        await member.report()

    def _settings(self) -> dict[str, Any]:
        settings = client_settings(self._bootstrap) | {
            "group.id": f"{self._prefix}{self._projection.name}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            # Offsets come from the read model. One that Kafka does not have any more is an error, never a reason to skip.
            "auto.offset.reset": "error",
            "topic.metadata.refresh.interval.ms": 5_000,  # how soon the topic of a new category is found
            "fetch.wait.max.ms": 100,
            # Together these bound the memory. The second counts bytes as they are compressed, by each broker at once.
            "queued.max.messages.kbytes": 65_536,
            "fetch.max.bytes": 8_000_000,
        }
        if self._group_protocol == "consumer":
            settings["group.protocol"] = "consumer"
        else:
            settings["partition.assignment.strategy"] = "cooperative-sticky"
            settings["session.timeout.ms"] = int(self._session_timeout_s * 1000)
            settings["heartbeat.interval.ms"] = min(3000, int(self._session_timeout_s * 1000 / 3))  # one may be lost
        if self._instance_id:
            settings["group.instance.id"] = self._instance_id
        return settings

    def _topics(self) -> list[str]:
        if self._projection.categories:
            return [topic_of(category, self._prefix) for category in self._projection.categories]
        # A regular expression, to librdkafka: everything below the prefix that can be a category.
        escaped = "".join(f"\\{sign}" if not sign.isalnum() and sign != "_" else sign for sign in self._prefix)
        return [f"^{escaped}[A-Za-z_][A-Za-z0-9_.]*$"]

    def _event(self, raw: _Raw) -> Event:
        return self._reader.event(raw.headers, raw.message.value() or b"")

    async def _read_parked(self, rows: Sequence[Parked]) -> list[Item]:
        """Make items of events that were set aside."""
        return await self._decoder.items(rows, arrived=arrived_before, handles=self._projection.handles, read=self._kept_event)

    def _kept_event(self, row: Parked) -> Event:
        return self._reader.event(read_headers(row.kept.headers), row.kept.value)


class _Raw(NamedTuple):
    """A message and its headers, which the client copies at every look."""

    message: Message
    headers: dict[str, bytes]


class _Member:
    """A member of the group, and the batch that is being written for it.

    The Kafka client is used from one thread only. Rebalance callbacks run inside its poll: a partition is given up when what is
    being written of it is written, and whatever was polled of it is dropped by its place being gone.
    """

    def __init__(
        self,
        bootstrap: str | KafkaAccess,
        settings: dict[str, Any],
        engine: Engine,
        name: str,
        batch_events: int,
        counters: Counters,
    ) -> None:
        self.writing: asyncio.Task[None] | None = None
        self.paused = False
        self._bootstrap = bootstrap
        self._engine = engine
        self._name = name
        self._batch_events = batch_events
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._kafka = KafkaConsumer(settings)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"kafka-{name}")
        self._topic_ids: dict[str, str] = {}
        self._topics_at = time.monotonic()
        self._held: list[Message] = []
        self._unproven: set[Partition] = set()  # begun behind records that Kafka no longer has

    async def join(self, topics: list[str]) -> None:
        await self._call(
            lambda: self._kafka.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)
        )

    async def leave(self) -> None:
        if self.writing is not None:
            with suppress(Exception):  # an older error ends this membership
                await self.writing
        await self._call(self._kafka.close)
        self._thread.shutdown(wait=False)

    async def poll(self) -> list[Message]:
        """Wait for a message, then take what else is there already."""
        held, self._held = self._held, []
        return [*held, *await self._call(self._poll, 0.2, self._batch_events)]

    async def written(self) -> None:
        """Wait until what is being written is. If that takes long, no more is fetched, and the group hears of us meanwhile."""
        if self.writing is None:
            return
        stopped = False
        try:
            while not self.writing.done():
                await asyncio.wait([self.writing], timeout=_STAY_ALIVE_S)
                if not self.writing.done():
                    await self._call(self._hold, True)
                    stopped = True
                    self._held += await self._call(self._poll, 0.0, 1)
            await self.writing
        finally:
            if self.writing.done():  # or else `leave` waits for it
                self.writing = None
            if stopped and not self.paused:
                await self._call(self._hold, False)

    async def pause(self, paused: bool) -> None:
        """Fetch nothing, and stay a member; or go on."""
        if paused or self.paused:  # again and again: partitions may have come meanwhile
            await self._call(self._hold, paused)
        if paused != self.paused:
            logger.info("consumer pauses" if paused else "consumer goes on", extra={"projection": self._name})
        self.paused = paused

    async def report(self) -> None:
        """Tell Kafka how far we are: for its tools only, so a failure harms nobody."""
        offsets = [TopicPartition(*partition, place.next_offset) for partition, place in self._engine.places.items()]
        if offsets:
            await self._call(self._commit, offsets)

    async def check_topics(self) -> None:
        """Look now and then whether topics are still those that were claimed: the client goes on in one that was made anew.

        Raises:
            IntegrityError: one is not.
        """
        if time.monotonic() - self._topics_at < _TOPICS_EVERY_S:
            return
        for topic in {partition.topic for partition in self._engine.places}:
            with suppress(KafkaException):  # away, or deleted: nothing is read then
                topic_id = await asyncio.to_thread(self._ask_topic_id, topic)
                if topic_id != self._topic_ids[topic]:
                    raise IntegrityError(
                        f"topic {topic} was deleted and made anew while projection {self._name} read it: offsets mean other "
                        f"records now. Build the projection again: `eventspine projections reset`"
                    )
        self._topics_at = time.monotonic()

    def _commit(self, offsets: list[TopicPartition]) -> None:
        with suppress(KafkaException):
            self._kafka.commit(offsets=offsets, asynchronous=True)

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._thread, function, *arguments)

    # In the thread

    def _hold(self, paused: bool) -> None:
        partitions = self._kafka.assignment()
        if paused:
            self._kafka.pause(partitions)
        else:
            self._kafka.resume(partitions)

    def _poll(self, wait_s: float, limit: int) -> list[Message]:
        with translated_kafka("to consume"):
            first = self._kafka.poll(wait_s)
            messages = [] if first is None else [first, *self._kafka.consume(limit - 1, 0.0)] if limit > 1 else [first]
        for message in messages:
            error = message.error()
            if error is None:
                continue
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise IntegrityError(
                    f"Kafka no longer has the next record of {message.topic()}[{message.partition()}] that projection "
                    f"{self._name} needs ({error.str()}): the topic's retention is shorter than the projection was "
                    "away, or the topic was made anew. Nothing was skipped: `eventspine projections rebuild` builds the tables "
                    "from the log, and goes on from there"
                )
            if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:  # a category without events yet has no topic
                raise kafka_error(error, "to consume")
        messages = [message for message in messages if message.error() is None]
        if self._unproven:
            self._prove(messages)
        return messages

    def _prove(self, messages: list[Message]) -> None:
        """Check that what Kafka no longer has before these records is in the tables, which were built from the log."""
        for message in messages:
            partition = Partition(message.topic() or "", message.partition() or 0)
            if partition not in self._unproven or partition not in self._engine.places:
                continue
            self._unproven.discard(partition)
            built_to, headers = self._engine.places[partition].built_to, dict(message.headers() or ())
            before = headers.get("ce_previousposition") or headers.get("ce_globalposition") or b""
            if not (before.isdigit() and int(before) <= built_to):
                raise IntegrityError(
                    f"{_where(message)} is the first record that Kafka still has there, and the tables of {self._name} "
                    f"are built to position {built_to} only: nobody knows what lay between. Nothing was skipped: run `eventspine "
                    "projections rebuild` again"
                )

    def _start(self, partition: Partition) -> TopicPartition:
        """Return where to read on: behind what Kafka no longer has, if the tables were built from the log."""
        place = self._engine.places[partition]
        start = TopicPartition(*partition, place.next_offset)
        if place.built_to:
            low, _ = self._kafka.get_watermark_offsets(start, timeout=30)
            if low > place.next_offset:
                self._unproven.add(partition)
                start.offset = low
        return start

    def _assigned(self, _: KafkaConsumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            self._topic_ids.pop(each.topic, None)  # to be asked for anew
        mine = {Partition(each.topic, each.partition): self._topic_id(each.topic) for each in partitions}
        asyncio.run_coroutine_threadsafe(self._engine.claim(mine), self._loop).result()
        self._kafka.incremental_assign([self._start(each) for each in mine])
        self._counters.rebalances += 1
        logger.info("partitions assigned", extra={"projection": self._name, "partitions": list(mine)})

    def _revoked(self, _: KafkaConsumer, partitions: list[TopicPartition]) -> None:
        asyncio.run_coroutine_threadsafe(self._drained(), self._loop).result()
        gone = [Partition(each.topic, each.partition) for each in partitions]
        self._engine.release(gone)
        self._unproven.difference_update(gone)
        self._kafka.incremental_unassign(partitions)
        self._counters.rebalances += 1
        logger.info("partitions revoked", extra={"projection": self._name, "partitions": partitions})

    async def _drained(self) -> None:
        if self.writing is not None:
            await asyncio.wait([self.writing])

    def _topic_id(self, topic: str) -> str:
        if topic not in self._topic_ids:
            self._topic_ids[topic] = self._ask_topic_id(topic)
        return self._topic_ids[topic]

    def _ask_topic_id(self, topic: str) -> str:
        admin = AdminClient(client_settings(self._bootstrap))
        told = answer_of(admin, admin.describe_topics(TopicCollection([topic]), request_timeout=30)[topic])
        return str(told.topic_id)


def _arrived(message: Message) -> Arrival:
    headers: dict[str, bytes] = dict(message.headers() or ())  # type: ignore[arg-type]
    position = headers.get("ce_globalposition", b"")
    if not position.isdigit():
        raise DecodeError(
            f"{_where(message)}: not published by eventspine (no header ce_globalposition). Nothing behind it was taken: find "
            "out who wrote it; to go on without it, build the topic again: `eventspine relay verify --rebuild TOPIC`"
        )
    late = headers.get("ce_latenumber", b"0")
    if not late.isdigit():
        raise DecodeError(f"{_where(message)}: the header ce_latenumber is no number: {late[:100]!r}")
    stream_id = headers.get("ce_subject") or message.key() or b""
    return Arrival(
        _partition(message.topic() or "", message.partition() or 0),
        message.offset() or 0,
        int(position),
        int(late),
        headers.get("ce_type", b"").decode(errors="replace"),
        stream_id.decode(errors="replace") if isinstance(stream_id, bytes) else stream_id,
        _Raw(message, headers),
        int(follows) if (follows := headers.get("ce_previousposition", b"")).isdigit() else 0,
    )


def _kept(item: Item) -> Kept:
    """Return a record as it is kept beside a parked event."""
    message, headers = item.raw
    key = message.key() or b""
    return Kept(write_headers(headers), key if isinstance(key, bytes) else key.encode(), message.value() or b"")


def _where(message: Message) -> str:
    return f"{message.topic()}[{message.partition()}] offset {message.offset()}"
