"""Reads whole partitions for verify: what is committed, from the first record that is left to the end as it was at the start."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from ..schemas import Unavailable
from ..schemas.kafka import KafkaAccess, client_settings, kafka_error, translated_kafka
from .compared import Found
from .offsets import first_offsets, next_offsets

__all__ = ["Extent", "PartitionId", "TopicReader", "found_of"]

PartitionId = tuple[str, int]

_DOING: Final = "to read the topics"


class Extent(NamedTuple):
    """The first offset that a partition has, and the one behind the last."""

    low: int
    high: int


class TopicReader:
    """Reads partitions side by side. Every method blocks; call them from one thread at a time.

    `timeout_s` has to be longer than a transaction can take: one whose producer died holds up what lies behind it.

    Attributes: `extents` says what each partition held at the start, `ended` which were read to their end.
    """

    def __init__(self, kafka: str | KafkaAccess, *, group: str, timeout_s: float = 120.0) -> None:
        self.extents: dict[PartitionId, Extent] = {}
        self.ended: set[PartitionId] = set()
        self._paused: set[PartitionId] = set()
        self._kafka = kafka
        self._timeout_s = timeout_s
        self._heard_at = time.monotonic()
        self._group = group
        self._consumer: Consumer | None = None

    def start(self, partitions: Iterable[PartitionId]) -> None:
        """Note where partitions begin and end, and begin to read.

        The end is that of all records: what a cursor calls published may not be readable yet, and is waited for.
        """
        with translated_kafka(_DOING):
            admin, chosen = AdminClient(client_settings(self._kafka)), list(partitions)
            lows, highs = first_offsets(admin, chosen), next_offsets(admin, chosen, committed=False)
            self.extents = {each: Extent(lows[each], highs[each]) for each in chosen}
            self.ended = {each for each in chosen if lows[each] >= highs[each]}
            left = self.extents.keys() - self.ended
            self._consumer = self._make(len(chosen))
            self._consumer.assign([TopicPartition(*each, self.extents[each].low) for each in left])

    def fetch(self, limit: int, full: Collection[PartitionId]) -> list[tuple[PartitionId, Message]]:
        """Return some records, in the order of their offsets in each partition; nothing new of those that are `full`.

        Raises:
            Unavailable: nothing came for `timeout_s`, or Kafka failed.
        """
        assert self._consumer is not None, "start() comes first"
        with translated_kafka(_DOING):
            self._pause(self._consumer, set(full) - self.ended)
            first = self._consumer.poll(0.2)
            messages = [] if first is None else [first, *self._consumer.consume(limit - 1, 0.0)]
        found: list[tuple[PartitionId, Message]] = []
        for message in messages:
            each = (message.topic() or "", message.partition() or 0)
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                if (message.offset() or 0) >= self.extents[each].high:
                    self.ended.add(each)
            elif error is not None:
                raise kafka_error(error, _DOING)
            elif (message.offset() or 0) >= self.extents[each].high:
                self.ended.add(each)
            elif each not in self.ended:
                found.append((each, message))
                if message.offset() == self.extents[each].high - 1:
                    self.ended.add(each)
        now = time.monotonic()
        if messages:
            self._heard_at = now
        elif now - self._heard_at > self._timeout_s:
            raise Unavailable(f"Kafka gave no records for {self._timeout_s} s while some partitions were not read to their end")
        return found

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()

    def _make(self, partitions: int) -> Consumer:
        return Consumer(
            client_settings(self._kafka)
            | {
                "group.id": self._group,  # the client demands one; nothing is ever committed under it
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 50,
                "queued.max.messages.kbytes": max(1_024, 16_384 // max(partitions, 1)),  # it counts for each partition
                "fetch.max.bytes": 8_000_000,
                "max.partition.fetch.bytes": 262_144,  # what comes for a partition that is paused is thrown away
            }
        )

    def _pause(self, consumer: Consumer, wanted: set[PartitionId]) -> None:
        """Pause these, and no others. What ended stays paused: it may go on growing."""
        wanted |= self.ended & self.extents.keys()
        pause, resume = wanted - self._paused, self._paused - wanted
        read = {each for each in pause | resume if self.extents[each].low < self.extents[each].high}
        if pause & read:
            consumer.pause([TopicPartition(*each) for each in pause & read])
        if resume & read:
            consumer.resume([TopicPartition(*each) for each in resume & read])
        self._paused = wanted


def found_of(message: Message) -> Found:
    """Return a record as it is compared."""
    headers: list[tuple[str, bytes | None]] = message.headers() or []  # type: ignore[assignment]
    position = late = 0
    for name, value in headers:
        if name == "ce_globalposition":
            position = _number(value)
        elif name == "ce_latenumber":
            late = _number(value)
    key, value = message.key(), message.value()
    return Found(message.offset() or 0, position, late, key or b"", value or b"", headers)


def _number(value: bytes | None) -> int:
    return int(value) if value is not None and value.isdigit() and len(value) <= 18 else 0
