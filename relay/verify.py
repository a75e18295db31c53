"""Compare the topics with the log: every event that the relay has published, by position, event id and content."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from ..schemas import SettingsError, StoredEvent
from ..schemas.kafka import KafkaAccess
from ..schemas.partition import partition_of
from ..store.postgres.log import PostgresLog
from .compare import LookUp, Walk
from .compared import FAULTS, Expected, Finding, Positions
from .reached import Reached, read_reached
from .router import Router
from .state import RelayState
from .topic_reader import PartitionId, TopicReader, found_of
from .topics import Topics

__all__ = ["Progress", "Report", "verify_topics"]

_WINDOW_EVENTS: Final = 5_000
_WINDOW_BYTES: Final = 8_000_000
_FETCH_RECORDS: Final = 4_000
_HELD_RECORDS: Final = 40_000  # of all partitions together, that were read and not yet compared
_HELD_BYTES: Final = 32_000_000
_LOOK_UP_AT_ONCE: Final = 500

Result = TypeVar("Result")


class Progress(NamedTuple):
    """How far the comparison is in the log, how far it goes, and how many records it has read."""

    position: int
    end: int
    records: int


@dataclass
class Report:
    """What a comparison saw. `findings` are at most as many as were to be named; `counts` counts all, by kind.

    `missing` has the positions of all events that are missing, `topics` what was compared, `end` the last position looked at.
    """

    end: int
    topics: Sequence[str]
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    missing: Positions = field(default_factory=Positions)
    events: int = 0
    records: int = 0
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        return sum(self.counts[kind] for kind in FAULTS)


async def verify_topics(
    log: PostgresLog,
    kafka: str | KafkaAccess,
    *,
    router: Router,
    state: RelayState,
    topics: Topics,
    prefix: str,
    name: str,
    delivery: str = "exactly-once",
    only: Collection[str] = (),
    copies: Mapping[str, str] | None = None,
    max_named: int = 10_000,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Compare the topics that a relay writes to with the log, up to where its cursors are at the start, in one pass.

    The relay may run meanwhile. `only` limits the topics; `copies` says under which other names topics are read. What is held in
    memory does not depend on how much is compared, but for a bit for each event that is missing, and `max_named` findings.

    Raises:
        SettingsError: the relay has never run, or a topic of `only` is not the relay's.
        IntegrityError: log, cursors and topics contradict each other as a whole: a topic is gone, or the log is another one.
        Unavailable: Kafka or Postgres is away.
    """
    await topics.check()
    pinned = await state.pinned_topics()
    unknown = sorted(set(only) - pinned.keys())
    if unknown:
        has = ", ".join(sorted(pinned)) or "none"
        raise SettingsError(f"relay {state.relay_id} has published nothing to {', '.join(unknown)}; its topics are {has}")
    # In this order: what the cursors say is published was in the topics or parked by then, and what was parked then and is
    # not any more is in the topics by the time their ends are read.
    reached = await read_reached(log, kafka, state, prefix=prefix, name=name)
    parked = {row["global_position"] for row in await state.parked()}
    verification = _Verification(
        log, router, reached, parked, {topic: each.partitions for topic, each in pinned.items()},
        only=set(only), copies=copies or {}, repeats=delivery == "at-least-once", max_named=max_named, on_progress=on_progress,
    )  # fmt: skip
    started = time.monotonic()
    async with _reading(kafka, group=f"{prefix}{name}-verify") as reader:
        await verification.run(reader)
    verification.report.seconds = time.monotonic() - started
    return verification.report


class _Reading:
    """A reader in a thread of its own."""

    def __init__(self, reader: TopicReader, thread: ThreadPoolExecutor) -> None:
        self.reader = reader
        self._thread = thread

    async def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


@asynccontextmanager
async def _reading(kafka: str | KafkaAccess, *, group: str) -> AsyncIterator[_Reading]:
    thread = ThreadPoolExecutor(1, thread_name_prefix="eventspine-verify")
    reading = _Reading(TopicReader(kafka, group=group), thread)
    try:
        yield reading
    finally:
        await reading.call(reading.reader.close)
        thread.shutdown(wait=False)


