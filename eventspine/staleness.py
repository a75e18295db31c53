"""How stale projections are: what waits for them in each partition, and since when."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from .consumers.admin import ProjectionPlace
from .consumers.log_consumer import LOG
from .consumers.places import Partition
from .relay.offsets import next_offsets
from .schemas import Unavailable
from .schemas.kafka import KafkaAccess, client_settings, kafka_error, translated_kafka
from .store.postgres.published import Published

__all__ = ["Lag", "LagReader", "Staleness", "is_read_from", "read_staleness"]

_DOING: Final = "to see how much is waiting"
_ANSWERS_WITHIN_S: Final = 5.0
_READ_WITHIN_S: Final = 10.0


class Lag(NamedTuple):
    """How much waits in a partition, and since when, in seconds; None where that can't be known: the record is gone.

    On Kafka `events` counts the records and marks of transactions behind the place, and is 0 only where no event waits. `seconds`
    is the age of the first that waits: since the relay sent it, by the record's timestamp and this machine's clock.
    """

    events: int
    seconds: float | None


NONE: Final = Lag(0, 0.0)


class Staleness(NamedTuple):
    """How far a projection is in a partition, and what waits there; `lag` is None for one that it is not read from."""

    place: ProjectionPlace
    lag: Lag | None


class LagReader:
    """Looks at what waits in partitions. Its connections are kept from one look to the next."""

    def __init__(self, kafka: str | KafkaAccess, *, topic_prefix: str = "events.") -> None:
        self._one_at_a_time = threading.Lock()
        self._admin = AdminClient(client_settings(kafka))
        self._consumer = Consumer(
            client_settings(kafka)
            | {
                "group.id": f"{topic_prefix}lag",  # the client demands one; it is never joined, and nothing is committed
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,
                "max.partition.fetch.bytes": 1,  # one batch of records: nothing but the first record is looked at
                "queued.min.messages": 1,
                "fetch.queue.backoff.ms": 1,  # one record is more than that, and it would wait for a second
            }
        )

    def read(self, offsets: Mapping[Partition, int]) -> dict[Partition, Lag]:
        """Return what waits behind offsets. Partitions that Kafka does not have are left out. Blocks.

        The end of a partition counts marks of transactions, so a place that is before it may be the end all the same: what tells
        is whether there is a record to read.

        Raises:
            SettingsError: Kafka refuses.
            Unavailable: Kafka is away.
        """
        with self._one_at_a_time, translated_kafka(_DOING):
            topics = self._admin.list_topics(timeout=_ANSWERS_WITHIN_S).topics
            known = [each for each in offsets if each.topic in topics and each.number in topics[each.topic].partitions]
            ends = next_offsets(self._admin, known, committed=True)
            behind = {each: offsets[each] for each in known if ends[each] > offsets[each]}
            sent = self._first_sent(behind)
        now = time.time()
        lags = dict.fromkeys(known, NONE)
        for each, timestamp in sent.items():
            seconds = None if timestamp is None else max(0.0, now - timestamp / 1000)
            lags[each] = Lag(ends[each] - offsets[each], seconds)
        return lags

    def close(self) -> None:
        """Close the connections, behind a look that is under way in another thread."""
        with self._one_at_a_time:
            self._consumer.close()

    def _first_sent(self, offsets: Mapping[Partition, int]) -> dict[Partition, int | None]:
        """Return the timestamp (ms) of the first record behind each offset, if there is one; None where it is gone."""
        sent: dict[Partition, int | None] = {}
        try:
            for partition, offset in offsets.items():
                error, timestamp = self._first(partition, offset)
                if error is None:
                    sent[partition] = timestamp
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                    sent[partition] = None
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise kafka_error(error, _DOING)
        finally:
            self._consumer.unassign()
        return sent

    def _first(self, partition: Partition, offset: int) -> tuple[KafkaError | None, int]:
        """Return the timestamp of the first record behind an offset, or what the client says instead.

        One partition at a time: of several, the broker gives a batch that is larger than asked for to one of them only.
        """
        deadline = time.monotonic() + _READ_WITHIN_S
        self._consumer.assign([TopicPartition(*partition, offset)])
        while True:
            message = self._consumer.poll(max(0.0, deadline - time.monotonic()))
            if message is None:
                raise Unavailable(f"{_DOING}: {partition.topic}[{partition.number}] was not read in {_READ_WITHIN_S:g} s")
            error = message.error()
            if (message.topic(), message.partition()) == partition and (error is not None or (message.offset() or 0) >= offset):
                return error, message.timestamp()[1]


async def read_staleness(
    places: Iterable[ProjectionPlace], published: Published, kafka: str | KafkaAccess | None
) -> list[Staleness]:
    """Return how stale projections are, by partition, in the order of `places` (which `ReadModel.places` returns).

    What is read from the log is told by the database's clock, what is read from Kafka by `Lag`. What the relay has not published
    yet is none of a projection's lag: `eventspine relay status` tells that. Without `kafka`, lag on Kafka is None.

    Raises:
        SettingsError, Unavailable: Kafka or Postgres refuses, or is away.
    """
    told: list[Staleness] = []
    reader = LagReader(kafka, topic_prefix=published.topic_prefix) if kafka is not None else None
    try:
        for _, group in groupby(places, key=lambda place: place.projection):
            told += await _staleness_of(list(group), published, reader)
    finally:
        if reader is not None:
            await asyncio.to_thread(reader.close)
    return told


async def _staleness_of(places: Sequence[ProjectionPlace], published: Published, reader: LagReader | None) -> list[Staleness]:
    read = [place for place in places if is_read_from(place, places)]
    lags: dict[Partition, Lag] = {}
    offsets = {place.partition: place.next_offset for place in read if place.partition.topic}
    if offsets and reader is not None:
        lags = await asyncio.to_thread(reader.read, offsets)
    for place in read:
        if place.partition == LOG:
            lags[LOG] = Lag(*await published.lag_behind(place.next_offset))
    return [Staleness(place, lags.get(place.partition)) for place in places]


def is_read_from(place: ProjectionPlace, places: Iterable[ProjectionPlace]) -> bool:
    """Whether a projection reads from there: once it has gone on from Kafka, its place in the log stays."""
    return place.partition.topic != "" or not any(each.next_offset for each in places if each.partition.topic)
