"""The cursor: how far the relay has published, kept on Kafka itself.

It is a record in a compacted topic, written in the same Kafka transaction as the events, so that what was published and how
far the relay believes to have come can't disagree. Its key is the relay's name; its value a JSON object
`{"position": 42, "event_id": "…"}` of the last event published.
"""

from __future__ import annotations

from typing import Final

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from ..schemas import IntegrityError, StoredEvent, Unavailable
from ..schemas.kafka import client_settings, kafka_error, translated_kafka

__all__ = ["START", "TOPIC_SETTINGS", "Cursor", "check_history", "cursor_after", "cursor_topic", "next_cursor", "read_cursor"]

TOPIC_SETTINGS: Final = {"cleanup.policy": "compact", "segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.1"}


class Cursor(msgspec.Struct, frozen=True):
    """The last event published; position 0 and no event id before the first."""

    position: int
    event_id: str

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls, value: bytes) -> Cursor:
        try:
            return msgspec.json.decode(value, type=cls)
        except msgspec.MsgspecError as error:
            raise IntegrityError(f"the relay's cursor on Kafka is unreadable: {value[:200]!r}: {error}") from error


START: Final = Cursor(0, "")


def cursor_topic(prefix: str) -> str:
    """Return the topic that holds the cursors: one partition, one key for each relay's name.

    A category can't be called `-cursors` (its name holds no hyphen), so no topic of events has this name.
    """
    return f"{prefix}-cursors"


def check_history(cursor: Cursor, event_id_at_cursor: str | None) -> None:
    """Check that the log still holds, at the cursor's position, the event that was published from there.

    Raises:
        IntegrityError: it does not: the database was restored to an older state, or is another one.
    """
    if cursor.position and event_id_at_cursor != cursor.event_id:
        found = f"holds event {event_id_at_cursor} there" if event_id_at_cursor else "ends before"
        raise IntegrityError(
            f"Kafka has events up to position {cursor.position} (event {cursor.event_id}), but the log {found}: the database "
            "was restored to an older state or is not the one that was published. Publishing on would give consumers two "
            "histories. Restore the right database, or publish this one under another topic prefix"
        )


def next_cursor(cursor: Cursor, events: list[StoredEvent]) -> Cursor:
    """Return the cursor behind a batch that follows `cursor` without a gap.

    Raises:
        IntegrityError: a position is missing or out of order.
    """
    for expected, event in enumerate(events, cursor.position + 1):
        if event.global_position != expected:
            raise IntegrityError(
                f"the log has position {event.global_position} where {expected} should follow: it was tampered with"
            )
    return cursor_after(events[-1]) if events else cursor


def cursor_after(event: StoredEvent) -> Cursor:
    return Cursor(event.global_position, event.event_id)


def read_cursor(bootstrap: str, topic: str, name: str, *, timeout_s: float = 30.0) -> Cursor:
    """Read the cursor's topic to its end (committed records only) and return the last cursor of this name.

    Must run after `init_transactions()`: that has ended the transaction of whoever published before, so the topic's last
    stable offset lies behind its last commit, and nothing that was committed can be missed here.

    Raises:
        Unavailable: the end was not reached in time.
    """
    consumer = Consumer(
        client_settings(bootstrap)
        | {
            "group.id": f"eventspine-{name}-cursor",  # the client demands one; nothing is ever committed under it
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    cursor = START
    try:
        with translated_kafka("to read the relay's cursor"):
            consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
            while True:
                message = consumer.poll(timeout_s)
                if message is None:
                    raise Unavailable(f"topic {topic} was not read to its end in {timeout_s} s")
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    return cursor
                if error is not None:
                    raise kafka_error(error, "to read the relay's cursor")
                value = message.value()
                if message.key() == name.encode() and value is not None:
                    cursor = Cursor.from_bytes(value)
    finally:
        consumer.close()
