"""One producer's life: from its start to its first error. After any error whose outcome is unknown it is thrown away.

The client is aiokafka's. It encodes records with many headers in half the time of librdkafka's, and sends the batches of all
partitions in one request, where librdkafka sends one for each: a small transaction takes 1.7 ms instead of 4
(docs/decisions/0011-relay-client.md).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

import aiokafka.errors as kafka
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.conn import CloseReason
from aiokafka.protocol.transaction import EndTxnRequest, InitProducerIdRequest

from ..schemas import EventspineError, Fenced, SettingsError, Unavailable
from ..schemas.cloudevents import Header
from ..schemas.kafka import KafkaAccess
from ..schemas.kafka_asyncio import asyncio_settings
from .topic_reader import PartitionId
from .unmarked import ABORTED, state_of, unmarked

__all__ = [
    "COMPRESSIONS",
    "IdempotentPublisher",
    "Packed",
    "Publisher",
    "Record",
    "Refused",
    "TransactionalPublisher",
    "publishing",
]

logger = logging.getLogger(__name__)

COMPRESSIONS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
_YIELD_EVERY: Final = 500  # records: what is under way on the network goes on meanwhile
_CLOSE_WITHIN_S: Final = 2.0
_SILENT_S: Final = 5.0


class _InvalidRecord(kafka.BrokerResponseError):  # type: ignore[misc]  # the client has no types
    """Kafka's error 87, which the client does not know: the topic's rules, or those of its schemas, refuse a record."""

    errno = 87
    message = "INVALID_RECORD"


kafka.kafka_errors.setdefault(_InvalidRecord.errno, _InvalidRecord)

_FENCED: Final = (kafka.ProducerFenced, kafka.InvalidProducerEpoch)
_REFUSED_RECORD: Final = (
    kafka.MessageSizeTooLargeError,
    kafka.RecordListTooLargeError,
    kafka.InvalidTimestampError,
    _InvalidRecord,
)
_REFUSED_ACCESS: Final = (
    kafka.TopicAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
    kafka.InvalidTopicError,
    kafka.PolicyViolationError,
)


class Record(NamedTuple):
    """What goes to Kafka for one event."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: list[Header]


class Packed(NamedTuple):
    """A batch of records of one partition, encoded."""

    topic: str
    partition: int
    batch: Any


