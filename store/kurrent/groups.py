"""A persistent subscription at work: what it has read, whom it gave what, and what came of it. See `Group`."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from uuid import UUID

from grpc import StatusCode

from ...schemas import Unavailable
from ...schemas.postgres import load_sql, translated
from ..postgres import PostgresEventStore
from .events import lifted_ids
from .faults import Fault
from .group_settings import ALL, GroupSettings
from .reading import Item, Page, Reader
from .tail import Tail

__all__ = ["Group", "Message", "Subscriber"]

logger = logging.getLogger(__name__)

_SQL = "eventspine.store.kurrent"
_SAVE_PLACE = load_sql(_SQL, "sql/save_group_place")
_PARK = load_sql(_SQL, "sql/park_event")
_UNPARK = load_sql(_SQL, "sql/unpark_events")
_TICK_S = 1.0
_MAX_BUFFER = 1000


class Message:
    """An event on its way to a consumer. `place`: its version in the stream, or position in the log."""

    __slots__ = ("due", "item", "place", "replayed", "retries")

    def __init__(self, item: Item, place: int, *, replayed: bool = False) -> None:
        self.item = item
        self.place = place
        self.replayed = replayed
        self.retries = 0
        self.due = float("inf")

    @property
    def id(self) -> UUID:
        return self.item.place.event_id


class Subscriber:
    """One consumer that is connected. `messages` are sent to it in order; None ends it, with `fault`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self.in_flight: dict[UUID, Message] = {}
        self.fault: Fault | None = None
        self.given = 0

    @property
    def free(self) -> int:
        return self.size - len(self.in_flight)

    def end(self, fault: Fault) -> None:
        self.fault = fault
        self.messages.put_nowait(None)


