"""One producer's life: from its start to its first error. After any error whose outcome is unknown it is thrown away."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ..schemas import EventspineError, Fenced
from ..schemas.kafka import KafkaAccess, client_settings, is_refused_record, kafka_error

__all__ = ["IdempotentPublisher", "Publisher", "Record", "Refused", "TransactionalPublisher"]

logger = logging.getLogger(__name__)

_FENCED: Final = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}
_GIVEN_UP: Final = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}
_MAX_REQUEST_BYTES: Final = 100_000_000  # of the client's: what is too large is for the broker to say, which knows the topic


class Record(NamedTuple):
    """What goes to Kafka for one event."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


class Refused(EventspineError):
    """Report that the broker refuses records of a batch for what they are; nothing of the batch was published.

    Attributes: `reason`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Publisher:
    """A producer. Every method blocks; call them from one thread at a time.

    `max_batch_bytes` bounds what is sent for one partition at once; it must not exceed a topic's `max.message.bytes`.
    """

    def __init__(self, kafka: str | KafkaAccess, *, max_batch_bytes: int = 1_000_000, **settings: Any) -> None:
        self.usable = True
        self._refused: EventspineError | None = None
        self._settings = client_settings(kafka) | {
            "compression.type": "lz4",
            "linger.ms": 5,  # of no account at the end of a batch, which is flushed
            "socket.nagle.disable": True,
            "batch.size": max_batch_bytes,
            "batch.num.messages": 1_000,
            "queue.buffering.max.messages": 500_000,
            "queue.buffering.max.kbytes": 1_048_576,
            "message.max.bytes": _MAX_REQUEST_BYTES,
            "delivery.report.only.error": True,
            "on_delivery": self._failed,
        }
        self._producer = Producer(self._settings | settings)

    def start(self, timeout_s: float = 60.0) -> None:
        """Get ready to publish."""

    def publish(self, records: Iterable[Record], cursor: Record, *, durable: bool = False, timeout_s: float = 60.0) -> None:
        """Publish records, and the cursor behind them. `durable` waits until the cursor is acknowledged, too.

        Raises:
            Refused: the broker refuses a record for what it is.
            Fenced: another process publishes in our place.
            Unavailable: the outcome may be unknown.

        After an error the producer must not be used again, unless `usable` says so.
        """
        raise NotImplementedError

    def discard(self) -> None:
        """Throw the producer away with all that it has not sent. An open transaction is ended by the next one's start."""
        if self.usable:  # without transactions, its last cursor may be on the way
            self._producer.flush(5.0)
        with suppress(KafkaException):  # its last words are about what we give up anyway
            self._producer.purge(in_queue=True, in_flight=True, blocking=False)
            self._producer.poll(0)

    def _produce(self, records: Iterable[Record]) -> None:
        produce = self._producer.produce
        for record in records:
            topic, partition, key, value, headers = record
            try:
                produce(topic, value, key, partition, headers=headers)
            except (BufferError, KafkaException) as error:
                self._produce_slowly(record, error)

    def _produce_slowly(self, record: Record, error: BufferError | KafkaException) -> None:
        topic, partition, key, value, headers = record
        while isinstance(error, BufferError):  # the client's queue is full: let it deliver
            self._producer.poll(0.1)
            try:
                self._producer.produce(topic, value, key, partition, headers=headers)
            except (BufferError, KafkaException) as again:
                error = again
            else:
                return
        raise self._error(error.args[0], f"to publish to {topic}") from error

    def _failed(self, error: KafkaError | None, message: Message) -> None:
        if error is None or error.code() in _FENCED | _GIVEN_UP:
            return
        if self._refused is None or (is_refused_record(error) and not isinstance(self._refused, Refused)):
            doing = f"to publish to {message.topic()} the event of stream {(message.key() or b'').decode(errors='replace')}"
            failed = kafka_error(error, doing)
            self._refused = Refused(str(failed)) if is_refused_record(error) else failed

    def _call(self, doing: str, call: Any, *arguments: float) -> None:
        try:
            call(*arguments)
        except KafkaException as error:
            raise self._error(error.args[0], doing) from error

    def _error(self, error: KafkaError, doing: str) -> EventspineError:
        if error.code() in _FENCED:
            return Fenced(f"another process took over {doing} ({error.name()})")
        if self._refused is not None:
            return self._refused
        if is_refused_record(error):
            return Refused(str(kafka_error(error, doing)))
        return kafka_error(error, doing)


