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
    highest global position applied; `events` how many events were applied.
    """

    epoch: int
    next_offset: int
    last_position: int
    events: int


class Record(NamedTuple):
    """A Kafka record, as far as decisions need it."""

    partition: Partition
    offset: int
    position: int


Bearer = TypeVar("Bearer")


def new_records(
    records: Iterable[tuple[Record, Bearer]], places: Mapping[Partition, Place]
) -> tuple[list[Bearer], dict[Partition, Place]]:
    """Return what is new among records, in order, and the places of the touched partitions behind them.

    Dropped: records of partitions that are not ours (any more), records before `next_offset` (fetched before a rebalance),
    and records at or below `last_position`: in a partition positions only rise, so those were published twice.
    """
    new: list[Bearer] = []
    after: dict[Partition, Place] = {}
    for record, bearer in records:
        place = after.get(record.partition) or places.get(record.partition)
        if place is None or record.offset < place.next_offset:
            continue
        fresh = record.position > place.last_position
        if fresh:
            new.append(bearer)
        after[record.partition] = Place(
            place.epoch, record.offset + 1, max(record.position, place.last_position), place.events + fresh
        )
    return new, after