class Group:
    """The state of a persistent subscription in the process that serves it.

    Each event is given to one consumer, and again until it is acknowledged, skipped or parked. What is saved is the place up to
    which all is dealt with; after a crash, events behind it are given out again. It works while there are consumers, and keeps
    all in memory meanwhile.
    """

    def __init__(
        self, store: PostgresEventStore, reader: Reader, tail: Tail, source: str, name: str, settings: GroupSettings, place: int
    ) -> None:
        self._store, self._reader, self._tail = store, reader, tail
        self.source, self.name, self.settings = source, name, settings
        self.subscribers: list[Subscriber] = []
        self.saved = self._read_to = place
        self._pending: dict[int, Message] = {}  # by place, rising: what is read and not dealt with
        self._waiting: deque[Message] = deque()
        self._retrying: deque[Message] = deque()
        self._to_park: list[tuple[Message, str]] = []
        self._to_unpark: list[int] = []
        self._replaying: set[int] = set()
        self._acknowledged = 0
        self._saved_at = time.monotonic()
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._working: asyncio.Task[None] | None = None
        self._next = 0
        self.dealt_with = 0

    def join(self, size: int) -> Subscriber:
        """Add a consumer that takes so many events at a time."""
        subscriber = Subscriber(size)
        self.subscribers.append(subscriber)
        self._wake.set()
        if self._working is None or self._working.done():
            self._begin()
        return subscriber

    def _begin(self) -> None:
        self._working = asyncio.create_task(self._work(), name=f"eventspine-kurrent-{self.name}")

    def leave(self, subscriber: Subscriber) -> None:
        """Remove a consumer; what it had goes to the others."""
        if subscriber in self.subscribers:
            self.subscribers.remove(subscriber)
        for message in subscriber.in_flight.values():
            message.due = float("inf")
            self._retrying.append(message)
        subscriber.in_flight.clear()
        self._wake.set()

    async def at_rest(self) -> None:
        """Wait until the place is written down, if the last consumer has left."""
        if not self.subscribers and self._working is not None:
            await asyncio.wait([self._working])

    def acknowledge(self, subscriber: Subscriber, ids: Iterable[UUID]) -> None:
        """Take note of what a consumer has dealt with. Ids that it does not have are ignored: another one has them by now."""
        for each in ids:
            message = subscriber.in_flight.pop(each, None)
            if message is not None:
                self._deal_with(message)
        self._wake.set()

    def refuse(self, subscriber: Subscriber, ids: Iterable[UUID], action: int, reason: str) -> None:
        """Do with events what a consumer asks for: 2 try again, 3 skip; else they are parked, so that nothing is lost."""
        for each in ids:
            message = subscriber.in_flight.pop(each, None)
            if message is None:
                continue
            if action == 2:
                self._retry(message, reason)
            elif action == 3:
                self._deal_with(message)
            else:
                self._to_park.append((message, reason))
        self._wake.set()

    def replay(self, messages: Iterable[Message]) -> None:
        """Give parked events out again, before all others."""
        for message in messages:
            if message.place not in self._replaying:
                self._replaying.add(message.place)
                self._retrying.append(message)
        self._wake.set()

    def drop(self, fault: Fault) -> None:
        """End all consumers."""
        for subscriber in self.subscribers:
            subscriber.end(fault)
        self.subscribers.clear()

    async def write_down(self) -> None:
        """Record what was parked, and how far everything is dealt with, up to this moment.

        Raises:
            Unavailable: Postgres is away.
        """
        await self._write_down(always=True)

    @property
    def in_flight(self) -> int:
        return sum(len(each.in_flight) for each in self.subscribers)

    @property
    def buffered(self) -> int:
        return len(self._waiting)

    @property
    def retrying(self) -> int:
        return len(self._retrying)

    @property
    def known(self) -> int:
        """The last place that was looked at."""
        return self._read_to

    async def _work(self) -> None:
        try:
            while self.subscribers:
                self._wake.clear()
                self._expire(time.monotonic())
                await self._write_down()
                self._give_out()
                seen = self._tail.position
                if not await self._read_more():
                    await self._wait(seen)
        except Fault as fault:  # the stream was tombstoned
            self.drop(fault)
        except Unavailable as error:
            self.drop(Fault(StatusCode.UNAVAILABLE, f"{error}; connect again"))
        except Exception:
            logger.exception("a persistent subscription failed", extra={"source": self.source, "group": self.name})
            self.drop(Fault(StatusCode.UNAVAILABLE, "the persistent subscription failed; the server's log says why"))
        finally:
            with suppress(Unavailable):
                await self._write_down(always=True)
            if self.subscribers:  # one that joined while the last place was written: it found this task at work
                self._begin()

    async def _wait(self, seen: int) -> None:
        waiting = [asyncio.ensure_future(self._wake.wait()), asyncio.ensure_future(self._tail.beyond(seen))]
        try:
            await asyncio.wait(waiting, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _read_more(self) -> bool:
        """Read a page if there is room; tell whether there may be more to do at once."""
        room = min(self.settings.history_buffer_size, _MAX_BUFFER) - len(self._waiting)
        if room < self.settings.read_batch_size or not any(each.free > 0 for each in self.subscribers):
            return False
        page = await self._page(min(self.settings.read_batch_size, room))
        if page is None:
            return False
        for item in page.items:
            place = item.place.position if self.source == ALL else item.place.version
            if item.event is not None:  # a link to what is no more needs nobody
                self._pending[place] = message = Message(item, place)
                self._waiting.append(message)
        self._read_to = page.end
        return True

    async def _page(self, limit: int) -> Page | None:
        resolve = self.settings.resolve_links
        if self.source == ALL:
            end = self._tail.position
            if self._read_to >= end:
                return None
            return await self._reader.all_page(self._read_to, end, limit=limit, resolve=resolve, wanted=self.settings.filter)
        last = await self._reader.last_version(self.source)
        first = max(self._read_to + 1, self._reader.first_readable(self.source, last))
        if first > last:
            self._read_to = max(self._read_to, last)
            return None
        return await self._reader.stream_page(self.source, first, last, limit=limit, resolve=resolve)

    def _give_out(self) -> None:
        for queue in (self._retrying, self._waiting):
            left: deque[Message] = deque()
            while queue and any(each.free > 0 for each in self.subscribers):
                message = queue.popleft()
                subscriber = self._consumer_for(message)
                if subscriber is None:
                    left.append(message)
                    continue
                if self.settings.message_timeout_ms:
                    message.due = time.monotonic() + self.settings.message_timeout_ms / 1000
                subscriber.in_flight[message.id] = message
                subscriber.given += 1
                subscriber.messages.put_nowait(message)
            queue.extendleft(reversed(left))

    def _consumer_for(self, message: Message) -> Subscriber | None:
        free = [each for each in self.subscribers if each.free > 0 and message.id not in each.in_flight]
        match self.settings.strategy:
            case "RoundRobin":
                turns = self.subscribers[self._next :] + self.subscribers[: self._next]
                chosen = next((each for each in turns if each in free), None)
                if chosen is not None:
                    self._next = (self.subscribers.index(chosen) + 1) % len(self.subscribers)
                return chosen
            case "Pinned" | "PinnedByCorrelation":
                wanted = self.subscribers[zlib.crc32(self._pin(message).encode()) % len(self.subscribers)]
                return wanted if wanted in free else None
        return free[0] if free else None

    def _pin(self, message: Message) -> str:
        event = message.item.event or message.item.place
        correlated = self.settings.strategy == "PinnedByCorrelation"
        return (lifted_ids(event.metadata).get("correlation_id") if correlated else None) or event.name

    def _expire(self, now: float) -> None:
        for subscriber in self.subscribers:
            for message in [each for each in subscriber.in_flight.values() if each.due <= now]:
                del subscriber.in_flight[message.id]
                self._retry(message, "the consumer did not answer in time")

    def _retry(self, message: Message, reason: str) -> None:
        message.retries += 1
        message.due = float("inf")
        if message.retries > self.settings.max_retry_count:
            self._to_park.append((message, reason or "refused too often"))
        else:
            self._retrying.append(message)

    def _deal_with(self, message: Message) -> None:
        self.dealt_with += 1
        self._acknowledged += 1
        if message.replayed:
            self._to_unpark.append(message.place)
        else:
            self._pending.pop(message.place, None)

    async def _write_down(self, *, always: bool = False) -> None:
        """Record what was parked, then how far everything is dealt with: after a crash in between, the parked comes again."""
        async with self._writing:
            await self._write_down_alone(always=always)

    async def _write_down_alone(self, *, always: bool) -> None:
        park, self._to_park = self._to_park, []
        if park:
            try:
                places, reasons = [each.place for each, _ in park], [reason[:1000].replace("\0", "") for _, reason in park]
                await self._execute(_PARK, places, reasons)
            except BaseException:
                self._to_park = park + self._to_park
                raise
            for message, _ in park:
                self._replaying.discard(message.place)
                self._pending.pop(message.place, None)
        unpark, self._to_unpark = self._to_unpark, []
        if unpark:
            await self._execute(_UNPARK, unpark)
            self._replaying.difference_update(unpark)
        place = next(iter(self._pending)) - 1 if self._pending else self._read_to
        elapsed_ms = (time.monotonic() - self._saved_at) * 1000
        many = 0 < self.settings.max_checkpoint_count <= self._acknowledged
        soon = elapsed_ms >= max(self.settings.checkpoint_after_ms, 100)
        if place > self.saved and (always or many or soon):
            await self._execute(_SAVE_PLACE, place)
            self.saved, self._acknowledged, self._saved_at = place, 0, time.monotonic()

    async def _execute(self, statement: str, *parameters: Sequence[object] | int) -> None:
        async with translated():
            await self._store.pool.execute(statement, self.source, self.name, *parameters)
