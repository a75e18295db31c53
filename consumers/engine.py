"""Applies batches of records to a read model, wherever they come from: exactly once, poison events set aside."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .folding import AllRows, Folded, Refused, failure, fold_batch
from .parked import Asked, Kept, Parked
from .places import Item, Partition, Place, new_items
from .projection import Projection
from .sink import Sink, Work
from .table import Key

__all__ = ["Engine", "Staged"]

logger = logging.getLogger(__name__)

_NO_ROWS: Final[AllRows] = {}


@dataclass
class Staged:
    """A batch that is folded, and not yet written. `generation` says under which sets of parked streams, `searched` whether the
    sink was asked which of its rows it refuses.
    """

    items: Sequence[Item]
    new: Sequence[Item]
    before: dict[Partition, Place]
    after: dict[Partition, Place]
    generation: int
    folded: Folded | Refused
    searched: bool = False


class Engine:
    """Applies what a member of the group reads of its partitions.

    `stage` decides in memory, and may run while the batch before is written; `write` does. Batches are written in the order in
    which they were staged. After any error, nothing in memory is to be used again: claim the partitions anew.

    `keep` returns the record that an item came in, to be kept with a parked event; `read` makes items of parked events.

    Attributes: `places` of the partitions that are ours, as they are written; `reached`, as they will be when what is staged is.
    """

    def __init__(
        self,
        projection: Projection,
        sink: Sink,
        *,
        keep: Callable[[Item], Kept],
        read: Callable[[Sequence[Parked]], Awaitable[list[Item]]],
    ) -> None:
        self.places: dict[Partition, Place] = {}
        self.reached: dict[Partition, Place] = {}
        self._projection = projection
        self._sink = sink
        self._keep = keep
        self._read = read
        self._parked: dict[Partition, set[str]] = {}
        self._generation = 0  # changes with the sets of parked streams

    @property
    def parked_streams(self) -> int:
        return sum(map(len, list(self._parked.values())))

    async def claim(self, partitions: Mapping[Partition, str]) -> None:
        """Become the owner of partitions, given with the ids of their topics."""
        claimed = await self._sink.claim(self._projection, partitions)
        self.places |= claimed.places
        self.reached |= claimed.places
        self._parked |= claimed.parked

    def release(self, partitions: Sequence[Partition]) -> None:
        """Own partitions no longer."""
        for each in partitions:
            self.places.pop(each, None)
            self.reached.pop(each, None)
            self._parked.pop(each, None)

    def stage(self, items: Sequence[Item]) -> Staged | None:
        """Decide what a batch comes to; None if there is nothing new in it.

        Raises:
            ProjectionError: an event failed, and the projection's policy is to halt.
        """
        new, after = new_items(items, self.reached)
        if not after:
            return None
        before = {partition: self.reached[partition] for partition in after}
        self.reached |= after
        return Staged(items, new, before, after, self._generation, self._fold_first(new))

    async def write(self, staged: Staged) -> None:
        """Write a batch, without what it has of partitions that were given up since it was staged.

        Raises:
            Fenced: somebody else owns one of its partitions now.
            ProjectionError: the data can't be written, and the projection's policy is to halt.
        """
        if not all(self._owns(partition, place) for partition, place in staged.before.items()):
            left = self._without_lost(staged)
            if left is None:
                return
            staged = left
        folded = staged.folded
        if staged.generation != self._generation:  # the batch before set more streams aside
            folded = self._fold_first(staged.new)
        try:
            if isinstance(folded, Refused):
                raise folded
            await self._write(staged.new, staged.before, staged.after, folded)
        except Refused as refused:
            if staged.searched or not await self._write_without_faults(staged, folded):
                await self._write_in_parts(staged, refused)

    async def look_at_parked(self) -> bool:
        """Do what somebody asks for parked streams of partitions that are ours; return whether the projection is paused.

        Raises:
            Fenced: somebody else owns one of our partitions now, or the projection begins anew.
        """
        looked = await self._sink.look(self._projection, self.places)
        for asked in looked.asked:
            if asked.partition in self.places:
                await self._settle(asked)
        return looked.paused

    async def _write_without_faults(self, staged: Staged, folded: Folded | Refused) -> bool:
        """Set aside the events whose rows are refused, as far as the sink tells which these are; return whether it does.

        Only where one event made such a row by itself: of several, halving finds the first that is at fault.
        """
        if (
            isinstance(folded, Refused)
            or folded.missing
            or folded.reads
            or folded.statements
            or self._projection.poison == "halt"
        ):
            return False
        refused = await self._sink.refused_rows(self._projection, folded.writes)
        if not refused:
            return False
        touched: dict[tuple[str, Key], list[int]] = {}
        fold_batch(self._projection, staged.new, _NO_ROWS, self._parked, touched)
        alone = {row: numbers[0] for row, numbers in touched.items() if len(numbers) == 1 and numbers[0] >= 0}
        faults = {alone[row]: why for row, why in refused.items() if row in alone}
        faulty = {id(item): item._replace(fault=faults[number]) for number, item in enumerate(staged.new) if number in faults}
        if not faulty:
            return False
        items, new = ([faulty.get(id(item), item) for item in each] for each in (staged.items, staged.new))
        left = Staged(items, new, staged.before, staged.after, self._generation, self._fold_first(new), searched=True)
        await self.write(left)
        return True

    async def _write_in_parts(self, staged: Staged, refused: Refused) -> None:
        """Find the event that is refused by halving, and set it aside, or halt."""
        before, items = staged.before, staged.items
        if not staged.new:
            raise refused
        if len(staged.new) == 1:
            faulty = staged.new[0]
            if self._projection.poison == "halt":
                raise failure(self._projection, faulty.event or faulty, str(refused)) from refused
            one = [faulty._replace(fault=str(refused))]
            await self._write(one, before, staged.after, self._fold(one, _NO_ROWS))
            return
        middle = staged.new[len(staged.new) // 2]
        half = next(number for number, item in enumerate(items) if item is middle)
        for part in (items[:half], items[half:]):
            new, after = new_items(part, before)
            if after:
                starts = {partition: before[partition] for partition in after}
                await self.write(Staged(part, new, starts, after, self._generation, self._fold_first(new), searched=True))
                before = before | after

    async def _write(
        self,
        items: Sequence[Item],
        before: Mapping[Partition, Place],
        after: Mapping[Partition, Place],
        folded: Folded,
        settled: Sequence[tuple[Partition, int]] = (),
        parked: Mapping[Partition, set[str]] | None = None,
    ) -> Folded:
        work = Work(before, after, folded, lambda rows: self._fold(items, rows, parked), self._parked_of, settled, items)
        written = await self._sink.write(self._projection, work)
        self.places |= {partition: place for partition, place in after.items() if partition in self.places}
        for aside in written.asides:
            streams = self._parked.setdefault(aside.item.partition, set())
            if aside.state == "parked":
                logger.warning(
                    "event is parked: %s",
                    aside.reason,
                    extra={"projection": self._projection.name, "stream": aside.item.stream_id, "position": aside.item.position},
                )
            if aside.state != "skipped" and aside.item.stream_id not in streams:
                streams.add(aside.item.stream_id)
                self._generation += 1
        return written

    async def _settle(self, asked: Asked) -> None:
        """Try a parked stream again, without its first event if that is to be discarded.

        All at once, or if that is refused, one by one. What fails is set aside anew, and what is behind it waits.
        """
        partition, stream_id, what = asked
        rows = await self._sink.parked_events(self._projection, partition, stream_id)
        left = [] if what == "discard-all" else rows[1:] if what == "discard" else rows
        gone = [(partition, row.position) for row in rows[: len(rows) - len(left)]]
        items = await self._read(left)
        parked: Mapping[Partition, set[str]] = {**self._parked, partition: self._parked[partition] - {stream_id}}
        place, at_once, waiting = {partition: self.places[partition]}, len(items), False
        while items or gone:
            now, behind = items[:at_once], items[at_once:]
            settled = gone + [(partition, item.position) for item in now]
            try:
                written = await self._write(now, place, place, self._fold(now, _NO_ROWS, parked), settled, parked)
            except Refused as refused:
                if at_once == 1:
                    items = [now[0]._replace(fault=str(refused)), *behind]
                at_once = 1
                continue
            items, gone = behind, []
            if any(aside.state != "skipped" for aside in written.asides):
                parked, at_once, waiting = self._parked, len(items), True
        if not waiting:
            self._parked[partition].discard(stream_id)
            self._generation += 1
            logger.info("stream is parked no longer", extra={"projection": self._projection.name, "stream": stream_id})

    def _owns(self, partition: Partition, place: Place) -> bool:
        return partition in self.places and self.places[partition].epoch == place.epoch

    def _without_lost(self, staged: Staged) -> Staged | None:
        """Return what a batch has of partitions that are ours still. Of the others it is not known any more what is parked."""
        before = {partition: place for partition, place in staged.before.items() if self._owns(partition, place)}
        new, after = new_items(staged.items, before)
        return Staged(staged.items, new, before, after, self._generation, self._fold_first(new)) if after else None

    def _fold_first(self, items: Sequence[Item]) -> Folded | Refused:
        try:
            return self._fold(items, _NO_ROWS)
        except Refused as refused:
            return refused

    def _fold(self, items: Sequence[Item], rows: AllRows, parked: Mapping[Partition, set[str]] | None = None) -> Folded:
        return fold_batch(self._projection, items, rows, self._parked if parked is None else parked)

    def _parked_of(self, folded: Folded) -> list[Parked]:
        return [self._row(*aside) for aside in folded.asides]

    def _row(self, item: Item, state: str, reason: str) -> Parked:
        before = item.raw if isinstance(item.raw, Parked) else None
        tries = (before.tries if before else 0) + (state != "waiting")
        kept = before.kept if before else self._keep(item)
        return Parked(item.partition, item.position, item.late, item.stream_id, item.event_type, state, reason, tries, kept)
