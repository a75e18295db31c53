"""The relay that one writes first: an outbox with a flag, batches of 100 under row locks, a flush each.

`python -m benchmarks.naive_relay DSN BOOTSTRAP TOPIC`, in a process of its own, until it is ended. At least once: what was
flushed and not marked is sent again.
"""

from __future__ import annotations

import sys
import time

import psycopg
from confluent_kafka import KafkaError, Message, Producer

_BATCH = 100
_POLL_S = 0.05

SCHEMA = """
CREATE TABLE naive_outbox (
    position   bigserial PRIMARY KEY,
    event_id   uuid NOT NULL,
    stream_id  text NOT NULL,
    event_type text NOT NULL,
    payload    bytea NOT NULL,
    sent       boolean NOT NULL DEFAULT false
);
CREATE INDEX naive_unsent ON naive_outbox (position) WHERE NOT sent"""

FILL = """
INSERT INTO naive_outbox (event_id, stream_id, event_type, payload)
SELECT id, stream_id, event_type, payload FROM events ORDER BY global_position"""

_NEXT = (
    "SELECT position, event_id::text, stream_id, payload FROM naive_outbox WHERE NOT sent ORDER BY position LIMIT %s "
    "FOR UPDATE SKIP LOCKED"
)
_MARK = "UPDATE naive_outbox SET sent = true WHERE position = ANY(%s)"


def relay(connection: psycopg.Connection, producer: Producer, topic: str) -> int:
    """Publish one batch, and return how many events it had."""
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed.append(error)

    with connection.transaction():
        rows = connection.cursor(binary=True).execute(_NEXT, (_BATCH,)).fetchall()
        for _, event_id, stream_id, payload in rows:
            producer.produce(topic, payload, stream_id, headers=[("id", event_id)], on_delivery=delivered)
        producer.flush()
        if failed:
            raise RuntimeError(f"{len(failed)} events were not delivered: {failed[0]}")
        connection.execute(_MARK, ([row[0] for row in rows],))
    return len(rows)


def main() -> None:
    dsn, bootstrap, topic = sys.argv[1:]
    producer = Producer(
        {"bootstrap.servers": bootstrap, "acks": "all", "compression.type": "lz4", "partitioner": "murmur2_random"}
    )
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            if not relay(connection, producer, topic):
                time.sleep(_POLL_S)


if __name__ == "__main__":
    main()
