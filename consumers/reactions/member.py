"""A member of a reaction's consumer group: what it fetches, the tasks that handle streams, and how far its partitions are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient

from ...schemas import EventspineError, IntegrityError, SettingsError, Unavailable
from ...schemas.kafka import KafkaAccess, answer_of, client_settings, translated_kafka
from ...schemas.kafka_asyncio import asyncio_settings
from ..folding import Folded
from ..parked import Asked, Parked
from ..places import Partition, Place
from ..projection import Projection
from ..sink import Sink, Work
from .progress import Entry, Progress

__all__ = ["Fetched", "GivenUp", "Member", "work_of"]

logger = logging.getLogger(__name__)

_REJOIN_WITHIN_S: Final = 30.0  # beside what members take to give up partitions
_NOTHING: Final = Folded([], [], {}, [])
_REFUSED_ACCESS: Final = (
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.InvalidTopicError,
)


class GivenUp(Exception):
    """The partition goes to somebody else."""


class Fetched(NamedTuple):
    """Records, and the partitions that were ours when they came: what was given up since is not theirs."""

    records: list[Any]
    owned: dict[Partition, Progress]


class Member(ConsumerRebalanceListener):  # type: ignore[misc]  # the client has no types
    """A member of the group, the partitions that it owns, and the tasks that handle their streams.

    `topics` is a pattern. `handle` handles an event, `settle` does what is asked for a parked stream. After an error
    of any of these, or of its own, the member is to be left: nothing in memory is to be used again.
    """

    def __init__(
        self,
        bootstrap: str | KafkaAccess,
        group_id: str,
        topics: str,
        sink: Sink,
        kept_as: Projection,
        *,
        handle: Callable[[Member, Progress, Entry], Awaitable[None]],
        settle: Callable[[Member, Progress, Asked], Awaitable[None]],
        concurrency: int,
        session_timeout_s: float,
        instance_id: str,
        drain_s: float,
    ) -> None:
        self.owned: dict[Partition, Progress] = {}
        self.paused = False
        self.leaving = asyncio.Event()
        self.turns = asyncio.Semaphore(concurrency)
        self._bootstrap = bootstrap
        self._topics = topics
        self._sink = sink
        self._kept_as = kept_as
        self._handle = handle
        self._settle = settle
        self._drain_s = drain_s
        self._streams: dict[tuple[Partition, str], deque[Entry]] = {}
        self._settling: set[tuple[Partition, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writing = asyncio.Lock()
        self._told: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[Fetched] | None = None
        self._topic_ids: dict[str, str] = {}
        self._behind: dict[Partition, int] = {}
        self._gave_up_at = 0.0
        session_ms = int(session_timeout_s * 1000)
        self._kafka = AIOKafkaConsumer(
            **asyncio_settings(bootstrap),
            client_id="eventspine",
            group_id=group_id,
            group_instance_id=instance_id or None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            # Offsets come from the sink. One that Kafka does not have any more is an error, never a reason to skip.
            auto_offset_reset="none",
            metadata_max_age_ms=2_000,  # how soon the topic of a new category is found
            fetch_max_wait_ms=100,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 3,
            # Whoever waits for a slow handler stays a member: the heartbeats show that it lives.
            max_poll_interval_ms=2**31 - 1,
            rebalance_timeout_ms=int((drain_s + _REJOIN_WITHIN_S) * 1000),
        )

    async def join(self) -> None:
        """Join the group; partitions come later.

        Raises:
            SettingsError, Unavailable: Kafka refuses it, or is away.
        """
        try:
            self._kafka.subscribe(pattern=self._topics, listener=self)
            await self._kafka.start()
        except kafka.KafkaError as error:
            raise _translated(error, "to join the consumer group") from error

    async def leave(self) -> None:
        """Give up all partitions, and leave the group."""
        await self._give_up()
        for task in filter(None, [self._fetching, self._told]):
            await asyncio.wait([task], timeout=0.5)
            while not task.done():
                task.cancel()  # again: the client may lose it, when it comes together with what it waits for
                await asyncio.wait([task], timeout=0.2)
            if not task.cancelled():
                task.exception()  # an older error ends this membership
        stopping = asyncio.create_task(self._kafka.stop())
        await asyncio.wait([stopping], timeout=10)
        stopping.cancel()  # without waiting for that: with its lines cut, the client may wait for ever, whatever it is told
        stopping.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def fetch(self, room: int) -> Fetched:
        """Return records that are there, at most `room`, or none after a moment.

        Raises what a task or a call-back of this member failed with, and Unavailable when a rebalance does not end.
        """
        if self._fetching is None and room > 0 and not self.paused:
            self._fetching = asyncio.create_task(self._fetch(room))
        # While the group is rebalanced, and for ever if Kafka is away then, the client does not answer.
        waited_for: list[asyncio.Future[Any]] = [each for each in (self._failed, self._fetching) if each is not None]
        await asyncio.wait(waited_for, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            await self._failed
        if self.leaving.is_set() and time.monotonic() - self._gave_up_at > self._drain_s + _REJOIN_WITHIN_S:
            raise Unavailable("the consumer group did not take us back")
        if self._fetching is None or not self._fetching.done():
            return Fetched([], {})
        fetched, self._fetching = self._fetching, None
        return fetched.result()

    async def _fetch(self, room: int) -> Fetched:
        try:
            fetched = await self._kafka.getmany(timeout_ms=100, max_records=room)
        except kafka.NoOffsetForPartitionError:  # asked before its place was set
            fetched = {}
        except kafka.OffsetOutOfRangeError as error:
            self._check_missing(error.args[0])
            fetched = {}
        except kafka.KafkaError as error:
            raise _translated(error, "to consume") from error
        return Fetched([record for records in fetched.values() for record in records], dict(self.owned))

    def _check_missing(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Offsets that Kafka does not have matter if they are ours; the client may have asked for others before we told it."""
        for topic_partition, offset in offsets.items():
            partition = Partition(*topic_partition)
            if partition in self.owned and self.owned[partition].reached.next_offset == offset:
                raise IntegrityError(
                    f"Kafka no longer has the record at offset {offset} of {partition.topic}[{partition.number}] that reaction "
                    f"{self._kept_as.name} needs: the topic's retention is shorter than the reaction was away, or the topic was "
                    "made anew. Nothing was skipped"
                )

    def pause(self, paused: bool) -> None:
        """Take nothing, and stay a member; or go on."""
        if paused != self.paused:
            logger.info("reaction pauses" if paused else "reaction goes on", extra={"reaction": self._kept_as.name})
        self.paused = paused

    def lag(self) -> int:
        """How many records are not done: those in memory, and those that Kafka holds behind them, as far as it has told."""
        return sum(len(progress) + self._behind.get(each, 0) for each, progress in self.owned.items())

    async def note_positions(self) -> None:
        """Look up how much Kafka holds behind what was fetched."""
        for partition in list(self.owned):
            topic_partition = TopicPartition(*partition)
            with suppress(kafka.KafkaError, TimeoutError):  # given up meanwhile, or not known yet
                async with asyncio.timeout(0.1):
                    position = await self._kafka.position(topic_partition)
                end = self._kafka.highwater(topic_partition)
                self._behind[partition] = max(0, (end or 0) - position)

    def start(self, progress: Progress, entry: Entry) -> None:
        """Let an event be handled behind those of its stream."""
        key = (progress.partition, entry.item.stream_id)
        queue = self._streams.get(key)
        if queue is not None:
            queue.append(entry)
            return
        queue = self._streams[key] = deque([entry])
        self._start(self._handle_stream(progress, key, queue))

    def start_settling(self, progress: Progress, asked: Asked) -> None:
        """Let a parked stream be settled, once at a time."""
        key = (progress.partition, asked.stream_id)
        if key not in self._settling:
            self._settling.add(key)
            self._start(self._settle_stream(progress, key, asked))

    async def _handle_stream(self, progress: Progress, key: tuple[Partition, str], queue: deque[Entry]) -> None:
        while queue:
            if self.leaving.is_set():
                raise GivenUp
            await self._handle(self, progress, queue[0])
            queue.popleft()
        del self._streams[key]

    async def _settle_stream(self, progress: Progress, key: tuple[Partition, str], asked: Asked) -> None:
        try:
            await self._settle(self, progress, asked)
        finally:
            self._settling.discard(key)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, GivenUp):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # it is raised by whoever looks next, or an older error ends this membership

    async def write(self) -> None:
        """Keep what is set aside, and the places behind what is done, in one transaction; tell Kafka the places.

        Raises:
            Fenced: somebody else owns one of the partitions now.
        """
        async with self._writing:
            before: dict[Partition, Place] = {}
            after: dict[Partition, Place] = {}
            asides: list[Parked] = []
            for progress in self.owned.values():
                place = progress.place()
                if place != progress.written or progress.asides:
                    before[progress.partition], after[progress.partition] = progress.written, place
                    asides += progress.asides
            await self._write(before, after, asides)
            # Not before: a place must not be kept later without what is set aside before it.
            kept = set(map(id, asides))
            for progress in self.owned.values():
                progress.asides = [each for each in progress.asides if id(each) not in kept]

    async def settled(self, progress: Progress, rows: Sequence[Parked]) -> None:
        """Keep events no longer."""
        if rows:
            async with self._writing:
                place = {progress.partition: progress.written}
                await self._write(place, place, [], [(row.partition, row.position) for row in rows])

    async def _write(
        self,
        before: Mapping[Partition, Place],
        after: Mapping[Partition, Place],
        asides: Sequence[Parked],
        settled: Sequence[tuple[Partition, int]] = (),
    ) -> None:
        if not after:
            return
        await self._sink.write(self._kept_as, work_of(before, after, asides, settled))
        for partition, place in after.items():
            if partition in self.owned:
                self.owned[partition].written = place
        if self._told is None or self._told.done():
            offsets = {TopicPartition(*partition): place.next_offset for partition, place in after.items()}
            self._told = asyncio.create_task(self._tell(offsets))

    async def _tell(self, offsets: dict[TopicPartition, int]) -> None:
        """Tell Kafka how far we are: for its tools only, so a failure harms nobody."""
        with suppress(kafka.KafkaError, TimeoutError):
            async with asyncio.timeout(5):
                await self._kafka.commit(offsets)

    # Called by the client while it joins. What is raised here would only be logged.

    async def on_partitions_revoked(self, _: Any) -> None:
        await self._give_up()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        try:
            ids = await asyncio.to_thread(self._ids_of_topics, {each.topic for each in assigned})
            mine = {Partition(each.topic, each.partition): ids[each.topic] for each in assigned}
            self.leaving.clear()
            if not mine:
                return
            claimed = await self._sink.claim(self._kept_as, mine)
            for partition, place in claimed.places.items():
                self.owned[partition] = Progress(partition, place, dict.fromkeys(claimed.parked[partition]))
                self._kafka.seek(TopicPartition(*partition), place.next_offset)
            logger.info("partitions assigned", extra={"reaction": self._kept_as.name, "partitions": sorted(mine)})
        except Exception as error:
            self._fail(error)

    async def _give_up(self) -> None:
        """Let what is under way end, or cancel it; keep how far it is; own nothing any more."""
        self.leaving.set()
        self._gave_up_at = time.monotonic()
        tasks = list(self._tasks)
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self._drain_s)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            await self.write()
        except EventspineError as error:  # it will be done again
            logger.info("places could not be kept: %s", error, extra={"reaction": self._kept_as.name})
        finally:
            self._streams.clear()
            self.owned.clear()

    def _ids_of_topics(self, topics: set[str]) -> dict[str, str]:
        missing = sorted(topics - self._topic_ids.keys())
        if missing:
            with translated_kafka("to look at topics"):
                admin = AdminClient(client_settings(self._bootstrap))
                asked = admin.describe_topics(TopicCollection(missing), request_timeout=30)
                self._topic_ids |= {topic: str(answer_of(admin, asked[topic]).topic_id) for topic in missing}
        return {topic: self._topic_ids[topic] for topic in topics}


def work_of(
    before: Mapping[Partition, Place],
    after: Mapping[Partition, Place],
    asides: Sequence[Parked] = (),
    settled: Sequence[tuple[Partition, int]] = (),
) -> Work:
    """Return places and parked events as a sink writes them: those of a projection without rows."""
    return Work(before, after, _NOTHING, lambda _: _NOTHING, lambda _: asides, settled)


def _translated(error: kafka.KafkaError, doing: str) -> EventspineError:
    if isinstance(error, _REFUSED_ACCESS):
        return SettingsError(f"Kafka refused {doing}: {error}; check the rights and the settings")
    return Unavailable(f"Kafka failed {doing}: {type(error).__name__}: {error}")
