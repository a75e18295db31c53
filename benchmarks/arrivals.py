"""A read_committed consumer that notes when each record came: `python -m benchmarks.arrivals BOOTSTRAP TOPIC EVENTS`.

It says `ready` when it has its partitions, and at the end a JSON list of milliseconds from append to arrival, in the order of the
appends. Append and arrival are read from the same clock, in two processes.
"""

from __future__ import annotations

import json
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from benchmarks.relay_events import sent_ns
from benchmarks.topics import PARTITIONS

_SILENCE_S = 60.0


def main() -> None:
    bootstrap, topic, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench-arrivals",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 100,  # an answer comes as soon as there is a record
        }
    )
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    consumer.poll(0.5)
    print("ready", flush=True)
    seen: list[tuple[int, int]] = []
    while len(seen) < events:
        message = consumer.poll(_SILENCE_S)
        now_ns = time.time_ns()
        if message is None:
            raise RuntimeError(f"nothing came in {_SILENCE_S} s, after {len(seen)} of {events} events")
        if message.error():
            raise RuntimeError(str(message.error()))
        seen.append((sent_ns(message.value() or b""), now_ns))
    consumer.close()
    print(json.dumps([(came_ns - went_ns) / 1e6 for went_ns, came_ns in sorted(seen)]), flush=True)


if __name__ == "__main__":
    main()
