"""Decisions about offsets, without I/O: which records are new, and how far a batch brings each partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..schemas import Event, IntegrityError

__all__ = ["Item", "Partition", "Place", "new_items"]


class Partition(NamedTuple):
    topic: str
    number: int


class Place(NamedTuple):
    """How far a projection has come in one partition, as the read model's database has it.

    `epoch` rises with each owner of the partition; `next_offset` is the first record not yet consumed; `last_position` the
    highest global position taken; `events` how many events were taken: applied, passed over, or set aside; `last_late` the number
    of the last record taken that came late; `built_to` the position up to which the projection was built from the log.
    """

    epoch: int
    next_offset: int
    last_position: int
    events: int
    last_late: int = 0
    built_to: int = 0


class Item(NamedTuple):
    """A record, and the event in it: None where its type is not handled, or where a `fault` says why it can't be read.

    `late` numbers records that come late (header ce_latenumber); 0 = in order. `raw` is the record as its source has it.
    `follows` is the position of the record before it in its partition (header ce_previousposition), where it says so.
    """

    partition: Partition
    offset: int
    position: int
    late: int
    event_type: str
    stream_id: str
    event: Event | None
    fault: str = ""
    raw: Any = None
    follows: int = 0


def new_items(items: Sequence[Item], places: Mapping[Partition, Place]) -> tuple[list[Item], dict[Partition, Place]]:
    """Return what is new among items, in order, and the places of the touched partitions behind them.

    Dropped: records of partitions that are not ours (any more), records before `next_offset` (fetched before a rebalance),
    those that the log had when the projection was built from it, and those that were published twice. In a partition the
    positions of records that come in order only rise, and so do the numbers of records that come late, whatever their positions:
    two series, and each tells its duplicates by its last.

    Raises:
        IntegrityError: records are missing before one of them.
    """
    new: list[Item] = []
    after: dict[Partition, Place] = {}
    current: Partition | None = None
    epoch = offset = last_position = events = last_late = built_to = 0
    for item in items:
        partition, at, position, late = item[:4]
        if partition != current:
            if current is not None:
                after[current] = Place(epoch, offset, last_position, events, last_late, built_to)
            place = after.get(partition) or places.get(partition)
            if place is None:
                current = None
                continue
            current = partition
            epoch, offset, last_position, events, last_late, built_to = place
        if at < offset:
            continue
        if item[9] > last_position and item.follows > built_to:
            reached = max(last_position, built_to)
            raise IntegrityError(
                f"{partition.topic}[{partition.number}]: the record at offset {at} (position {position}) follows that of "
                f"position {item.follows}, but only those up to {reached} were there: Kafka has lost records. Nothing was "
                "skipped. `eventspine relay verify` names them; `eventspine projections rebuild` builds the tables from the log, "
                "and goes on from there"
            )
        offset = at + 1
        if late:
            fresh = late > last_late
            last_late = max(late, last_late)
        else:
            fresh = position > last_position
            last_position = max(position, last_position)
        if fresh and position > built_to:
            events += 1
            new.append(item)
    if current is not None:
        after[current] = Place(epoch, offset, last_position, events, last_late, built_to)
    return new, {partition: place for partition, place in after.items() if place != places[partition]}