class _Verification:
    def __init__(
        self,
        log: PostgresLog,
        router: Router,
        reached: Reached,
        parked: set[int],
        partitions: Mapping[str, int],
        *,
        only: set[str],
        copies: Mapping[str, str],
        repeats: bool,
        max_named: int,
        on_progress: Callable[[Progress], None],
    ) -> None:
        chosen = sorted(only or partitions)
        self.report = Report(max((reached.of(n) for topic in chosen for n in range(partitions[topic])), default=0), chosen)
        self._log = log
        self._router = router
        self._reached = reached
        self._parked = parked
        self._partitions = partitions
        self._chosen = set(chosen)
        self._all = not only
        self._copies = copies
        self._repeats = repeats
        self._max_named = max_named
        self._on_progress = on_progress
        self._walks: dict[PartitionId, Walk] = {}  # by the names that the topics are read under
        self._homes: dict[PartitionId, Walk] = {}  # by the names that the router says

    async def run(self, reading: _Reading) -> None:
        homes = [(topic, number) for topic in self.report.topics for number in range(self._partitions[topic])]
        read_as = {home: (self._copies.get(home[0], home[0]), home[1]) for home in homes}
        await reading.call(reading.reader.start, list(read_as.values()))
        for home, each in read_as.items():
            self._homes[home] = self._walks[each] = Walk(
                *home,
                limit=self._reached.of(home[1]),
                name=self._name,
                expired=reading.reader.extents[each].low > 0,
                repeats=self._repeats,
                parked=self._parked,
            )
        position, end = 0, self.report.end
        next_window = asyncio.create_task(self._window(position))
        try:
            while True:
                events = await next_window
                position = events[-1].global_position if events else end
                finished = position >= end
                if not finished:
                    next_window = asyncio.create_task(self._window(position))
                await self._expect([event for event in events if event.global_position <= end])
                for walk in self._walks.values():
                    walk.finished = finished
                await self._compare(reading)
                self._on_progress(Progress(min(position, end), end, self.report.records))
                if finished:
                    break
        finally:
            next_window.cancel()
        await self._name_missing()
        for walk in self._walks.values():
            self.report.counts += walk.counts

    async def _window(self, position: int) -> list[StoredEvent]:
        return await self._log.read_stored(position, _WINDOW_EVENTS, _WINDOW_BYTES)

    async def _expect(self, events: Sequence[StoredEvent]) -> None:
        """Give each walk its events. An event that can't be routed, or goes to a topic that was never made, has no walk."""
        await self._router.prepare(events)
        for event in events:
            position = event.global_position
            try:
                home, expected = self._record_of(event)
            except Exception as error:  # a user's function may raise anything
                self._nowhere(event, "", f"can't be routed: {type(error).__name__}: {error}")
                continue
            if home is None or expected is None:
                continue
            walk = self._homes.get(home)
            if walk is not None:
                if position <= walk.limit:
                    walk.expected.append(expected)
                    self.report.events += 1
            elif home[0] not in self._partitions:
                self._nowhere(event, home[0], "goes to a topic that the relay has never made")

    def _record_of(self, event: StoredEvent) -> tuple[PartitionId | None, Expected | None]:
        """Return where an event goes and what is published of it; None twice if nothing is."""
        routed = self._router.route(event)
        if routed is None:
            return None, None
        topic, key, value, headers = routed
        number = partition_of(key, self._partitions[topic]) if topic in self._partitions else -1
        return (topic, number), Expected(event.global_position, event.event_id, key, value, headers)

    def _nowhere(self, event: StoredEvent, topic: str, why: str) -> None:
        position = event.global_position
        if not self._all or position > self._reached.least:
            return
        self.report.events += 1
        if position in self._parked:
            self.report.counts["parked"] += 1
            return
        self.report.counts["missing"] += 1
        self.report.missing.add(position)
        self._name(Finding("missing", topic, -1, None, position, event.event_id, why))

    async def _compare(self, reading: _Reading) -> None:
        """Bring all walks as far as the log was read."""
        busy = dict(self._walks)
        while busy:
            wishes: list[tuple[Walk, list[int]]] = []
            for each, walk in list(busy.items()):
                walk.full = walk.full and self._is_full(walk)
                need = walk.step()
                if isinstance(need, LookUp):
                    wishes.append((walk, need.positions))
                elif need == "records" and each in reading.reader.ended and not walk.ended:
                    walk.ended = True
                elif need != "records":
                    del busy[each]
            if wishes:
                await self._look_up(wishes)
            elif any(each not in reading.reader.ended for each in busy):
                await self._fetch(reading, set(busy))

    async def _fetch(self, reading: _Reading, hungry: set[PartitionId]) -> None:
        """Read records. A partition that runs ahead of the others is paused, but never one that is waited for."""
        most = max(_HELD_RECORDS // len(self._walks), 600)
        full = {each for each, walk in self._walks.items() if each not in hungry and (walk.full or len(walk.records) >= most)}
        fetched = await reading.call(reading.reader.fetch, _FETCH_RECORDS, full)
        self.report.records += len(fetched)
        for each, message in fetched:
            self._walks[each].records.append(found_of(message))
        for each in {each for each, _ in fetched}:
            self._walks[each].full = self._is_full(self._walks[each])

    def _is_full(self, walk: Walk) -> bool:
        most_bytes = max(_HELD_BYTES // len(self._walks), 2_000_000)
        return sum(len(record.value) + 1_000 for record in walk.records) >= most_bytes

    async def _look_up(self, wishes: Sequence[tuple[Walk, list[int]]]) -> None:
        """Tell walks about events at positions that are not their next ones."""
        positions = sorted({position for _, wanted in wishes for position in wanted})
        told: dict[int, tuple[PartitionId | None, Expected | None]] = {}
        for start in range(0, len(positions), _LOOK_UP_AT_ONCE):
            events = await self._log.read_stored_at(positions[start : start + _LOOK_UP_AT_ONCE])
            await self._router.prepare(events)
            for event in events:
                with suppress(Exception):  # what can't be routed can't have a record
                    told[event.global_position] = self._record_of(event)
        for walk, wanted in wishes:
            home = (walk.topic, walk.partition)
            found = {position: told.get(position, (None, None)) for position in wanted}
            walk.tell({position: expected if at == home else None for position, (at, expected) in found.items()})

    def _name(self, finding: Finding) -> None:
        if len(self.report.findings) < self._max_named:
            self.report.findings.append(finding)

    async def _name_missing(self) -> None:
        homes: dict[int, Walk] = {}
        for walk in self._walks.values():
            for position in walk.missing():
                self.report.missing.add(position)
                if len(homes) < self._max_named - len(self.report.findings):
                    homes[position] = walk
        positions = sorted(homes)
        for start in range(0, len(positions), _LOOK_UP_AT_ONCE):
            for event in await self._log.read_stored_at(positions[start : start + _LOOK_UP_AT_ONCE]):
                walk = homes[event.global_position]
                what = f"{event.event_type}, version {event.version} of stream {event.stream_id}, has no record"
                self._name(Finding("missing", walk.topic, walk.partition, None, event.global_position, event.event_id, what))
