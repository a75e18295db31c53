"""Reading one's own writes: wait until a read model has come to what was recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from ..schemas import Event, EventSetAside, InvalidEvent, StaleReadModel, category_of
from ..schemas.kafka import topic_of
from ..schemas.partition import partition_of
from ..store.postgres.published import Published, Withheld
from .admin import ProjectionAdmin, ProjectionPlace
from .log_consumer import LOG
from .places import Partition
from .projection import Projection

__all__ = ["ReadModel", "Wanted"]

_PAUSE_S: Final = 0.005  # between two looks at least, however many wait
_MOST_S: Final = 0.05
_LOOK_AT_RELAY_S: Final = 0.25

Places = Mapping[Partition, ProjectionPlace]
Topics = Mapping[str, int]


class Wanted(NamedTuple):
    """An event that is waited for: all of its stream's partition up to it, and if it is `own`, not to be set aside."""

    stream_id: str
    position: int
    own: bool = True


class _Waiter:
    """Somebody who waits: for what, for what of that still, and how far its partition was when last seen.

    `come` is False where what is wanted has to be found anew: what was to prove that all up to a position was taken is parked.
    """

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self.wanted = wanted
        self.late = wanted[0]
        self.reached = 0
        self.come: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class ReadModel:
    """How far the rows of a projection are, wherever it runs. One for each projection and process.

    It asks the read model's database only while somebody waits, and once for all who do.

    Where events are on Kafka is computed as the relay does: topic by category, partition by stream. A relay with a `routing` that
    says otherwise can't be waited for.
    """

    def __init__(self, projection: Projection | type[Projection], admin: ProjectionAdmin, published: Published) -> None:
        self.name = projection.name
        self._categories = frozenset(projection.categories)
        self._admin = admin
        self._published = published
        self._waiters: set[_Waiter] = set()
        self._polling: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._topics: Topics = {}
        self._looked_at = float("-inf")

    async def wait_for(self, what: int | Event | Iterable[Event] | Mapping[str, int], *, timeout_s: float = 5.0) -> None:
        """Return when the rows hold what was recorded.

        Given events, as `append` returned them, or positions by stream: when the projection has taken these; that is the cheap
        way. Given a position: when it has taken all events up to it that concern it. To know which partitions have one, the names
        of the streams are read that the log has between the least partition's place and the position.

        What does not concern the projection, by its `categories`, is not waited for. What `poison = "skip"` left out counts as
        taken. Up to a position, only the event there must not be set aside; what is of the others is not waited for.

        Raises:
            StaleReadModel: it did not come so far in time.
            EventSetAside: the event is parked, here or by the relay, or waits behind one that is. Raised at once.
            InvalidEvent: an event was not recorded.
            Unavailable: the read model's database is away, or the store's.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            wanted = await self._up_to(what) if isinstance(what, int) else self._named(what)
            if not wanted or await self._wait(wanted, deadline, timeout_s):
                return

    async def _wait(self, wanted: Sequence[Wanted], deadline: float, timeout_s: float) -> bool:
        waiter = _Waiter(wanted)
        self._waiters.add(waiter)
        self._woken.set()
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        try:
            await asyncio.wait([waiter.come], timeout=max(0.0, deadline - time.monotonic()))
        finally:
            self._waiters.discard(waiter)
        if waiter.come.done():
            return waiter.come.result()
        raise StaleReadModel(
            self.name,
            position=waiter.late.position,
            reached=waiter.reached,
            stream_id=waiter.late.stream_id if waiter.late.own else "",
            waited_s=timeout_s,
        )

    async def places(self) -> list[ProjectionPlace]:
        """Return how far the projection is, by partition."""
        return await self._admin.places(self.name)

    async def close(self) -> None:
        """End what asks the database. Who waits is let go with CancelledError."""
        for waiter in self._waiters:
            waiter.come.cancel()
        if self._polling is not None:
            self._polling.cancel()
            with suppress(asyncio.CancelledError):
                await self._polling

    def _named(self, what: Event | Iterable[Event] | Mapping[str, int]) -> list[Wanted]:
        """Return the last event of each stream that concerns the projection."""
        streams: dict[str, int] = {}
        if isinstance(what, Mapping):
            streams |= what
        else:
            for event in [what] if isinstance(what, Event) else what:
                if not event.global_position:
                    raise InvalidEvent("it was not recorded: wait for what append returned", event_type=event.event_type)
                streams[event.stream_id] = max(event.global_position, streams.get(event.stream_id, 0))
        return [Wanted(*each) for each in streams.items() if not self._categories or category_of(each[0]) in self._categories]

    async def _up_to(self, position: int) -> list[Wanted]:
        """Return what proves that all up to a position was taken: the last event of each partition that concerns us."""
        places = await self._look()
        log = places.get(LOG)
        if log is not None and log.last_position >= position:
            return []
        if _runs_from_log(places):
            behind = dict.fromkeys(self._categories or await self._published.categories(), position - 1)
            streams = await self._published.streams_between(behind, position)
            return [Wanted("", position, own=False), *(Wanted(*each) for each in streams.items())]
        if position > await self._published.last_position():  # nobody can know yet what is up to there
            return [Wanted("", position, own=False)]
        self._topics = await self._published.topics()
        categories = self._categories or await self._published.categories()
        behind = {each: self._least(each, places) for each in categories}
        streams = await self._published.streams_between(behind, position)
        last: dict[object, Wanted] = {}
        for stream_id, at in streams.items():
            partition = _partition(stream_id, self._topics, self._published.topic_prefix) or stream_id
            before = last.get(partition)
            if before is None or before.position < at:
                last[partition] = Wanted(stream_id, at, own=at == position)
        return list(last.values())

    def _least(self, category: str, places: Places) -> int:
        """Return up to which position all partitions of a category were taken."""
        topic = topic_of(category, self._published.topic_prefix)
        floor = places[LOG].last_position if LOG in places else 0
        found = [_taken_to(places.get(Partition(topic, number))) for number in range(self._topics.get(topic, 0))]
        return max(floor, min(found, default=0))

    async def _look(self) -> dict[Partition, ProjectionPlace]:
        return {place.partition: place for place in await self._admin.places(self.name)}

    async def _poll(self) -> None:
        """Look, for all who wait, until nobody does. Whoever comes is looked for in a look that begins after that."""
        wait_s = _PAUSE_S
        before: Places = {}
        while self._waiters:  # those who give up leave by themselves
            self._woken.clear()
            waiters = list(self._waiters)
            try:
                places = await self._look()
                await self._settle(waiters, places)
            except Exception as error:
                for waiter in waiters:
                    if not waiter.come.done():
                        waiter.come.set_exception(error)
                self._waiters.difference_update(waiters)
            else:
                wait_s = min(2 * wait_s, _MOST_S) if _same(places, before) else _PAUSE_S
                before = places
            if not self._waiters:
                return
            await asyncio.sleep(_PAUSE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()

    async def _settle(self, waiters: Sequence[_Waiter], places: Places) -> None:
        """Let go whoever waits no longer, for good or in vain."""
        due = time.monotonic() - self._looked_at > _LOOK_AT_RELAY_S
        if due:
            self._topics = await self._published.topics()
            self._looked_at = time.monotonic()
        ready = {waiter for waiter in waiters if self._missing(waiter, places, {}) is None}
        withheld: Mapping[int, Withheld] = {}
        if not _runs_from_log(places) and (ready or due):
            # Behind the look at the places: what the relay has parked it noted before it published anything behind it.
            asked = waiters if due else ready
            withheld = await self._published.withheld({each.position for waiter in asked for each in waiter.wanted})
        aside = await self._set_aside(waiters) if any(place.parked for place in places.values()) else {}
        for waiter in waiters:
            if waiter.come.done():
                continue
            missing = self._missing(waiter, places, withheld)
            refusal = self._refusal(waiter, places, withheld, aside)
            if refusal is not None:
                waiter.come.set_exception(refusal)
            elif missing is None:
                waiter.come.set_result(True)
            elif not missing.own and missing.position in withheld:
                waiter.come.set_result(False)
            else:
                waiter.late = missing
                waiter.reached = reached_by(missing.stream_id, places, self._topics, self._published.topic_prefix)
        self._waiters.difference_update([waiter for waiter in waiters if waiter.come.done()])

    def _missing(self, waiter: _Waiter, places: Places, withheld: Mapping[int, Withheld]) -> Wanted | None:
        """Return the first event that is waited for and was not taken yet."""
        for each in waiter.wanted:
            held = withheld.get(each.position)
            if held is not None:
                if self._misses(each, held, places):
                    return each
            elif reached_by(each.stream_id, places, self._topics, self._published.topic_prefix) < each.position:
                return each
        return None

    def _misses(self, wanted: Wanted, held: Withheld, places: Places) -> bool:
        """Whether an event that was not published in order is missing; it may have been read from the log."""
        partition = _partition(wanted.stream_id, self._topics, self._published.topic_prefix)
        place = None if partition is None else places.get(partition)
        floor = places[LOG].last_position if LOG in places else 0
        if wanted.position <= max(floor, place.built_to if place else 0):
            return False
        return held.late is None or place is None or place.last_late < held.late

    def _refusal(
        self, waiter: _Waiter, places: Places, withheld: Mapping[int, Withheld], aside: Mapping[int, str]
    ) -> EventSetAside | None:
        """Return why it is in vain to wait, if it is."""
        for each in waiter.wanted:
            if not each.own:
                continue
            held = withheld.get(each.position)
            if held is not None and held.late is None and self._misses(each, held, places):
                by, reason = "relay", held.reason
            elif each.position in aside:
                by, reason = "projection", aside[each.position]
            else:
                continue
            return EventSetAside(self.name, position=each.position, stream_id=each.stream_id, by=by, reason=reason)
        return None

    async def _set_aside(self, waiters: Iterable[_Waiter]) -> dict[int, str]:
        """Return what the projection has set aside of the streams that somebody waits for, and why."""
        streams = {each.stream_id for waiter in waiters for each in waiter.wanted if each.own}
        rows = [row for stream_id in streams for row in await self._admin.parked(self.name, stream_id)]
        return {row.position: row.reason for row in rows if row.state != "skipped"}


def reached_by(stream_id: str, places: Places, topics: Topics, prefix: str) -> int:
    """Return up to which position the events of a stream were taken.

    In a partition the positions of records in order only rise, so all up to its last one were taken, but for those that the relay
    has parked.
    """
    floor = places[LOG].last_position if LOG in places else 0
    partition = _partition(stream_id, topics, prefix)
    return floor if partition is None else max(floor, _taken_to(places.get(partition)))


def _partition(stream_id: str, topics: Topics, prefix: str) -> Partition | None:
    """Return where a stream is on Kafka; None if its topic is not known yet."""
    topic = topic_of(category_of(stream_id), prefix)
    count = topics.get(topic)
    return Partition(topic, partition_of(stream_id.encode(), count)) if count else None


def _taken_to(place: ProjectionPlace | None) -> int:
    return 0 if place is None else max(place.last_position, place.built_to)


def _runs_from_log(places: Places) -> bool:
    """Whether the projection is read from the log, and not (or not yet) from Kafka."""
    return LOG in places and not any(place.next_offset for place in places.values() if place.partition.topic)


def _same(now: Places, before: Places) -> bool:
    return now.keys() == before.keys() and all(now[each].next_offset == before[each].next_offset for each in now)
