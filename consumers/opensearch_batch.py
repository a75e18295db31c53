"""What a batch makes of documents, decided without I/O.

A document says how far the records of each partition were applied to it, so that each of them is applied to it once, whatever
happens between the writes of a batch: those that it has seen already are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..schemas import Event
from .folding import Folded, fold
from .opensearch_table import DELETED, MARKS, Change, Columns, by_key
from .places import Item, Partition
from .projection import Projection
from .table import Key, Write

__all__ = ["Document", "Part", "Row", "changed", "document_of", "parts_of", "source_of"]

LOG_MARK: Final = ":0"
"""How the log is called in marks, where it is a partition: its offsets are positions, less one."""

Row = tuple[str, Key]
"""A row by its table and key."""

Mark = tuple[int, int]
"""Of one partition: the first offset, and the first number of a retry, that was not applied to a document yet."""


class Document(NamedTuple):
    """A document as it was read: a row, or none; `seq_no` is -1 where there is no document."""

    row: Mapping[str, Any] | None
    marks: Mapping[str, Mark]
    seq_no: int
    term: int


class Part:
    """What the events of one partition do, in order; they are numbered by offset, or as retries where they are tried again."""

    def __init__(
        self,
        partition: Partition,
        events: Sequence[tuple[int, Event]],
        *,
        retried: bool,
        apply: Callable[[Sequence[Event]], Folded],
    ) -> None:
        self.mark = mark_of(partition)
        self.retried = retried
        self.changes: dict[Row, list[Change]] = {}
        self._numbers = [number for number, _ in events]
        self._events = [event for _, event in events]
        self._first, self._behind = min(self._numbers), max(self._numbers) + 1
        self._lowest = min(event.global_position for event in self._events)
        self._apply = apply
        self._one_by_one: list[dict[Row, list[Change]]] = []

    def fold(self, writes: Sequence[Write] | None = None) -> Part:
        """Run the handlers over the events, unless it is known what they write."""
        self.changes = by_key(self._apply(self._events).writes if writes is None else writes)
        return self

    def unseen(self, row: Row, document: Document) -> list[Change]:
        """Return the changes of a row that were not applied to its document yet."""
        offset, retry = document.marks.get(self.mark, (0, 0))
        mark, position = (retry, 0) if self.retried else (offset, 0)
        if not self.retried and self.mark != LOG_MARK:
            # A projection that was read from the log goes on from Kafka, perhaps in the middle of a batch.
            position = document.marks.get(LOG_MARK, (0, 0))[0]
        if mark <= self._first and position < self._lowest:
            return self.changes[row]
        if mark >= self._behind:
            return []
        if not self._one_by_one:
            self._one_by_one = [by_key(self._apply([event]).writes) for event in self._events]
        each_of = zip(self._numbers, self._events, self._one_by_one, strict=True)
        left = [changes for number, event, changes in each_of if number >= mark and event.global_position > position]
        return [change for changes in left for change in changes.get(row, ())]

    def marked(self, before: Mark) -> Mark:
        """Return the mark of a document to which all was applied."""
        offset, retry = before
        return (offset, max(retry, self._behind)) if self.retried else (max(offset, self._behind), retry)


def mark_of(partition: Partition) -> str:
    return f"{partition.topic}:{partition.number}"


def parts_of(
    projection: Projection, items: Sequence[Item], folded: Folded, retries: Mapping[Partition, Mapping[int, int]] | None
) -> list[Part]:
    """Return what a folded batch does, by partition. `retries` has the numbers of parked events, by position, if it is of those.

    Raises:
        ProjectionError: a handler that did its work within the batch fails alone.
    """
    aside = {id(each.item) for each in folded.asides}
    events: dict[Partition, list[tuple[int, Event]]] = {}
    for item in items:
        if item.event is not None and id(item) not in aside:
            number = item.offset if retries is None else retries[item.partition][item.position]
            events.setdefault(item.partition, []).append((number, item.event))
    parts = [
        Part(partition, each, retried=retries is not None, apply=lambda chosen: fold(projection, chosen))
        for partition, each in events.items()
    ]
    if folded.writes and not parts:
        raise ValueError("the batch lacks its items: each document is to know what was applied to it")
    return [part.fold(folded.writes if len(parts) == 1 else None) for part in parts]


def changed(columns: Columns, key: Key, document: Document, touching: Sequence[tuple[Part, Row]]) -> Document | None:
    """Return what becomes of a document, None if nothing.

    Raises:
        Refused: a value does not fit, or a row that is inserted is there.
    """
    row, marks = document.row, dict(document.marks)
    touched = False
    for part, named in touching:
        changes = part.unseen(named, document)
        for change in changes:
            row = columns.apply(row, key, change)
        # An update of a row that is not there leaves no trace. A deletion does, even where nothing was: an older owner may still
        # be about to create what is deleted here.
        if any(change.kind != "update" for change in changes) or (changes and document.row is not None):
            touched = True
        marks[part.mark] = part.marked(marks.get(part.mark, (0, 0)))
    return document._replace(row=row, marks=marks) if touched else None


def document_of(found: Mapping[str, Any] | None) -> Document:
    """Return a document as OpenSearch returned it."""
    if found is None:
        return Document(None, {}, -1, -1)
    row = dict(found["_source"])
    marks = {partition: (offset, retry) for partition, (offset, retry) in row.pop(MARKS).items()}
    deleted = row.pop(DELETED, None)
    return Document(None if deleted else row, marks, found["_seq_no"], found["_primary_term"])


def source_of(document: Document, at: str) -> dict[str, Any]:
    """Return what is written: a row, or where there is none, when it was deleted."""
    return {**({DELETED: at} if document.row is None else document.row), MARKS: document.marks}
