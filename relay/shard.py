"""One shard of the relay: from its cursor on, batch by batch, until its first error. After that a new life begins."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from .batch import BEHIND_PARKED, Batch, Unknown, build_batch, late_headers, link_header
from .cursor import (
    START,
    TOPIC_SETTINGS,
    Cursor,
    begin,
    check_history,
    check_link,
    cursor_topic,
    next_cursor,
    read_cursors,
    with_published,
)
from .publisher import IdempotentPublisher, Packed, Publisher, Record, Refused, TransactionalPublisher, publishing
from .router import LATER
from .state import Parked, Rate, ShardReport
from .tails import read_tails
from .topic_reader import PartitionId
from .topics import Topics, partitions_of_shard

if TYPE_CHECKING:
    from ..schemas.kafka import KafkaAccess
    from .source import Routes, Source, State, Stored

__all__ = ["DELIVERIES", "Shard", "ShardOptions", "transactional_id"]

logger = logging.getLogger(__name__)

DELIVERIES: Final = ("exactly-once", "at-least-once")
_BEHIND_EVENTS: Final = 1000  # so many at once, and the next are fetched while these are published
_LINK_EVERY_S: Final = 1.0
_UNWRITTEN_EVENTS: Final = 100_000  # so many of other shards, and the cursor is written although there is nothing to publish


@dataclass(frozen=True)
class ShardOptions:
    """What all shards of a relay have in common. `poll_s` bounds the delay when a notification of an append is lost."""

    name: str
    prefix: str
    delivery: str = "exactly-once"
    batch_events: int = 20_000
    batch_bytes: int = 16_000_000
    poll_s: float = 0.5
    compression: str = "zstd"


def transactional_id(prefix: str, name: str, shard: int) -> str:
    """Return the id by which Kafka knows the producers of a shard, one after the other."""
    return f"{prefix}{name}#{shard}" if shard else f"{prefix}{name}"


class _BeginAnew(Exception):
    """The producer has to be made anew. That takes a whole new life: who makes one has to read the cursor behind it."""


class Shard:
    """Publishes the events of one shard: those whose partition, divided by the number of shards, leaves its number.

    So a partition has one shard, and positions rise in it. Attributes: `position` is the last position published or passed over,
    `published` counts records, `state` is one of starting, publishing, paused.
    """

    def __init__(
        self,
        number: int,
        shards: int,
        generation: int,
        options: ShardOptions,
        *,
        log: Source,
        router: Routes,
        topics: Topics,
        state: State,
        kafka: str | KafkaAccess,
        check_held: Callable[[int], Awaitable[None]],
        well: Callable[[], None],
    ) -> None:
        self.number = number
        self.state = "starting"
        self.position = 0
        self.published = Rate()
        self._shards = shards
        self._generation = generation
        self._options = options
        self._log = log
        self._router = router
        self._topics = topics
        self._rows = state
        self._kafka = kafka
        self._check_held = check_held
        self._well = well
        self._cursor_topic = cursor_topic(options.prefix)
        self._limit = self._late_limit = options.batch_events
        self._parked: dict[str, int] = {}  # streams, and from which position on
        self._published_late: set[int] = set()
        self._given_up: tuple[int, ...] = ()
        self._floors: Sequence[int] = ()
        self._tails: dict[tuple[str, int], int] = {}  # of partitions whose last life may have been ahead of its cursor
        self._written = START  # the last cursor on Kafka
        self._link: tuple[int, str] | None = None
        self._linked_at = float("-inf")
        self._awake = asyncio.Event()
        self.stopping = False
        self.paused = False
        self.retry = False

    def stop(self) -> None:
        """Ask for the end after the batch that is under way."""
        self.stopping = True
        self._awake.set()

    def wake(self) -> None:
        """Say that there may be something to do."""
        self._awake.set()

    def report(self) -> ShardReport:
        return ShardReport(self.number, self.state, self.position, self.published.count, self.published.look())

    async def run(self) -> None:
        """Publish from the cursor on, until `stop()`.

        Raises:
            IntegrityError: log, cursor and topics contradict each other.
            Unavailable, Fenced: begin anew.
        """
        while not self.stopping:
            with suppress(_BeginAnew):
                await self._live()

    async def _live(self) -> None:
        """One producer's life. The order of the first steps is what makes a restart safe: fence, end, then read."""
        self.state = "starting"
        await self._check_held(self.number)
        await self._topics.check()
        await self._topics.ensure_cursors(self._cursor_topic, self._shards, TOPIC_SETTINGS)
        async with publishing(self._publisher) as sender:
            await sender.start()
            await sender.end_forgotten([(self._cursor_topic, self.number)], self._mine())
            cursor = await self._find_cursor()
            logger.info("relay publishes", extra={"shard": self.number, "position": cursor.position})
            self.state = "publishing"
            if cursor.retrying:
                cursor = await self._finish_late(sender, cursor)
            while not self.stopping:
                try:
                    cursor = await self._publish_from(sender, cursor)
                except Refused as refused:
                    # Which record it is, is found by halving; one that is refused alone is parked.
                    logger.info("a batch is refused: %s", refused.reason, extra={"shard": self.number, "events": self._limit})
                    max_bytes = self._topics.max_message_bytes
                    await self._topics.check()
                    if not sender.usable or self._topics.max_message_bytes < max_bytes:
                        raise _BeginAnew from refused
                    # What was routed ahead may have set streams aside that are not noted as parked.
                    cursor, self._parked = self._written, await self._rows.parked_streams()
            if cursor.position > self._written.position:
                await self._send(sender, Batch([], [], [], cursor), even_if_empty=True)

    def _publisher(self) -> Publisher:
        max_bytes, compression = min(1_000_000, self._topics.max_message_bytes), self._options.compression
        if self._options.delivery == "at-least-once":
            return IdempotentPublisher(self._kafka, max_batch_bytes=max_bytes, compression=compression)
        name = transactional_id(self._options.prefix, self._options.name, self.number)
        return TransactionalPublisher(self._kafka, name, max_batch_bytes=max_bytes, compression=compression)

    async def _find_cursor(self) -> Cursor:
        """Return where to begin, having checked that the log is the one that was published."""
        name, generation = self._options.name, self._generation
        keys = [name, f"{name}@{generation}", f"{name}@{generation - 1}"]
        cursors = await asyncio.to_thread(read_cursors, self._kafka, self._cursor_topic, keys)
        cursor, closed = begin(cursors, name, self.number, generation)
        self._floors = tuple(each.position for each in closed)
        for each in (cursor, *closed):
            check_history(each, await self._log.event_id_at(each.position))
            check_link(each, await self._log.digest_of_link(each.link))
        if cursor.unparked:  # the last life may have died between Kafka's commit and this
            await self._rows.unpark(cursor.unparked, late=cursor.late)
            cursor = msgspec.structs.replace(cursor, unparked=())
        self.position = cursor.position
        self._linked_at = float("-inf")
        self._parked = await self._rows.parked_streams()
        self._published_late = await self._rows.published_late(cursor.position)
        self._tails = await self._find_tails(cursor)
        self._written = cursor = with_published(cursor, self._tails, self._topics.ids)
        return cursor

    async def _find_tails(self, cursor: Cursor) -> dict[tuple[str, int], int]:
        """Return how far partitions are ahead of the cursor, which is written behind the records, and may be lost.

        Without this, what is there would be published again; and where the broker refuses now what it took before, it would be
        parked, and published late a second time, which readers can't tell.
        """
        if self._options.delivery != "at-least-once" or not self._router.positions_in_headers:
            return {}
        group = f"{self._cursor_topic}-reader"
        tails = await asyncio.to_thread(read_tails, self._kafka, self._mine(), group=group)
        ahead = {partition: tail for partition, tail in tails.items() if tail.position > cursor.position}
        for tail in ahead.values():
            if tail.event_id:
                check_history(Cursor(tail.position, tail.event_id), await self._log.event_id_at(tail.position))
        return {partition: tail.position for partition, tail in ahead.items()}

    async def _publish_from(self, sender: Publisher, cursor: Cursor) -> Cursor:
        """Publish what follows a cursor, until asked to stop; return the last cursor.

        When far behind, the next events are fetched and routed while the last ones are committed. Otherwise what was appended
        meanwhile is fetched after the commit, so that it goes together.
        """
        wait_s = 0.01
        sending: asyncio.Task[None] | None = None
        reading = asyncio.create_task(self._nothing() if self._breaks() else self._read_after(cursor))
        try:
            while True:
                events = await reading
                if not events:
                    if sending is not None:
                        await sending
                        sending = None
                    if self.stopping:
                        return cursor
                    if sender.disturbed:
                        raise _BeginAnew
                    if self.paused:
                        await self._stay_paused()
                    elif self.retry:
                        self.retry = False
                        cursor = await self._retry_parked(sender, cursor)
                    else:
                        self._well()
                        await self._wait(wait_s)
                        wait_s = min(2 * wait_s, self._options.poll_s)
                    reading = asyncio.create_task(self._read_after(cursor))
                    continue
                wait_s = 0.01
                cursor = next_cursor(cursor, events)
                behind = len(events) >= min(_BEHIND_EVENTS, self._limit)
                if behind and self._limit > 1:
                    reading = asyncio.create_task(self._read_after(cursor))
                batch = await self._build(events, cursor)
                cursor = batch.cursor
                self._note_parked(batch.parked)
                packed = await sender.pack(self._dressed(batch)) if sending is not None else None
                if sending is not None:
                    await sending
                sending = asyncio.create_task(self._send(sender, batch, packed))
                if not behind or self._limit <= 1 or self.stopping or self.paused or self.retry:
                    await sending
                    sending = None
                    reading.cancel()
                    reading = asyncio.create_task(self._nothing() if self._breaks() else self._read_after(cursor))
        finally:
            reading.cancel()
            if sending is not None:
                with suppress(Exception):  # an older error ends this life, or a stop does
                    await sending

    def _mine(self) -> list[PartitionId]:
        return partitions_of_shard(self._topics.partitions, self.number, self._shards)

    def _breaks(self) -> bool:
        return self.stopping or self.paused or self.retry

    async def _nothing(self) -> list[Stored]:
        return []

    async def _read_after(self, cursor: Cursor) -> list[Stored]:
        event_id, events = await self._log.read_following(cursor.position, self._limit, self._options.batch_bytes)
        check_history(cursor, event_id)
        return events

    async def _build(self, events: Sequence[Stored], cursor: Cursor, *, late: bool = False) -> Batch:
        """Route events; make topics that are new. What was parked is published `late`, wherever the partition is by then."""
        await self._router.prepare(events)
        while True:
            built = build_batch(
                events,
                cursor,
                route=self._router.plan,
                partitions=self._topics.partitions,
                shard=self.number,
                shards=self._shards,
                floors=() if late else self._floors,
                parked={} if late else self._parked,
                published_late=frozenset() if late else self._published_late,
                tails={} if late else self._tails,
                topic_ids=None if late or not self._router.positions_in_headers else self._topics.ids,
            )
            if not isinstance(built, Unknown):
                await self._router.list_subjects()
                return built
            max_bytes = self._topics.max_message_bytes
            await self._topics.ensure(built.topics)
            if self._topics.max_message_bytes < max_bytes:
                raise _BeginAnew

    async def _send(
        self, sender: Publisher, batch: Batch, packed: list[Packed] | None = None, *, even_if_empty: bool = False
    ) -> None:
        """Publish a batch. What is parked is noted first: should we die in between, it is noted again."""
        await self._rows.park(self.number, batch.parked)
        passed = batch.cursor.position - self._written.position
        if batch.records or batch.parked or even_if_empty or passed >= _UNWRITTEN_EVENTS:
            if sender.disturbed:
                raise _BeginAnew
            cursor = await self._with_link(batch.cursor)
            try:
                if packed is None:
                    packed = await sender.pack(self._dressed(batch))
                await sender.send_packed(packed, self._cursor_record(cursor))
            except Refused as refused:
                self._limit = max(1, min(self._limit, passed) // 2)
                if len(batch.records) == 1:
                    await self._park(batch.sources, refused.reason)
                raise
            self._written = cursor
            if self._tails and cursor.position >= max(self._tails.values()):
                self._tails = {}
            self.published.count += len(batch.records)
            self._limit = min(2 * self._limit, self._options.batch_events)
        self.position = batch.cursor.position
        self._well()
        if not sender.usable or sender.disturbed:
            raise _BeginAnew

    async def _park(self, events: Sequence[Stored], reason: str) -> None:
        """Set aside the first of some events of a stream, and the others behind it."""
        first, *others = events
        logger.warning("event at position %d is parked: %s", first.global_position, reason, extra={"stream": first.stream_id})
        aside = [Parked(first.global_position, first.stream_id, reason, 1)]
        aside += [Parked(each.global_position, each.stream_id, BEHIND_PARKED, 0) for each in others]
        self._note_parked(aside)
        await self._rows.park(self.number, aside)

    def _note_parked(self, parked: Sequence[Parked]) -> None:
        for each in parked:
            self._parked[each.stream_id] = min(self._parked.get(each.stream_id, each.position), each.position)

    async def _retry_parked(self, sender: Publisher, cursor: Cursor) -> Cursor:
        """Publish parked streams that somebody asked to try again, each in order, in a transaction; what fails is parked again.

        Their records come behind records of higher positions, and say so in headers; see `late_headers`. What lies behind the
        cursor waits for it: a life that ended between parking and moving the cursor leaves such, and they will be read again.
        """
        rows = await self._rows.parked_to_retry()
        events = await self._log.read_stored_at([position for position, _ in rows if position <= cursor.position])
        streams: dict[str, list[Stored]] = {}
        for event in events:
            streams.setdefault(event.stream_id, []).append(event)
        for stream in streams.values():
            cursor = await self._retry_stream(sender, cursor, stream)
        self._parked = await self._rows.parked_streams()
        return cursor

    async def _retry_stream(self, sender: Publisher, cursor: Cursor, stream: list[Stored]) -> Cursor:
        batch = await self._build(stream, cursor, late=True)
        await self._rows.park(self.number, batch.parked)
        if self.number == 0:  # one of the shards forgets what is not to be published any more
            await self._rows.unpark([each.global_position for each in stream if self._goes_nowhere(each)])
        mine = batch.sources  # the others are other shards': a stream whose events have keys of their own has several
        if not mine:
            return cursor
        # Without transactions each goes alone: of several, some may be published when one is refused.
        at_once = 1 if self._options.delivery == "at-least-once" else min(len(mine), self._late_limit)
        while mine:
            now = Batch(batch.records[:at_once], mine[:at_once], [], cursor)
            try:
                cursor = await self._send_late(sender, cursor, now, [each.global_position for each in now.sources])
            except Refused as refused:
                if at_once == 1:
                    await self._park(mine, refused.reason)
                self._late_limit = max(1, at_once // 2)
                raise _BeginAnew from refused
            batch, mine = batch._replace(records=batch.records[at_once:]), mine[at_once:]
            self._late_limit = min(2 * self._late_limit, self._options.batch_events)
        return cursor

    def _goes_nowhere(self, event: Stored) -> bool:
        try:
            return self._router.plan(event) is None
        except Exception:  # it is parked anew for that
            return False

    async def _send_late(self, sender: Publisher, cursor: Cursor, batch: Batch, numbered: Sequence[int]) -> Cursor:
        """Publish events of a stream that was parked. Which they are stands in the cursor, so that a crash repeats none.

        Each has a number of its own, given by its place among the positions `numbered`. Without transactions these are noted
        first: a life that ends in between is followed by one that publishes the same under the same numbers.
        """
        done = tuple(numbered)
        numbers = {position: number for number, position in enumerate(done, cursor.late + 1)}
        published_after = max(cursor.position, *self._floors, 0)
        if self._options.delivery == "at-least-once":  # a life whose cursor was lost may have published more than we know of
            published_after = max(published_after, await self._log.last_position())
        late = [
            record._replace(headers=[*record.headers, *late_headers(published_after, numbers[event.global_position])])
            for record, event in zip(self._dressed(batch), batch.sources, strict=True)
        ]
        linked = await self._with_link(cursor)
        after = msgspec.structs.replace(linked, unparked=done, late=cursor.late + len(done), retrying=())
        if self._options.delivery == "at-least-once":
            before = msgspec.structs.replace(linked, retrying=done)
            await sender.send([], self._cursor_record(before), durable=True)
            self._written = before
        await sender.send(late, self._cursor_record(after), durable=True)
        self._written = msgspec.structs.replace(after, unparked=())
        self.published.count += len(late)
        await self._rows.unpark(done, late=after.late)
        return self._written

    async def _finish_late(self, sender: Publisher, cursor: Cursor) -> Cursor:
        """Publish once more, under the same numbers, what the last life was publishing late when it ended.

        If one of these records is refused, their numbers are given up, and they stay parked.
        """
        if self._given_up == cursor.retrying:
            after = msgspec.structs.replace(cursor, late=cursor.late + len(cursor.retrying), retrying=())
            await sender.send([], self._cursor_record(after), durable=True)
            self._written, self._given_up = after, ()
            return after
        events = await self._log.read_stored_at(cursor.retrying)
        batch = await self._build(events, cursor, late=True)
        try:
            return await self._send_late(sender, cursor, batch, cursor.retrying)
        except Refused as refused:
            self._given_up = cursor.retrying
            raise _BeginAnew from refused

    def _dressed(self, batch: Batch) -> Iterator[Record]:
        """Return the records with their headers, each made when it is asked for."""
        headers_of, links = self._router.headers, batch.links
        for number, (record, source) in enumerate(zip(batch.records, batch.sources, strict=True)):
            link = link_header(links[number]) if number in links else None
            if record.headers is not LATER:
                yield record._replace(headers=[*record.headers, link]) if link else record
                continue
            try:
                headers = headers_of(source)
            except (ValueError, TypeError) as error:  # found alone by halving, then parked
                raise Refused(f"the headers of the event at position {source.global_position} can't be made: {error}") from error
            if link:
                headers = [*headers, link]
            yield Record(record.topic, record.partition, record.key, record.value, headers)

    async def _with_link(self, cursor: Cursor) -> Cursor:
        """Add a link of the hash chain to a cursor: any that is not old will do, so it is looked up now and then."""
        now = time.monotonic()
        if now - self._linked_at > _LINK_EVERY_S:
            self._link = await self._log.link_before(cursor.position)
            self._linked_at = now
        return msgspec.structs.replace(cursor, link=self._link[0], digest=self._link[1]) if self._link else cursor

    def _cursor_record(self, cursor: Cursor) -> Record:
        return Record(self._cursor_topic, self.number, self._options.name.encode(), cursor.to_bytes(), [])

    async def _stay_paused(self) -> None:
        self.state = "paused"
        logger.info("relay pauses", extra={"shard": self.number, "position": self.position})
        while self.paused and not self.stopping:
            await self._wait(1.0)
        self.state = "publishing"

    async def _wait(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._awake.wait()
        self._awake.clear()
