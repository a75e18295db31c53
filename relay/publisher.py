"""One producer's life: from init_transactions() to its first error. After any error it is thrown away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ..schemas import EventspineError, Fenced, StoredEvent, schema_id_of
from ..schemas.cloudevents import headers_of
from ..schemas.envelope import PinnedEnvelope, envelop
from ..schemas.kafka import client_settings, kafka_error, topic_of
from .cursor import Cursor

__all__ = ["SUBJECT_NAMES", "Publisher", "Record", "record_of", "subjects_of"]

logger = logging.getLogger(__name__)

_FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}


class Record(NamedTuple):
    """What goes to Kafka for one event."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


SUBJECT_NAMES: Final[Mapping[str, Callable[[str, str], str]]] = {
    "TopicRecordNameStrategy": lambda topic, full_name: f"{topic}-{full_name}",
    "RecordNameStrategy": lambda topic, full_name: full_name,
    "TopicNameStrategy": lambda topic, full_name: f"{topic}-value",
}
"""How a subject is called after the topic and the record, under each of the names that Confluent's clients give these ways.

Source: https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#subject-name-strategy
"""


def record_of(event: StoredEvent, *, prefix: str, source: str, envelopes: Mapping[int, PinnedEnvelope] | None = None) -> Record:
    """Route an event: topic by category, key by stream, stored bytes untouched.

    The envelope goes into the headers; with `envelopes`, by schema id of the data, into the value.
    """
    topic, key = topic_of(event.stream_type, prefix), event.stream_id.encode()
    if envelopes is None:
        return Record(topic, key, event.payload, headers_of(event, source))
    return Record(topic, key, *envelop(event, envelopes[schema_id_of(event.payload)].header))


def subjects_of(
    events: Iterable[StoredEvent],
    full_names: Mapping[int, str],
    prefix: str,
    *,
    strategy: str = "TopicRecordNameStrategy",
    envelopes: Mapping[int, PinnedEnvelope] | None = None,
) -> set[tuple[str, int]]:
    """Return under which subjects a registry lists the schemas of the events' records: (subject, schema id)."""
    subjects = set()
    for stream_type, schema_id in {(event.stream_type, schema_id_of(event.payload)) for event in events}:
        listed = PinnedEnvelope(schema_id, full_names[schema_id]) if envelopes is None else envelopes[schema_id]
        subjects.add((SUBJECT_NAMES[strategy](topic_of(stream_type, prefix), listed.full_name), listed.schema_id))
    return subjects


class Publisher:
    """A transactional producer. Every method blocks; call them from one thread at a time."""

    def __init__(self, bootstrap: str, transactional_id: str, *, transaction_timeout_s: float = 60.0) -> None:
        self._refused: EventspineError | None = None
        self._producer = Producer(
            client_settings(bootstrap)
            | {
                "transactional.id": transactional_id,
                "transaction.timeout.ms": int(transaction_timeout_s * 1000),
                "partitioner": "murmur2_random",  # as the Java clients partition
                "compression.type": "lz4",
                "linger.ms": 5,
                "batch.num.messages": 10_000,
                "queue.buffering.max.messages": 200_000,
                "message.max.bytes": 1_048_588,  # the broker's default; the client's is lower
            }
        )

    def start(self, timeout_s: float = 60.0) -> None:
        """Fence whoever published under this transactional id before, and end its open transaction."""
        self._call("to start transactions", self._producer.init_transactions, timeout_s)

    def publish(
        self, records: Iterable[Record], cursor_topic: str, name: str, cursor: Cursor, *, timeout_s: float = 60.0
    ) -> None:
        """Publish records and move the cursor, in one transaction.

        Raises:
            Fenced: another process publishes under this transactional id.
            Unavailable: the outcome may be unknown. The producer must not be used again: repeating a commit whose answer was
                lost can, without KIP-890 on both sides, commit or abort the transaction after it.
            EventspineError: a record is refused for what it is.
        """
        self._call("to begin a transaction", self._producer.begin_transaction)
        for topic, key, value, headers in records:
            self._produce(topic, key, value, headers)
        self._produce(cursor_topic, name.encode(), cursor.to_bytes(), [], partition=0)
        self._call("to commit a transaction", self._producer.commit_transaction, timeout_s)

    def discard(self) -> None:
        """Throw the producer away with all that it has not sent. Its open transaction is ended by the next one's start."""
        with suppress(KafkaException):  # its last words are about what we give up anyway
            self._producer.purge(in_queue=True, in_flight=True, blocking=False)
            self._producer.poll(0)

    def _produce(
        self, topic: str, key: bytes, value: bytes, headers: list[tuple[str, str | bytes | None]], partition: int = -1
    ) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, partition=partition, headers=headers, on_delivery=self._delivered)
            except BufferError:  # the client's queue is full: let it deliver
                self._producer.poll(0.1)
            except KafkaException as error:
                raise self._error(error.args[0], f"to publish to {topic}") from error
            else:
                return

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._refused is None:
            refused = kafka_error(error, f"to publish to {message.topic()} the event of stream {(message.key() or b'').decode()}")
            if error.code() not in _FENCED and error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
                self._refused = refused

    def _call(self, doing: str, call: object, *arguments: float) -> None:
        try:
            call(*arguments)  # type: ignore[operator]
        except KafkaException as error:
            raise self._error(error.args[0], doing) from error

    def _error(self, error: KafkaError, doing: str) -> EventspineError:
        if error.code() in _FENCED:
            return Fenced(f"another process took over {doing} ({error.name()})")
        return self._refused or kafka_error(error, doing)
