"""How far partitions are published, as they say themselves: the last position in order that each holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from ..schemas import Unavailable
from ..schemas.kafka import KafkaAccess, client_settings, kafka_error, translated_kafka
from .offsets import first_offsets, next_offsets
from .topic_reader import PartitionId, found_of

__all__ = ["Tail", "read_tails"]

_DOING: Final = "to see how far topics are published"
# Records to look at; more where they are all late, or the marks of transactions. Without transactions, the last ones may repeat
# older ones, if a process that lost its shard wrote them.
_LAST: Final = 256


class Tail(NamedTuple):
    """A position, and the id of the event there, "" where the headers do not say it (or there is no event).

    `foreign` is the offset of a record near the end that is no event of the log, None if there is none.
    """

    position: int
    event_id: str
    foreign: int | None = None


_EMPTY: Final = Tail(0, "")


def read_tails(
    kafka: str | KafkaAccess, partitions: Collection[PartitionId], *, group: str, timeout_s: float = 60.0
) -> dict[PartitionId, Tail]:
    """Return the highest position among each partition's committed records that came in order, 0 where there is none. Blocks.

    `group` is for the client, which demands one; nothing is ever committed under it.

    Raises:
        Unavailable, SettingsError: a topic can't be read.
    """
    consumer = Consumer(
        client_settings(kafka)
        | {
            "group.id": group,
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
        }
    )
    tails, last = dict.fromkeys(partitions, _EMPTY), _LAST
    try:
        with translated_kafka(_DOING):
            admin = AdminClient(client_settings(kafka))
            lows, highs = first_offsets(admin, partitions), next_offsets(admin, partitions, committed=False)
            wanted = {each for each in partitions if lows[each] < highs[each]}
            while wanted:
                starts = {each: max(lows[each], highs[each] - last) for each in wanted}
                tails |= _last_in_order(consumer, starts, timeout_s)
                wanted = {each for each in wanted if not tails[each].position and starts[each] > lows[each]}
                last *= 16
    finally:
        consumer.close()
    return tails


def _last_in_order(consumer: Consumer, starts: Mapping[PartitionId, int], timeout_s: float) -> dict[PartitionId, Tail]:
    """Return the position of the last record in order behind each start."""
    consumer.assign([TopicPartition(*each, offset) for each, offset in starts.items()])
    tails: dict[PartitionId, Tail] = {}
    unread = set(starts)
    while unread:
        message = consumer.poll(timeout_s)
        if message is None:
            raise Unavailable(f"{sorted(unread)} were not read to their ends in {timeout_s} s")
        error, partition = message.error(), (message.topic() or "", message.partition() or 0)
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            unread.discard(partition)
        elif error is not None:
            raise kafka_error(error, _DOING)
        else:
            record = found_of(message)
            before = tails.get(partition, _EMPTY)
            if not record.position:
                tails[partition] = before._replace(foreign=record.offset)
            elif not record.late and record.position > before.position:
                event_id = (dict(record.headers).get("ce_id") or b"").decode()
                tails[partition] = Tail(record.position, event_id, before.foreign)
    return tails