class Refused(EventspineError):
    """Report that the broker refuses records of a batch for what they are. Attributes: `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Publisher:
    """A producer.

    `max_batch_bytes` bounds what is sent for one partition at once; it must not exceed a topic's `max.message.bytes`. After an
    error, or when `usable` is false, it must not be used again. `disturbed` is true when a connection broke: the broker may have
    died, and forgotten how transactions ended (`end_forgotten`), so that it is better to begin anew.
    """

    def __init__(
        self, access: str | KafkaAccess, *, max_batch_bytes: int = 1_000_000, compression: str = "zstd", **settings: Any
    ) -> None:
        self.usable = True
        self._access = access
        self._settings = {
            **asyncio_settings(access),
            "client_id": "eventspine",
            "acks": "all",
            "enable_idempotence": True,
            "compression_type": None if compression == "none" else compression,
            "max_batch_size": max_batch_bytes,
            "linger_ms": 0,
            "request_timeout_ms": 30_000,
            **settings,
        }
        self.disturbed = False
        self._in_doubt = False
        self._answered_at = 0.0
        self._ended_as: dict[str, str] = {}  # by transactional id: the state of its last transaction before this life
        self._producer = self._make()

    def _make(self, **settings: Any) -> AIOKafkaProducer:
        settings = self._settings | settings
        producer = AIOKafkaProducer(**settings)
        self._watch(producer.client, settings.get("transactional_id", ""))
        return producer

    async def start(self, timeout_s: float = 30.0) -> None:
        """Get ready to publish.

        Raises:
            Unavailable, SettingsError: Kafka is away, or refuses it.
        """
        await self._within(timeout_s, self._producer.start(), "to start publishing")

    async def end_forgotten(
        self, needed: Collection[PartitionId], others: Collection[PartitionId] = (), timeout_s: float = 30.0
    ) -> None:
        """Do nothing: there are no transactions. See `TransactionalPublisher`."""

    async def pack(self, records: Iterable[Record]) -> list[Packed]:
        """Encode records, in order, in batches by partition. Gives way to other tasks now and then.

        Raises:
            Refused: an item can't be made or encoded.
        """
        timestamp_ms = int(time.time() * 1000)
        filling: dict[tuple[str, int], Any] = {}
        packed: list[Packed] = []
        for number, (topic, partition, key, value, headers) in enumerate(records, 1):
            place = (topic, partition)
            batch = filling.get(place)
            if batch is None or batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
                # A batch is full when the next record does not fit; a record that is too large has one of its own.
                filling[place] = batch = self._producer.create_batch()
                packed.append(Packed(topic, partition, batch))
                if batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
                    raise Refused(f"the record for {topic} can't be encoded: {len(value)} bytes")
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        for each in packed:
            each.batch.close()
        return packed

    async def send(self, records: Iterable[Record], cursor: Record, *, durable: bool = False, timeout_s: float = 30.0) -> None:
        """Publish records, and the cursor behind them. `durable` waits until the cursor is acknowledged, too.

        Raises:
            Refused: the broker refuses a record for what it is.
            Fenced: another process publishes in our place.
            Unavailable: the outcome may be unknown.
        """
        packed = await self.pack(records)
        await self.send_packed(packed, cursor, durable=durable, timeout_s=timeout_s)

    async def send_packed(self, packed: list[Packed], cursor: Record, *, durable: bool = False, timeout_s: float = 30.0) -> None:
        """Publish what `pack` returned; see `send`."""
        if not self.usable:
            raise Unavailable("the producer is not to be used again: begin anew")
        self.usable = False
        await self._within(timeout_s, self._send(packed, cursor, durable), "to publish")

    async def _send(self, packed: list[Packed], cursor: Record, durable: bool) -> None:
        raise NotImplementedError

    async def discard(self) -> None:
        """Throw the producer away with all that it has not sent. An open transaction is ended by the next one's start."""
        if self.usable:  # without transactions, its last cursor may be on the way
            with suppress(Exception):  # its last words are about what we give up anyway
                async with asyncio.timeout(_CLOSE_WITHIN_S):
                    await self._producer.flush()
        await _abandon(self._producer)

    async def _deliver(self, packed: list[Packed]) -> list[asyncio.Future[Any]]:
        return [await self._producer.send_batch(batch, topic, partition=partition) for topic, partition, batch in packed]

    async def _pack_one(self, record: Record) -> list[Packed]:
        return await self.pack([record])

    def _watch(self, client: Any, transactional_id: str) -> None:
        """Note when Kafka answered; when an answer to the end of a transaction was lost (the client asks again); and how
        the last transaction ended, before each request for a producer id: the one that succeeds makes Kafka forget it.
        """
        send, closed = client.send, client._on_connection_closed

        async def watched(node_id: int, request: Any, **more: Any) -> Any:
            if transactional_id and isinstance(request, InitProducerIdRequest):
                self._ended_as[transactional_id] = await state_of(send, node_id, transactional_id)
            try:
                answer = await send(node_id, request, **more)
            except BaseException:
                self._in_doubt = self._in_doubt or isinstance(request, EndTxnRequest)
                raise
            self._answered_at = time.monotonic()
            return answer

        def watch_closing(connection: Any, reason: CloseReason) -> None:
            if transactional_id and reason in (CloseReason.CONNECTION_BROKEN, CloseReason.CONNECTION_TIMEOUT):
                self.disturbed = True
            closed(connection, reason)

        client.send, client._on_connection_closed = watched, watch_closing

    async def _within(self, timeout_s: float, work: Coroutine[Any, Any, None], doing: str) -> None:
        """Do the work, as long as Kafka answers. The client itself tries for ever, with a password that is no longer right."""
        task = asyncio.create_task(work)
        started = time.monotonic()
        try:
            while not task.done():
                await asyncio.wait([task], timeout=0.5)
                now = time.monotonic()
                if not task.done() and (now - max(started, self._answered_at) > _SILENT_S or now - started > timeout_s):
                    raise Unavailable(f"Kafka did not answer {doing}")
            task.result()
        except (kafka.KafkaError, AssertionError) as error:  # the client asserts where its sender has failed before
            raise _translated(error, doing) from error
        finally:
            task.cancel()


