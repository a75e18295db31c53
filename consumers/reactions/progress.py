"""How far a partition is while its events are handled out of turn: decisions without I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from ..parked import Parked
from ..places import Item, Partition, Place, new_items

__all__ = ["Entry", "Progress", "was_handled"]


@dataclass(eq=False)
class Entry:
    """A record that was taken: the place behind it, whether its effects were found recorded, and whether all is done."""

    item: Item
    after: Place
    recorded: bool = False
    done: bool = False


@dataclass(eq=False)
class Progress:
    """One partition that is ours.

    `written` is its place as it is kept, `reached` the place behind all that was taken. Streams are handled side by side, so
    records are done in any order; the place moves only behind those before which all are done.

    `parked` has the streams of which events are set aside, with the positions and late numbers of those (None: not looked up
    yet). `asides` are to be kept, with the next place or before.
    """

    partition: Partition
    written: Place
    parked: dict[str, set[tuple[int, int]] | None]
    reached: Place = field(init=False)
    asides: list[Parked] = field(default_factory=list)
    _taken: deque[Entry] = field(default_factory=deque)
    _done_to: Place = field(init=False)

    def __post_init__(self) -> None:
        self.reached = self._done_to = self.written

    def __len__(self) -> int:
        """How many records are taken and not behind the place."""
        return len(self._taken)

    def take(self, item: Item) -> Entry | None:
        """Take a record, and return it if it is new and something is to be done with it."""
        new, after = new_items([item], {self.partition: self.reached})
        if not after:
            return None
        self.reached = after[self.partition]
        entry = Entry(item, self.reached, done=not new or (item.event is None and not item.fault))
        self._taken.append(entry)
        return None if entry.done else entry

    def place(self) -> Place:
        """Return the place behind all that is done."""
        while self._taken and self._taken[0].done:
            self._done_to = self._taken.popleft().after
        return self._done_to


def was_handled(item: Item, aside: Collection[tuple[int, int]]) -> bool:
    """Whether an event of a parked stream, delivered again, was handled before the first that is set aside, or is one of those.

    `aside` has positions and late numbers. Records that come late have positions of their own series: of these, nothing is known.
    """
    if (item.position, item.late) in aside:
        return True
    in_order = [position for position, late in aside if not late]
    return not item.late and bool(in_order) and item.position < min(in_order)
