"""The bare pump: a transactional producer, and records that lie ready in memory.

`python -m benchmarks.pump BOOTSTRAP SOURCE TOPIC EVENTS BATCH READY`, in a process of its own; it stays until it is ended. READY
records, which our relay published to the topic SOURCE, are sent round and round: same partitions, keys, values and headers.
"""

from __future__ import annotations

import gc
import itertools
import signal
import sys
from contextlib import closing
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from benchmarks.topics import PARTITIONS

Ready = tuple[int, bytes | None, bytes | None, Any]


def load(bootstrap: str, source: str, count: int) -> list[Ready]:
    """Partition, key, value and headers of so many records."""
    settings = {"bootstrap.servers": bootstrap, "group.id": "bench-pump", "isolation.level": "read_committed"}
    records: list[Ready] = []
    with closing(Consumer(settings | {"enable.auto.commit": False})) as consumer:
        consumer.assign([TopicPartition(source, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
        while len(records) < count:
            messages = consumer.consume(5_000, 0.5)
            records += [(each.partition() or 0, each.key(), each.value(), each.headers()) for each in messages]
    return records


def pump(records: list[Ready], bootstrap: str, topic: str, events: int, batch: int) -> None:
    """Send so many records, round and round, in transactions of a batch each."""
    settings: dict[str, Any] = {  # as relay/publisher.py has them
        "bootstrap.servers": bootstrap,
        "transactional.id": topic,
        "compression.type": "lz4",
        "linger.ms": 5,
        "socket.nagle.disable": True,
        "batch.size": 1_000_000,
        "batch.num.messages": 10_000,
        "queue.buffering.max.messages": 500_000,
        "queue.buffering.max.kbytes": 1_048_576,
        "message.max.bytes": 100_000_000,
        "delivery.report.only.error": True,
    }
    producer = Producer(settings)
    producer.init_transactions(60)
    left = itertools.islice(itertools.cycle(records), events)
    produce = producer.produce
    while batch_records := list(itertools.islice(left, batch)):
        producer.begin_transaction()
        for partition, key, value, headers in batch_records:
            produce(topic, value, key, partition, headers=headers)
        producer.commit_transaction(60)


def main() -> None:
    bootstrap, source, topic = sys.argv[1:4]
    events, batch, ready = map(int, sys.argv[4:])
    records = load(bootstrap, source, ready)
    gc.freeze()
    pump(records, bootstrap, topic, events, batch)
    signal.pause()  # whoever started it reads its use of CPU and memory


if __name__ == "__main__":
    main()
