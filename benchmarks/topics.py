"""The topics that all sides of the relay's benchmark publish to, and what the broker says of them: one yardstick for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

PARTITIONS = 6
_QUIET_S = 0.5
_LIMIT_S = 600.0


class Arrived(NamedTuple):
    """Committed records behind the first tenth of all, and when the broker wrote the first and the last of them, in seconds of
    time.time().

    The first tenth counts for nobody: what lay ready before the first record, a batch read ahead or a full queue, is in it.
    """

    events: int
    first_s: float
    last_s: float

    @classmethod
    def of(cls, moments_ms: list[int]) -> Arrived:
        counted = sorted(moments_ms)[len(moments_ms) // 10 :]
        return cls(len(counted), counted[0] / 1000, counted[-1] / 1000)

    @property
    def rate(self) -> float:
        return self.events / max(0.001, self.last_s - self.first_s)


def create_topic(bootstrap: str, topic: str) -> None:
    """Create a topic whose records bear the time at which the broker wrote them, and wait until it leads the partitions."""
    settings = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    new = NewTopic(topic, num_partitions=PARTITIONS, replication_factor=1, config=settings)
    admin.create_topics([new])[topic].result(30)
    deadline = time.monotonic() + 30
    with closing(Consumer({"bootstrap.servers": bootstrap, "group.id": "bench"})) as consumer:
        for number in range(PARTITIONS):
            while True:
                try:
                    consumer.get_watermark_offsets(TopicPartition(topic, number), 10)
                    break
                except KafkaException:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)


async def arrived(bootstrap: str, topic: str, events: int, check: Callable[[], None] = lambda: None) -> Arrived:
    """Wait until a topic has so many committed records, and return when they came. `check` raises where it's no use waiting.

    Raises:
        RuntimeError: there are more, or they have not come in time.
    """
    return await asyncio.to_thread(_arrived, bootstrap, topic, events, check)


def _arrived(bootstrap: str, topic: str, events: int, check: Callable[[], None]) -> Arrived:
    settings = {"bootstrap.servers": bootstrap, "group.id": "bench", "isolation.level": "read_committed"}
    deadline = time.monotonic() + _LIMIT_S
    with closing(Consumer(settings | {"enable.auto.commit": False, "enable.partition.eof": True})) as consumer:
        ends: list[int] = []
        while True:
            check()
            seen = [consumer.get_watermark_offsets(TopicPartition(topic, number), 10)[1] for number in range(PARTITIONS)]
            if sum(seen) >= events and seen == ends:  # markers of transactions count too: only the records tell
                moments = _moments(consumer, topic)
                if len(moments) > events:
                    raise RuntimeError(f"{len(moments)} records for {events} events")
                if len(moments) == events:
                    return Arrived.of(moments)
            if time.monotonic() > deadline:
                raise RuntimeError(f"not {events} records in {_LIMIT_S} s: the partitions end at {seen}")
            ends = seen
            time.sleep(_QUIET_S)


def _moments(consumer: Consumer, topic: str) -> list[int]:
    """The times of all committed records, in milliseconds."""
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    moments: list[int] = []
    left = set(range(PARTITIONS))
    while left:
        for message in consumer.consume(10_000, 0.2):
            error = message.error()
            if error is None:
                moments.append(message.timestamp()[1])
            elif error.code() == KafkaError._PARTITION_EOF:
                left.discard(message.partition() or 0)
            else:
                raise RuntimeError(f"the topic can't be read back: {error}")
    consumer.unassign()
    return moments
