"""Decisions about offsets, without I/O: which records are new, and how far a batch brings each partition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

__all__ = ["Partition", "Place", "Record", "new_records"]


class Partition(NamedTuple):
    topic: str
    number: int


class Place(NamedTuple):
    """How far a projection has come in one partition, as the read model's database has it.

    `epoch` rises with each owner of the partition; `next_offset` is the first record not yet consumed; `last_position` the
    highest global position applied; `events` how many events were applied; `last_late` the number of the last record applied
    that came late.
    """

    epoch: int
    next_offset: int
    last_position: int
    events: int
    last_late: int = 0


class Record(NamedTuple):
    """A Kafka record, as far as decisions need it. `late` numbers those that come late (header ce_latenumber); 0 = in order."""

    partition: Partition
    offset: int
    position: int
    late: int = 0


Bearer = TypeVar("Bearer")


def new_records(
    records: Iterable[tuple[Record, Bearer]], places: Mapping[Partition, Place]
) -> tuple[list[Bearer], dict[Partition, Place]]:
    """Return what is new among records, in order, and the places of the touched partitions behind them.

    Dropped: records of partitions that are not ours (any more), records before `next_offset` (fetched before a rebalance),
    and those that were published twice. In a partition the positions of records that come in order only rise, and so do the
    numbers of records that come late, whatever their positions: two series, and each tells its duplicates by its last.
    """
    new: list[Bearer] = []
    after: dict[Partition, Place] = {}
    for record, bearer in records:
        place = after.get(record.partition) or places.get(record.partition)
        if place is None or record.offset < place.next_offset:
            continue
        if record.late:
            fresh = record.late > place.last_late
            last_position, last_late = place.last_position, max(record.late, place.last_late)
        else:
            fresh = record.position > place.last_position
            last_position, last_late = max(record.position, place.last_position), place.last_late
        if fresh:
            new.append(bearer)
        after[record.partition] = Place(place.epoch, record.offset + 1, last_position, place.events + fresh, last_late)
    return new, after
