"""Runs a reaction: Kafka records to handlers, stream by stream, and what they do into the store."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from ...schemas import (
    ConcurrencyError,
    DecodeError,
    Event,
    EventIdTaken,
    EventspineError,
    EventType,
    Fenced,
    PinnedType,
    ProjectionError,
    ReactionError,
    Unavailable,
    Undelivered,
)
from ...schemas.envelope import RecordReader
from ...schemas.kafka import KafkaAccess
from ...schemas.privacy import KeyRing
from ...schemas.retry import Backoff
from ...schemas.upcasting import Upcaster
from ...store.postgres import PostgresEventStore
from ..decoding import Arrival, Decoder, arrived_before
from ..folding import BEHIND_PARKED
from ..log_consumer import LOG
from ..parked import Asked, Kept, Parked, read_headers, write_headers
from ..places import Item, Partition, Place
from ..projection import Projection
from ..sink import Sink
from .context import Context, effect_id
from .member import GivenUp, Member, work_of
from .progress import Entry, Progress, was_handled
from .reaction import Reaction
from .scheduler import Scheduler

__all__ = ["ReactionConsumer"]

logger = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0
_MAX_REASON_CHARS: Final = 2000
_MOST_CONFLICTS: Final = 100


class ReactionConsumer:
    """Runs one reaction as a member of its consumer group, and a scheduler of what it schedules.

    Start as many processes as there are partitions at most. Events of one stream are handled in order, one after the other;
    different streams side by side. Each event is delivered at least once; what handlers do through their context is recorded
    once (see `Context`). When `waiting_events` are in memory, no more is fetched, until some are done.

    How far it is lies in `sink` with what is parked, as for projections, and in Kafka for its tools only: a group whose offsets
    were reset there does not react again. A process that lost its partitions without noticing can't move places or park, and
    what it still records is what its successor records, under the same ids: once.

    When partitions are given up, what is under way has `drain_s` to end; then it is cancelled, and done again by the next owner.

    `load_event_types`, `event_types`, `upcasters`, `keys`, `topic_prefix`, `session_timeout_s`, `instance_id` and
    `give_up_after_s` are those of `Consumer`. What the store appends is in the versions that the store declares.

    Attributes: `state` is one of starting, reacting, paused, waiting, stopped; `places` says how far each owned partition has
    come; `lag` how many records are not done, as far as Kafka has told (looked up each second); `waiting` how many events are in
    memory; `handled`, `retried` and `parked` count since the start; `scheduler` counts what it `appended`.
    """

    def __init__(
        self,
        reaction: Reaction,
        store: PostgresEventStore,
        sink: Sink,
        bootstrap: str | KafkaAccess,
        *,
        load_event_types: Callable[[], Awaitable[Sequence[PinnedType]]] | None = None,
        event_types: Sequence[EventType] = (),
        upcasters: Sequence[Upcaster] = (),
        keys: KeyRing | None = None,
        topic_prefix: str = "events.",
        session_timeout_s: float = 10.0,
        instance_id: str = "",
        waiting_events: int = 2000,
        drain_s: float = 10.0,
        give_up_after_s: float = 300.0,
    ) -> None:
        self.state = "starting"
        self.handled = self.retried = self.parked = 0
        self._reaction = reaction
        self._store = store
        self._sink = sink
        self._bootstrap = bootstrap
        self._prefix = topic_prefix
        self._session_timeout_s = session_timeout_s
        self._instance_id = instance_id
        self._waiting_events = waiting_events
        self._drain_s = drain_s
        self._give_up_after_s = give_up_after_s
        self._backoff = Backoff(give_up_after_s=give_up_after_s)
        self._decoder = Decoder(
            load_event_types or store.log.pinned_types, event_types=event_types, upcasters=upcasters, keys=keys
        )
        self._reader = RecordReader(self._decoder.codec)
        # Places and parked events are kept as those of a projection without tables.
        self._kept_as: Projection = type(reaction.name, (Projection,), {"name": reaction.name, "poison": reaction.poison})()
        self.scheduler = Scheduler(store, reaction.name, give_up_after_s=give_up_after_s)
        self._member: Member | None = None
        self._stop = asyncio.Event()

    @property
    def places(self) -> dict[Partition, Place]:
        return {each.partition: each.written for each in self._member.owned.values()} if self._member else {}

    @property
    def lag(self) -> int:
        return self._member.lag() if self._member else 0

    @property
    def waiting(self) -> int:
        return sum(map(len, self._member.owned.values())) if self._member else 0

    def stop(self) -> None:
        """Ask for an end; what is under way is finished, for as long as it may take when partitions are given up."""
        self._stop.set()
        self.scheduler.stop()

    async def run(self) -> None:
        """React, and append what is scheduled when it is due, until `stop()`.

        Raises:
            ReactionError: an event failed, and the reaction is to halt then.
            DecodeError: a record is not one of ours.
            IntegrityError: Kafka no longer has records that this reaction has not seen, or a topic was made anew.
            SchemaError: events of some version can't be read in the version that handlers are to see.
            SettingsError, EventspineError: Kafka or Postgres refuses something that a retry can't mend.
            Unavailable: one of them was away for longer than `give_up_after_s`.
        """
        work = [asyncio.create_task(self._react_until_stopped()), asyncio.create_task(self.scheduler.run())]
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_EXCEPTION)
            self.stop()
            await asyncio.wait(work)
        finally:
            for task in work:
                task.cancel()
            await asyncio.wait(work)
            await self._reaction.close()
        for task in work:
            await task
        self.state = "stopped"

    async def _react_until_stopped(self) -> None:
        while not self._stop.is_set():
            try:
                await self._react_as_member()
            except (Unavailable, Fenced) as error:
                if not self._backoff.failing:
                    logger.warning("reaction waits: %s", error, extra={"reaction": self._reaction.name})
                delay_s = self._backoff.next_delay_s()
                if delay_s is None:
                    raise
                self.state = "waiting"
                await _wait(self._stop, delay_s)

    async def _react_as_member(self) -> None:
        """Join the group and react until asked to stop, or until the first error: then everything in memory is forgotten."""
        await self._sink.prepare(self._kept_as)
        await self._begin()
        await self._decoder.load()
        member = self._member = Member(
            self._bootstrap,
            f"{self._prefix}{self._reaction.name}",
            self._topics(),
            self._sink,
            self._kept_as,
            handle=self._handle,
            settle=self._settle,
            concurrency=self._reaction.concurrency,
            session_timeout_s=self._session_timeout_s,
            instance_id=self._instance_id,
            drain_s=self._drain_s,
        )
        try:
            await member.join()
            looked_at = float("-inf")
            while not self._stop.is_set():
                await self._take(member)
                if time.monotonic() - looked_at > _LOOK_EVERY_S:
                    await member.write()
                    await self._look(member)
                    await member.note_positions()
                    looked_at = time.monotonic()
                if self._backoff.failing and member.owned:
                    logger.info("reaction goes on", extra={"reaction": self._reaction.name})
                    self._backoff.reset()
                self.state = "paused" if member.paused else "reacting"
        finally:
            await member.leave()

    async def _begin(self) -> None:
        """Fix where it begins, at its very first start: the place of the log, at which partitions of Kafka begin."""
        try:
            place = (await self._sink.claim(self._kept_as, {LOG: ""})).places[LOG]
        except ProjectionError:  # it has gone on from there
            return
        if place.last_late:  # also where the log was empty then, and its place is 0
            return
        start = self._reaction.start
        position = await self._store.last_position() if start == "now" else start if isinstance(start, int) else 0
        begun = place._replace(next_offset=position, last_position=position, last_late=1)
        await self._sink.write(self._kept_as, work_of({LOG: place}, {LOG: begun}))
        logger.info("reaction begins behind position %d", position, extra={"reaction": self._reaction.name})

    async def _take(self, member: Member) -> None:
        """Fetch records, and give them to their streams."""
        room = self._waiting_events - self.waiting
        records, owned = await member.fetch(room)
        if not records:
            return
        items = await self._decoder.items(records, arrived=_arrived, handles=self._reaction.handles, read=self._event)
        marks = [self._mark(item.event) for item in items if item.event is not None]
        recorded = await self._store.reactions.recorded(marks) if marks else set()
        for item in items:
            progress = owned.get(item.partition)
            if progress is None or member.owned.get(item.partition) is not progress:  # given up since it was fetched
                continue
            entry = progress.take(item)
            if entry is not None:
                entry.recorded = item.event is not None and self._mark(item.event) in recorded
                member.start(progress, entry)

    async def _look(self, member: Member) -> None:
        places = {each.partition: each.written for each in member.owned.values()}
        looked = await self._sink.look(self._kept_as, places)
        member.pause(looked.paused)
        for asked in looked.asked:
            progress = member.owned.get(asked.partition)
            if progress is not None and asked.stream_id in progress.parked:
                member.start_settling(progress, asked)

    # What the tasks of a member do

    async def _handle(self, member: Member, progress: Progress, entry: Entry) -> None:
        """Handle an event, or set it aside. Then it is done."""
        item = entry.item
        if item.stream_id in progress.parked and progress.parked[item.stream_id] is None:
            rows = await self._sink.parked_events(self._kept_as, progress.partition, item.stream_id)
            if item.stream_id in progress.parked:  # it may have been settled meanwhile
                progress.parked[item.stream_id] = {(row.position, row.late) for row in rows}
        aside = progress.parked.get(item.stream_id)
        if aside is not None:
            if not was_handled(item, aside):
                aside.add((item.position, item.late))
                progress.asides.append(self._row(item, "waiting", BEHIND_PARKED, 0))
            entry.done = True
            return
        if entry.recorded:
            entry.done = True
            return
        reason, tries = await self._try(member, item, looked_up=True)
        if reason:
            if self._reaction.poison == "halt":
                raise ReactionError(f"{self._where(item)} failed: {reason}; mend the handler and start again")
            skipped = self._reaction.poison == "skip"
            progress.asides.append(self._row(item, "skipped" if skipped else "parked", reason, tries))
            if not skipped:
                progress.parked[item.stream_id] = {(item.position, item.late)}
                self.parked += 1
            logger.warning(
                "event is %s: %s",
                "skipped" if skipped else "parked",
                reason,
                extra={"reaction": self._reaction.name, "stream": item.stream_id, "position": item.position},
            )
        entry.done = True
        if reason:
            await member.write()

    async def _try(self, member: Member, item: Item, *, looked_up: bool = False) -> tuple[str, int]:
        """Try an event until it is handled; return why it can't be ("" if it is), and how often it was tried.

        `looked_up` says that nothing was recorded of it a moment ago. Should that have changed, what is recorded first stays.

        Raises:
            GivenUp: the partition goes to somebody else.
            Unavailable: the store was away for longer than `give_up_after_s`.
        """
        rules, event = self._reaction, item.event
        if item.fault or event is None:
            return item.fault or "it has no event", 1
        pauses = Backoff(first_s=rules.first_pause_s, most_s=rules.most_pause_s, give_up_after_s=float("inf"))
        conflicts = Backoff(first_s=0.005, most_s=0.5, give_up_after_s=float("inf"))
        outage = Backoff(give_up_after_s=self._give_up_after_s)
        tries = collisions = 0
        while True:
            said: Exception
            pause_s: float | None
            try:
                async with member.turns:
                    if member.leaving.is_set():
                        raise GivenUp
                    if looked_up or not await self._store.reactions.recorded([self._mark(event)]):
                        looked_up = False
                        await self._react(event)
            except (ConcurrencyError, EventIdTaken) as error:
                collisions += 1
                said, pause_s = error, conflicts.next_delay_s()
                tries += collisions > _MOST_CONFLICTS
            except Unavailable as error:
                said, pause_s = error, outage.next_delay_s()
                if pause_s is None:
                    raise
            except GivenUp:
                raise
            except Exception as error:
                tries += 1
                said, pause_s = error, pauses.next_delay_s()
                if isinstance(error, Undelivered):
                    if error.final:
                        return _said(error), tries
                    pause_s = max(pause_s or 0.0, error.retry_after_s or 0.0)
            else:
                self.handled += 1
                return "", tries + 1
            if tries >= rules.max_attempts:
                return _said(said), tries
            self.retried += 1
            logger.info(
                "event is tried again: %s",
                _said(said),
                extra={"reaction": rules.name, "stream": item.stream_id, "position": item.position, "tries": tries},
            )
            if await _wait(member.leaving, pause_s or 0.0):
                raise GivenUp

    async def _react(self, event: Event) -> None:
        """Run the handler, and record what it did."""
        name = self._reaction.name
        context = Context(name, event, self._store)
        async with asyncio.timeout(self._reaction.timeout_s):
            await self._reaction.react(event, context)
        effects = context.effects()
        if effects:
            await self._store.reactions.record(name, effects)

    def _mark(self, event: Event) -> UUID:
        return effect_id(self._reaction.name, event.event_id, 0)

    async def _settle(self, member: Member, progress: Progress, asked: Asked) -> None:
        """Do what somebody asks for a parked stream: handle its events again, in order, but for those to be discarded."""
        stream_id, what = asked.stream_id, asked.what
        while True:
            await member.write()  # what waits in memory comes behind what is kept
            rows = await self._sink.parked_events(self._kept_as, progress.partition, stream_id)
            if any(each.stream_id == stream_id for each in progress.asides):
                continue
            if not rows:
                del progress.parked[stream_id]
                logger.info("stream is parked no longer", extra={"reaction": self._reaction.name, "stream": stream_id})
                return
            left = [] if what == "discard-all" else rows[1:] if what == "discard" else rows
            await member.settled(progress, rows[: len(rows) - len(left)])
            what = "retry"
            for number, item in enumerate(await self._read_parked(left)):
                reason, tries = await self._try(member, item)
                if reason:
                    row = left[number]
                    again = row._replace(state="parked", reason=reason[:_MAX_REASON_CHARS], tries=row.tries + tries)
                    behind = [each._replace(state="waiting", reason=BEHIND_PARKED) for each in left[number + 1 :]]
                    progress.asides += [again, *behind]
                    await member.write()
                    return
                await member.settled(progress, [left[number]])

    async def _read_parked(self, rows: Sequence[Parked]) -> list[Item]:
        return await self._decoder.items(rows, arrived=arrived_before, handles=self._reaction.handles, read=self._kept_event)

    def _kept_event(self, row: Parked) -> Event:
        return self._reader.event(read_headers(row.kept.headers), row.kept.value)

    def _event(self, record: Any) -> Event:
        return self._reader.event(dict(record.headers), record.value or b"")

    def _row(self, item: Item, state: str, reason: str, tries: int) -> Parked:
        record = item.raw
        kept = Kept(write_headers(dict(record.headers)), record.key or b"", record.value or b"")
        text = reason[:_MAX_REASON_CHARS].replace("\0", "")
        return Parked(item.partition, item.position, item.late, item.stream_id, item.event_type, state, text, tries, kept)

    def _where(self, item: Item) -> str:
        return f"reaction {self._reaction.name}: {item.event_type} (stream {item.stream_id!r}, global position {item.position})"

    def _topics(self) -> str:
        """A pattern of topics: the client takes no name whose topic is not there yet."""
        categories = "|".join(map(re.escape, self._reaction.categories)) or "[A-Za-z_][A-Za-z0-9_.]*"
        return f"^{re.escape(self._prefix)}(?:{categories})$"


def _arrived(record: Any) -> Arrival:
    headers: dict[str, bytes] = dict(record.headers)
    position = headers.get("ce_globalposition", b"")
    late = headers.get("ce_latenumber", b"0")
    if not position.isdigit() or not late.isdigit():
        raise DecodeError(
            f"{record.topic}[{record.partition}] offset {record.offset}: not published by eventspine (no header "
            "ce_globalposition, or ce_latenumber is no number)"
        )
    stream_id = headers.get("ce_subject") or record.key or b""
    return Arrival(
        Partition(record.topic, record.partition),
        record.offset,
        int(position),
        int(late),
        headers.get("ce_type", b"").decode(errors="replace"),
        stream_id.decode(errors="replace"),
        record,
    )


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event for a while; return whether it came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()


def _said(error: BaseException) -> str:
    if isinstance(error, EventspineError):
        return str(error)
    return "it took too long" if isinstance(error, TimeoutError) else repr(error)