class TransactionalPublisher(Publisher):
    """Publishes each batch in a transaction together with the cursor: exactly once.

    Two producers take turns, the second under `{transactional_id}#b`. A commit is acknowledged before its markers are written,
    and a producer that begins again in that moment is sent back for 20 ms; meanwhile the other one works. A turn begins when the
    commit before it is acknowledged, so at no time are both in a transaction whose outcome is open; and a successor fences both.
    """

    def __init__(
        self,
        kafka: str | KafkaAccess,
        transactional_id: str,
        *,
        max_batch_bytes: int = 1_000_000,
        transaction_timeout_s: float = 60.0,
    ) -> None:
        timeout = {"transaction.timeout.ms": int(transaction_timeout_s * 1000)}
        super().__init__(kafka, max_batch_bytes=max_batch_bytes, **timeout, **{"transactional.id": transactional_id})
        self._other = Producer(self._settings | timeout | {"transactional.id": f"{transactional_id}#b"})

    def start(self, timeout_s: float = 60.0) -> None:
        """Fence whoever published under these transactional ids before, and end what they left open."""
        self._call("to start transactions", self._producer.init_transactions, timeout_s)
        self._call("to start transactions", self._other.init_transactions, timeout_s)

    def discard(self) -> None:
        super().discard()
        self._producer, self._other = self._other, self._producer
        super().discard()

    def publish(self, records: Iterable[Record], cursor: Record, *, durable: bool = False, timeout_s: float = 60.0) -> None:
        """Publish records and move the cursor, in one transaction; when a record is refused, nothing is published.

        An unknown outcome is never asked for again: repeating a commit whose answer was lost can, without KIP-890 on both sides,
        commit or abort the transaction after it.
        """
        self.usable = False
        self._call("to begin a transaction", self._producer.begin_transaction)
        try:
            self._produce(records)
            self._produce([cursor])
            self._call("to commit a transaction", self._producer.commit_transaction, timeout_s)
        except Refused:
            self._call("to abort a transaction", self._producer.abort_transaction, timeout_s)
            self._refused = None
            self.usable = True
            raise
        self.usable = True
        self._producer, self._other = self._other, self._producer


class IdempotentPublisher(Publisher):
    """Publishes without transactions: sooner, and at least once.

    Within a producer's life, the broker takes each partition's records once and in order. What is repeated after a crash has a
    position at or below the partition's last one; readers drop it by that.
    """

    def __init__(self, kafka: str | KafkaAccess, *, max_batch_bytes: int = 1_000_000) -> None:
        super().__init__(kafka, max_batch_bytes=max_batch_bytes, **{"enable.idempotence": True, "enable.gapless.guarantee": True})

    def publish(self, records: Iterable[Record], cursor: Record, *, durable: bool = False, timeout_s: float = 60.0) -> None:
        """Publish records, and when all are acknowledged, the cursor; without waiting for that, unless it is to be durable."""
        self.usable = False
        self._produce(records)
        self._flush(timeout_s)
        self._produce([cursor])
        if durable:
            self._flush(timeout_s)
        self._producer.poll(0)
        self.usable = True

    def _flush(self, timeout_s: float) -> None:
        left = self._producer.flush(timeout_s)
        if self._refused is not None:
            raise self._refused
        if left:
            raise kafka_error(KafkaError(KafkaError._TIMED_OUT), f"to publish: {left} records unacknowledged for {timeout_s} s")
