"""The one oracle of integration and fault tests: what must be true of the log, whatever died in between."""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg

from eventspine import Event

_COUNTS = """
SELECT count(*) AS events, coalesce(min(global_position), 1) AS first, coalesce(max(global_position), 0) AS last,
       count(DISTINCT id) AS ids
  FROM events"""

_STREAMS = """
SELECT stream_id, count(*) AS events, min(version) AS first, max(version) AS last
  FROM events GROUP BY stream_id
HAVING min(version) <> 1 OR max(version) <> count(*)"""

_OUT_OF_ORDER = """
SELECT global_position, stream_id, version, created_at, created_before, version_before
  FROM (SELECT *, lag(created_at) OVER (ORDER BY global_position) AS created_before,
               lag(version) OVER (PARTITION BY stream_id ORDER BY global_position) AS version_before
          FROM events) AS log
 WHERE created_at < created_before OR version <> coalesce(version_before, 0) + 1"""

_RECORDED = """
SELECT id, stream_id, event_type, version, global_position, payload, created_at FROM events WHERE id = ANY($1::uuid[])"""


async def check_log(database: asyncpg.Pool) -> int:
    """Check positions 1 … n, versions 1 … n per stream in the order of positions, and times that never fall; return n.

    Raises:
        AssertionError: what differs.
    """
    counts = dict(await database.fetchrow(_COUNTS) or {})
    n: int = counts["events"]
    assert counts == {"events": n, "first": 1, "last": n, "ids": n}, f"positions are not 1 … n, or ids repeat: {counts}"
    streams = [dict(row) for row in await database.fetch(_STREAMS)]
    assert not streams, f"versions are not 1 … n: {streams[:5]}"
    disorder = [dict(row) for row in await database.fetch(_OUT_OF_ORDER)]
    assert not disorder, f"{len(disorder)} events are not in order: {disorder[:5]}"
    return n


async def check_acked(database: asyncpg.Pool, acked: Iterable[Event]) -> None:
    """Check that every event that an append returned is in the log, once, at the places that the append told.

    Raises:
        AssertionError: what is missing or differs.
    """
    told = {event.event_id: event for event in acked}
    found = {row["id"]: row for row in await database.fetch(_RECORDED, list(told))}
    lost = sorted((event.global_position, event.stream_id) for id_, event in told.items() if id_ not in found)
    assert not lost, f"{len(lost)} acked events are not in the log: {lost[:5]}"
    for event_id, event in told.items():
        row = found[event_id]
        expected = (event.stream_id, event.event_type, event.version, event.global_position, event.created_at)
        actual = (row["stream_id"], row["event_type"], row["version"], row["global_position"], row["created_at"])
        assert actual == expected, f"event {event_id} was acked as {expected} and is recorded as {actual}"
