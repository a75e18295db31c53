"""Search the published records for texts: what is left on Kafka of a person that was erased."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from ..schemas import Unavailable
from ..schemas.kafka import KafkaAccess, client_settings, kafka_error, translated_kafka

__all__ = ["TopicSearch", "search_topics"]

_DOING = "to search the topics"


class TopicSearch(NamedTuple):
    """What a search saw: records by topic, and how many of them hold one of the texts."""

    records: dict[str, int]
    found: dict[str, int]


def search_topics(bootstrap: str | KafkaAccess, prefix: str, texts: Sequence[str], *, timeout_s: float = 30.0) -> TopicSearch:
    """Read every topic whose name begins with `prefix` to its end, also what was aborted, and look for texts in keys, values and
    headers, byte by byte. Blocks.

    Raises:
        Unavailable: Kafka was silent for `timeout_s` seconds.
    """
    wanted = [text.encode() for text in texts]
    consumer = Consumer(
        client_settings(bootstrap)
        | {
            "group.id": "eventspine-search",  # the client demands one; nothing is ever committed under it
            "enable.auto.commit": False,
            "isolation.level": "read_uncommitted",
            "enable.partition.eof": True,
        }
    )
    search = TopicSearch({}, {})
    try:
        with translated_kafka(_DOING):
            topics = consumer.list_topics(timeout=timeout_s).topics
            left = {(name, number) for name in topics if name.startswith(prefix) for number in topics[name].partitions}
            consumer.assign([TopicPartition(name, number, OFFSET_BEGINNING) for name, number in left])
            silent_since = time.monotonic()
            while left:
                messages = consumer.consume(1000, 0.2)  # it waits so long for all of them, not for the first
                silent_since = time.monotonic() if messages else silent_since
                if time.monotonic() - silent_since > timeout_s:
                    raise Unavailable(
                        f"Kafka gave nothing in {timeout_s} s while {len(left)} partitions were not read to their end"
                    )
                for message in messages:
                    topic, error = str(message.topic()), message.error()
                    if error is not None and error.code() == KafkaError._PARTITION_EOF:
                        left.discard((topic, message.partition()))
                    elif error is not None:
                        raise kafka_error(error, _DOING)
                    else:
                        search.records[topic] = search.records.get(topic, 0) + 1
                        parts = [message.key(), message.value(), *dict(message.headers() or []).values()]
                        if any(part is not None and text in part for part in parts for text in wanted):
                            search.found[topic] = search.found.get(topic, 0) + 1
    finally:
        consumer.close()
    return search