class TransactionalPublisher(Publisher):
    """Publishes each batch in a transaction together with the cursor: exactly once.

    Two producers take turns, the second under `{transactional_id}#b`. A commit is acknowledged before its markers are written,
    and a producer that begins again in that moment is sent back for 20 ms; meanwhile the other one works. A turn begins when the
    commit before it is acknowledged, so at no time are both in a transaction whose outcome is open; and a successor fences both.
    """

    def __init__(
        self,
        access: str | KafkaAccess,
        transactional_id: str,
        *,
        max_batch_bytes: int = 1_000_000,
        compression: str = "zstd",
        transaction_timeout_s: float = 30.0,
    ) -> None:
        timeout_ms = int(transaction_timeout_s * 1000)
        super().__init__(
            access,
            max_batch_bytes=max_batch_bytes,
            compression=compression,
            transactional_id=transactional_id,
            transaction_timeout_ms=timeout_ms,
        )
        self._other = self._make(transactional_id=f"{transactional_id}#b")

    async def start(self, timeout_s: float = 30.0) -> None:
        """Fence whoever published under these transactional ids before, and end what they left open."""
        for producer in (self._producer, self._other):
            await self._within(timeout_s, producer.start(), "to start transactions")

    async def end_forgotten(
        self, needed: Collection[PartitionId], others: Collection[PartitionId] = (), timeout_s: float = 30.0
    ) -> None:
        """Tell partitions again how our last transactions ended, where Kafka forgot to (unmarked.py); to be called after `start`.

        Raises:
            Unavailable: a partition that is `needed` holds an open transaction even now, somebody else's; or Kafka is away.
        """
        left = await asyncio.to_thread(unmarked, self._access, [*needed, *others])
        if not left:
            return
        for producer in (self._producer, self._other):
            await self._within(timeout_s, self._end_again(producer, left), "to end a transaction")
        logger.warning("partitions held a transaction without an end", extra={"partitions": [f"{t}[{n}]" for t, n in left]})
        for topic, number in await asyncio.to_thread(unmarked, self._access, needed):
            raise Unavailable(
                f"{topic}[{number}] holds an open transaction of somebody else's; if it lasts, look at "
                "`kafka-transactions.sh find-hanging`"
            )

    async def _end_again(self, producer: AIOKafkaProducer, partitions: Collection[PartitionId]) -> None:
        """End a transaction that has no records: its markers end the one before, where that is still open."""
        manager = producer._txn_manager
        await producer.begin_transaction()
        for each in partitions:
            manager.maybe_add_partition_to_txn(TopicPartition(*each))
        if self._ended_as[manager.transactional_id] == ABORTED:
            await producer.abort_transaction()
        else:
            await producer.commit_transaction()

    async def _send(self, packed: list[Packed], cursor: Record, durable: bool) -> None:
        """Publish records and move the cursor, in one transaction; when a record is refused, nothing is published.

        A commit that was asked for twice, because an answer was lost, is in doubt even when it succeeded: the first request may
        still be on its way, and would end this producer's next transaction. So no other one follows.
        """
        await self._producer.begin_transaction()
        outcomes = await asyncio.gather(*await self._deliver([*packed, *await self._pack_one(cursor)]), return_exceptions=True)
        _check(outcomes)
        await self._producer.commit_transaction()
        self.usable = not self._in_doubt
        self._producer, self._other = self._other, self._producer

    async def discard(self) -> None:
        await asyncio.gather(_abandon(self._producer), _abandon(self._other))


