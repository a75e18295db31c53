"""What is published at once, decided without I/O: which events are this shard's, where they go, and which are set aside."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

from ..schemas.cloudevents import Header
from ..schemas.partition import partition_of
from .cursor import Cursor, with_published
from .publisher import Record
from .router import Misrouted, Routed
from .source import Stored
from .state import Parked

__all__ = ["BEHIND_PARKED", "Batch", "Unknown", "build_batch", "late_headers", "link_header"]

BEHIND_PARKED = "waits behind a parked event of its stream"


_NONE: Mapping[tuple[str, int], int] = {}


class Batch(NamedTuple):
    """Records, the events that they were made of ("same length, in order"), what is to be parked, and the cursor behind all.

    `links` has, for the first record of each partition, the position of the record before it there, by the record's number.
    """

    records: list[Record]
    sources: list[Stored]
    parked: list[Parked]
    cursor: Cursor
    links: Mapping[int, int] = {}


class Unknown(NamedTuple):
    """Topics whose number of partitions is not known yet."""

    topics: set[str]


def build_batch(
    events: Sequence[Stored],
    cursor: Cursor,
    *,
    route: Callable[[Stored], Routed | None],
    partitions: Mapping[str, int],
    shard: int,
    shards: int,
    floors: Sequence[int],
    parked: Mapping[str, int],
    published_late: Set[int] = frozenset(),
    tails: Mapping[tuple[str, int], int] = _NONE,
    topic_ids: Mapping[str, str] | None = None,
) -> Batch | Unknown:
    """Return what a shard publishes of events that follow each other; `cursor` is behind the last.

    `partitions` says how many each topic has, `floors` up to where an earlier generation of shards has published (by old shard,
    partition p by shard p % len(floors)), `parked` which streams are set aside, and from which position on, `tails` up to where a
    partition is known to be published, whatever the cursor says, `published_late` what else is. An event that can't be routed is
    parked, and what follows in its stream behind it. With `topic_ids`, records are linked to those before them, and the cursor
    says so.
    """
    records: list[Record] = []
    sources: list[Stored] = []
    aside: list[Parked] = []
    aside_streams: set[str] = set()
    unknown: set[str] = set()
    sharded = shards > 1 or len(floors) > 0
    links: dict[int, int] = {}
    reached: dict[tuple[str, int], int] = {}
    for event in events:
        failed = ""
        try:
            routed = route(event)
        except Misrouted as error:
            routed, failed = Routed(error.topic, error.key, b"", []), str(error)
        except Exception as error:  # a user's function may raise anything; whatever it is concerns this event alone
            if sharded and _shard_of_stream(event.stream_id, shards) != shard:
                continue
            waits = parked.get(event.stream_id, event.global_position) < event.global_position or event.stream_id in aside_streams
            reason = BEHIND_PARKED if waits else f"{type(error).__name__}: {error}"
            aside.append(Parked(event.global_position, event.stream_id, reason, 0 if waits else 1))
            aside_streams.add(event.stream_id)
            continue
        if routed is None:
            continue
        topic, key, value, headers = routed
        count = partitions.get(topic)
        if count is None:
            unknown.add(topic)
            continue
        partition = partition_of(key, count)
        if sharded and (partition % shards != shard or (floors and event.global_position <= floors[partition % len(floors)])):
            continue
        if tails and event.global_position <= tails.get((topic, partition), 0):
            continue
        if published_late and event.global_position in published_late:
            continue
        if event.stream_id in aside_streams or (parked and parked.get(event.stream_id, sys.maxsize) <= event.global_position):
            aside.append(Parked(event.global_position, event.stream_id, BEHIND_PARKED, 0))
            continue
        if failed:
            aside.append(Parked(event.global_position, event.stream_id, failed, 1))
            aside_streams.add(event.stream_id)
            continue
        place = (topic, partition)
        if topic_ids is not None and place not in reached:
            before = cursor.published.get(topic_ids[topic], {}).get(partition)
            if before is not None:
                links[len(records)] = before
        reached[place] = event.global_position
        records.append(Record(topic, partition, key, value, headers))
        sources.append(event)
    if unknown:
        return Unknown(unknown)
    if topic_ids is not None:
        cursor = with_published(cursor, reached, topic_ids)
    return Batch(records, sources, aside, cursor, links)


def _shard_of_stream(stream_id: str, shards: int) -> int:
    """Return who parks an event that has no partition, because it can't be routed."""
    return partition_of(stream_id.encode(), shards)


def late_headers(published_after: int, number: int) -> list[Header]:
    """Return the headers of a record that comes behind records of higher positions.

    `number` counts the shard's late records. In a partition it only rises, as positions do among the other records: of what is
    there twice (after a crash, without transactions) readers drop the second by it.
    """
    return [("ce_publishedafter", b"%d" % published_after), ("ce_latenumber", b"%d" % number)]


def link_header(position: int) -> Header:
    """Return the header that names the position of the record before it in its partition, of those that come in order.

    The first record of each transaction has it, and the others of that partition follow it: a reader that has not seen that
    position misses records.
    """
    return "ce_previousposition", b"%d" % position
