"""Publish events once more, into a topic of one's choice: exactly once, and resumable without a cursor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from confluent_kafka.admin import AdminClient

from ..schemas import EventspineError, IntegrityError, SettingsError, StoredEvent, Unavailable
from ..schemas.kafka import KafkaAccess, client_settings, translated_kafka
from ..schemas.partition import partition_of
from ..schemas.postgres import load_sql, translated
from ..store.postgres.log import PostgresLog
from .cursor import cursor_topic
from .publisher import Record, TransactionalPublisher, publishing
from .router import Router
from .tails import read_tails
from .topic_reader import PartitionId
from .topics import TopicSettings, ensure_topic

__all__ = ["Republished", "last_position", "replay", "republish"]

_RELAYS_OF_TOPIC = load_sql("eventspine.relay", "sql/relays_of_topic")

_BATCH_BYTES: Final = 16_000_000
_DOING: Final = "to see how far the topic is"


class Republished(NamedTuple):
    """Up to which position earlier runs had come, how far this one came, and how many records it published."""

    before: int
    position: int
    records: int


async def replay(
    log: PostgresLog,
    kafka: str | KafkaAccess,
    *,
    router: Router,
    prefix: str,
    name: str,
    topic: str,
    from_position: int,
    to_position: int | None = None,
    categories: Collection[str] = (),
    event_types: Collection[str] = (),
    settings: TopicSettings | None = None,
    compression: str = "zstd",
    batch_events: int = 20_000,
    on_progress: Callable[[Republished, int], None] = lambda *_: None,
) -> Republished:
    """Publish the events from one position to another, both included, as the relay does, but all into one topic.

    Call it again after it was killed: it goes on behind the last event that the topic has. A topic that is missing is made.
    `to_position` None means the end of the log as it is now; `categories` and `event_types` take those only.

    Raises:
        SettingsError: the topic is one that a relay writes to, or the positions make no sense.
        IntegrityError: the topic has records that are not the relay's.
        EventspineError: an event can't be published.
        Unavailable: Kafka or Postgres is away.
    """
    end = await log.last_position()
    to = end if to_position is None else to_position
    if not 1 <= from_position <= to <= end:
        raise SettingsError(f"positions {from_position} to {to}: the log has 1 to {end}")
    async with translated():
        relays = [row["relay_id"] for row in await log.pool.fetch(_RELAYS_OF_TOPIC, topic)]
    if relays or topic == cursor_topic(prefix):
        raise SettingsError(f"topic {topic} is relay {', '.join(relays) or prefix + name}'s own: replay into another one")
    partitions = await asyncio.to_thread(_ensure, kafka, topic, settings or TopicSettings())

    def record_of(event: StoredEvent) -> Record | None:
        if (categories and event.stream_type not in categories) or (event_types and event.event_type not in event_types):
            return None
        routed = router.route(event)
        if routed is None:
            return None
        return Record(topic, partition_of(routed.key, partitions), routed.key, routed.value, routed.headers)

    return await republish(
        log,
        kafka,
        router=router,
        topic=topic,
        transactional_id=f"{prefix}{name}.replay.{topic}",
        after=from_position - 1,
        to=to,
        record_of=record_of,
        compression=compression,
        batch_events=batch_events,
        on_progress=on_progress,
    )


async def republish(
    log: PostgresLog,
    kafka: str | KafkaAccess,
    *,
    router: Router,
    topic: str,
    transactional_id: str,
    after: int,
    to: int,
    record_of: Callable[[StoredEvent], Record | None],
    compression: str = "zstd",
    batch_events: int = 20_000,
    on_progress: Callable[[Republished, int], None] = lambda *_: None,
) -> Republished:
    """Publish what `record_of` makes of the events behind `after` up to `to`, in order, a transaction for each batch.

    First whoever did the same before is fenced, which ends its transaction; then the highest position in the topic says how far
    it came: transactions are in order, so everything before is there.
    """
    async with publishing(lambda: TransactionalPublisher(kafka, transactional_id, compression=compression)) as sender:
        await sender.start()
        await sender.end_forgotten(await asyncio.to_thread(_partitions_of, kafka, topic))
        before = await asyncio.to_thread(last_position, kafka, topic)
        done = Republished(before, max(before, after), 0)
        on_progress(done, to)
        reading = asyncio.create_task(log.read_stored(done.position, batch_events, _BATCH_BYTES))
        try:
            while done.position < to:
                events = [event for event in await reading if event.global_position <= to]
                if not events:
                    raise IntegrityError(
                        f"the log ends at position {done.position}, before {to}: it was restored to an older state"
                    )
                position = events[-1].global_position
                reading = asyncio.create_task(log.read_stored(position, batch_events, _BATCH_BYTES))
                await router.prepare(events)
                records = [record for event in events if (record := _made(record_of, event)) is not None]
                if records:
                    await router.list_subjects()
                    await sender.send(records[:-1], records[-1])
                done = Republished(before, position, done.records + len(records))
                on_progress(done, to)
        finally:
            reading.cancel()
    return done


def _made(record_of: Callable[[StoredEvent], Record | None], event: StoredEvent) -> Record | None:
    try:
        return record_of(event)
    except Exception as error:  # a user's function may raise anything
        raise EventspineError(
            f"the event at position {event.global_position} ({event.event_type} of stream {event.stream_id}) can't be published: "
            f"{type(error).__name__}: {error}"
        ) from error


def last_position(kafka: str | KafkaAccess, topic: str) -> int:
    """Return the highest position of a topic's committed records, 0 if it has none. Blocks.

    Looks at the last record of each partition: so for topics whose positions rise.

    Raises:
        IntegrityError: a record has no position.
    """
    tails = read_tails(kafka, _partitions_of(kafka, topic), group="eventspine-replay")
    for (_, number), tail in tails.items():
        if tail.foreign is not None:
            raise IntegrityError(f"{topic}[{number}] offset {tail.foreign} is no event: replay into a topic of its own")
    return max(tail.position for tail in tails.values())


def _partitions_of(kafka: str | KafkaAccess, topic: str) -> list[PartitionId]:
    with translated_kafka(_DOING):
        found = AdminClient(client_settings(kafka)).list_topics(topic, timeout=30).topics[topic]
    return [(topic, number) for number in found.partitions]


def _ensure(kafka: str | KafkaAccess, topic: str, settings: TopicSettings) -> int:
    """Make a topic unless it is there; return its number of partitions."""
    admin = AdminClient(client_settings(kafka))
    retention = {"retention.ms": str(settings.retention_ms)}
    ensure_topic(admin, topic, partitions=settings.partitions, replication=settings.replication, settings=retention)
    for _ in range(600):
        with translated_kafka(f"to look at topic {topic}"):
            found = admin.list_topics(topic, timeout=30).topics[topic]
        if found.error is None and found.partitions:
            return len(found.partitions)
        time.sleep(0.05)
    raise Unavailable(f"topic {topic} was created and does not appear")