class IdempotentPublisher(Publisher):
    """Publishes without transactions: sooner, and at least once.

    Within a producer's life, the broker takes each partition's records once and in order: behind one that was refused, it refuses
    the rest. Whoever lost a shard without noticing is not fenced: what it repeats has a position at or below the partition's last
    one, and readers drop it by that.
    """

    def __init__(self, access: str | KafkaAccess, *, max_batch_bytes: int = 1_000_000, compression: str = "zstd") -> None:
        super().__init__(access, max_batch_bytes=max_batch_bytes, compression=compression)
        self._begun: set[tuple[str, int]] = set()

    async def _send(self, packed: list[Packed], cursor: Record, durable: bool) -> None:
        """Publish records, and when all are acknowledged, the cursor; without waiting for that, unless it is to be durable."""
        # Of a producer that is new to a partition the broker takes any number as the first: were the first batch refused, it
        # would take the second. So that one waits.
        first: dict[tuple[str, int], Packed] = {}
        for each in packed:
            if (each.topic, each.partition) not in self._begun:
                first.setdefault((each.topic, each.partition), each)
        if first:
            _check(await asyncio.gather(*await self._deliver(list(first.values())), return_exceptions=True))
            self._begun |= first.keys()
            packed = [each for each in packed if first.get((each.topic, each.partition)) is not each]
        _check(await asyncio.gather(*await self._deliver(packed), return_exceptions=True))
        moved = await self._deliver(await self._pack_one(cursor))
        if durable:
            _check(await asyncio.gather(*moved, return_exceptions=True))
        else:
            for acknowledged in moved:
                acknowledged.add_done_callback(self._cursor_moved)
        self.usable = True

    def _cursor_moved(self, moved: asyncio.Future[Any]) -> None:
        if moved.cancelled() or moved.exception() is not None:
            self.usable = False


@asynccontextmanager
async def publishing(make: Callable[[], Publisher]) -> AsyncIterator[Publisher]:
    """Make a publisher, and throw it away at the end."""
    publisher = make()
    try:
        yield publisher
    finally:
        await asyncio.shield(publisher.discard())


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Close a producer without waiting for what it has not sent, as its own `stop` would."""
    sender = producer._sender.sender_task
    with suppress(Exception):
        async with asyncio.timeout(_CLOSE_WITHIN_S):
            await producer.client.close()
    if sender is not None:
        sender.cancel()
        await asyncio.wait([sender], timeout=_CLOSE_WITHIN_S)
    with suppress(Exception):
        async with asyncio.timeout(_CLOSE_WITHIN_S):
            await producer.stop()


def _check(outcomes: Iterable[Any]) -> None:
    """Raise the worst of what came of batches: that a record is refused is told before what followed from it."""
    errors = [each for each in outcomes if isinstance(each, BaseException)]
    if errors:
        raise next((each for each in errors if isinstance(each, _REFUSED_RECORD)), errors[0])


def _translated(error: BaseException, doing: str) -> EventspineError:
    """Return our error for one of the client's, or for the one behind it."""
    said = f"{doing}: {type(error).__name__}: {error}"
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < 10:
        causes.append(cause)
    for each in causes:
        if isinstance(each, _FENCED):
            return Fenced(f"another process took over {doing} ({type(each).__name__})")
        if isinstance(each, _REFUSED_RECORD):
            hint = "see the rules of the topic" if isinstance(each, _InvalidRecord) else "raise the topic's max.message.bytes"
            return Refused(f"Kafka refused {said}; {hint}")
        if isinstance(each, _REFUSED_ACCESS):
            return SettingsError(f"Kafka refused {said}; check the rights and the settings")
    return Unavailable(f"Kafka failed {said}")
