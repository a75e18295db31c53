"""The one oracle of integration and fault tests: what must be true of the log, whatever died in between."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import asyncpg
import fastavro
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from eventspine import Event
from tests.projections import CATEGORIES, link

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


_PUBLISHED = """
SELECT global_position, id::text AS id, stream_id, stream_type, event_type, version, schema_version, payload, created_at
  FROM events ORDER BY global_position"""

_ENVELOPES = "SELECT schema_id, data_schema_id, definition FROM envelopes JOIN schemas USING (schema_id)"

ORDER_TOTALS = """
SELECT e.event_data ->> 'customer_id' AS customer_id, count(*)::bigint AS orders,
       sum((e.event_data ->> 'total_cents')::bigint)::bigint AS total_cents
  FROM events e WHERE e.event_type = 'OrderPlaced' GROUP BY 1 ORDER BY 1"""

ORDER_STATES = """
SELECT DISTINCT ON (stream_id) stream_id, version, event_type FROM events ORDER BY stream_id, version DESC"""


def read_committed(bootstrap: str, topic: str) -> list[Any]:
    """Return every committed record of a topic, partition by partition, each in the order of its offsets."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "oracle",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        partitions = sorted(consumer.list_topics(topic, timeout=20).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        records, open_partitions = [], set(partitions)
        while open_partitions:
            message = consumer.poll(30.0)
            assert message is not None, f"{topic}: partitions {open_partitions} did not end in 30 s: is a transaction open?"
            error = message.error()
            if error is None:
                records.append(message)
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                open_partitions.discard(message.partition())
    finally:
        consumer.close()
    return sorted(records, key=lambda message: (message.partition(), message.offset()))


def _published(message: Any, headers: dict[str, str], row: Any, envelopes: dict[int, tuple[int, Any]]) -> tuple[Any, ...]:
    """Return what a record says of an event: key, payload, id, type, version in the stream."""
    key, value = message.key().decode(), message.value()
    if "ce_id" in headers:
        return key, value, headers["ce_id"], headers["ce_type"], headers["ce_streamversion"]
    beside_it = {"ce_type", "ce_globalposition", "content-type", "traceparent", "tracestate", "ce_previousposition", *_LATE}
    assert not headers.keys() - beside_it, headers
    data_schema_id, schema = envelopes[int.from_bytes(value[1:5], "big")]
    rest = BytesIO(value[5:])
    envelope: Any = fastavro.schemaless_reader(rest, schema, None)
    assert rest.read() == b"", "bytes are left over behind the envelope"
    beside = (key, headers["ce_type"], headers["ce_globalposition"], row["created_at"])
    inside = (envelope["stream_id"], envelope["event_type"], str(envelope["global_position"]), envelope["recorded_at"])
    assert inside == beside, f"the envelope says {inside}, what stands beside it {beside}"
    payload = b"\0" + data_schema_id.to_bytes(4, "big") + value[len(value) - len(row["payload"]) + 5 :]
    return envelope["stream_id"], payload, envelope["event_id"], envelope["event_type"], str(envelope["version"])


_LATE = ("ce_publishedafter", "ce_latenumber")


@dataclass
class _Partition:
    """What a reader of a partition has seen: the last position in order, the last number of a late record, and each stream's
    last version."""

    position: int = 0
    late: int = 0
    versions: dict[str, int] = field(default_factory=dict)


async def check_topics(
    database: asyncpg.Pool, bootstrap: str, prefix: str, *, at_least_once: bool = False, parked: Collection[int] = ()
) -> int:
    """Check that the topics, read committed, are the log: every event once, its bytes untouched, each partition in the order of
    positions, and each stream in the order of its versions; return how many events they hold. The envelope is in the headers
    or in the value.

    A record that comes late says so, and that all before it in its partition is at or below the position that it names. The
    events at positions `parked`, and no others, are not there. With `at_least_once` records may be there again: a reader that
    drops positions (of late records, numbers) at or below the last has each event once.

    Raises:
        AssertionError: what is missing, repeated, out of order or altered.
    """
    stored = {row["global_position"]: row for row in await database.fetch(_PUBLISHED)}
    envelopes = {row[0]: (row[1], fastavro.parse_schema(json.loads(row[2]))) for row in await database.fetch(_ENVELOPES)}
    seen: dict[int, str] = {}
    for category in sorted({row["stream_type"] for row in stored.values()}):
        partitions: defaultdict[int, _Partition] = defaultdict(_Partition)
        for message in await asyncio.to_thread(read_committed, bootstrap, f"{prefix}{category}"):
            headers = {name: value.decode() for name, value in message.headers()}
            position = int(headers["ce_globalposition"])
            where = f"{message.topic()}[{message.partition()}]@{message.offset()}"
            row = stored.get(position)
            assert row is not None, f"{where}: position {position} is not in the log"
            published = _published(message, headers, row, envelopes)
            expected = (row["stream_id"], row["payload"], row["id"], row["event_type"], str(row["version"]))
            assert published == expected, f"{where}: {published} was published, {expected} is stored"
            before = partitions[message.partition()]
            if at_least_once and _is_repeated(headers, position, before):
                assert position in seen, f"{where}: position {position} after {before.position}, for the first time"
                continue
            assert position not in seen, f"{where}: position {position} was published before, at {seen[position]}"
            if _LATE[0] in headers:
                after, number = (int(headers[name]) for name in _LATE)
                assert max(position, before.position) <= after, f"{where}: {position} late after {after}, behind {before}"
                assert number > before.late, f"{where}: late number {number} after {before.late}"
                before.late = number
            else:
                assert position > before.position, f"{where}: position {position} after {before.position}"
                follows = int(headers.get("ce_previousposition", before.position))
                assert follows == before.position, f"{where}: says that it follows {follows}, and follows {before.position}"
                before.position = position
            version = before.versions.get(row["stream_id"], 0) + 1
            assert row["version"] == version, f"{where}: {row['stream_id']} has version {row['version']} where {version} follows"
            before.versions[row["stream_id"]] = version
            seen[position] = where
    missing, aside = sorted(stored.keys() - seen.keys()), sorted(parked)
    assert missing == aside, f"{len(missing)} events are not on Kafka: {missing[:10]}; {len(aside)} are parked: {aside[:10]}"
    return len(seen)


def _is_repeated(headers: dict[str, str], position: int, before: _Partition) -> bool:
    """Whether a reader that has come so far takes a record for a repetition."""
    return int(headers[_LATE[1]]) <= before.late if _LATE[1] in headers else position <= before.position


async def check_read_model(database: asyncpg.Pool, *, log: asyncpg.Pool | None = None) -> None:
    """Check that the tables of `OrderTotals` equal a fold of the log, in the same database or another, and that every event was
    applied once.

    Raises:
        AssertionError: the first difference.
    """
    log = log or database
    expected = [tuple(row) for row in await log.fetch(ORDER_TOTALS)]
    actual = [tuple(row) for row in await database.fetch("SELECT * FROM order_totals ORDER BY customer_id")]
    assert actual == expected, (
        f"order_totals has {sorted(set(actual) - set(expected))[:4]}, right is {sorted(set(expected) - set(actual))[:4]}"
    )
    states = [tuple(row) for row in await log.fetch(ORDER_STATES)]
    actual = [tuple(row) for row in await database.fetch("SELECT * FROM order_states ORDER BY stream_id")]
    assert actual == states, f"order_states has {len(actual)} rows, {len(states)} are right"
    applied = await database.fetchval("SELECT coalesce(sum(events), 0) FROM projection_offsets WHERE projection = 'order_totals'")
    recorded = await log.fetchval("SELECT count(*) FROM events")
    assert applied == recorded, f"{applied} events were applied, {recorded} are recorded"


_HANDLED = """
SELECT global_position, stream_id, version, event_type FROM events
 WHERE stream_type = ANY($1::text[]) AND event_type IN ('OrderPlaced', 'OrderPaid') ORDER BY global_position"""

_CHECKED_TABLES = {
    "sums": "SELECT event_type, events, versions FROM sums",
    "chains": "SELECT stream_id, events, link FROM chains",
    "journal": "SELECT position, stream_id, version FROM journal",
    "journal_streams": "SELECT stream_id, falls FROM journal_streams",
    "entries": "SELECT position, stream_id, version FROM entries",
    "counts": "SELECT event_type, events FROM counts",
}


async def check_projection(database: asyncpg.Pool, projection: str, *, left_out: Collection[int] = (), log: asyncpg.Pool) -> int:
    """Check that the tables of a projection of the campaign equal a fold of the log, and that nothing is parked; return how many
    events were applied.

    Events that were skipped are left out of the fold; those at positions `left_out` may be.

    Raises:
        AssertionError: the first difference.
    """
    rows = await database.fetch("SELECT global_position, state, reason FROM projection_parked WHERE projection = $1", projection)
    parked = [tuple(row) for row in rows if row["state"] != "skipped"]
    assert not parked, f"{len(parked)} events are parked: {parked[:4]}"
    skipped = {row["global_position"] for row in rows}
    handled = [tuple(row) for row in await log.fetch(_HANDLED, list(CATEGORIES))]
    times = {row["position"]: row["times"] for row in await database.fetch("SELECT position, times FROM applied")}
    repeated = {position: count for position, count in times.items() if count != 1}
    assert not repeated, f"events were applied more than once: {repeated}"
    strange = times.keys() - {event[0] for event in handled}
    assert not strange, f"events were applied that are not in the log, or not to be handled: {sorted(strange)[:10]}"
    assert not skipped & times.keys(), f"events were skipped, and applied: {sorted(skipped & times.keys())[:10]}"
    missing = sorted({event[0] for event in handled} - times.keys() - skipped - set(left_out))
    assert not missing, f"{len(missing)} events were not applied: {missing[:10]}"
    expected = _folded(projection, [event for event in handled if event[0] in times])
    for table, right in expected.items():
        actual = Counter(tuple(row) for row in await database.fetch(_CHECKED_TABLES[table]))
        assert actual == Counter(right), f"{table} has {list((actual - Counter(right)).items())[:4]}, where the fold has " + repr(
            list((Counter(right) - actual).items())[:4]
        )
    return len(times)


def _folded(projection: str, events: list[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows that a projection's tables must have after these events (position, stream, version, type)."""
    by_type, by_stream = Counter(event[3] for event in events), Counter(event[1] for event in events)
    if projection == "sums":
        return {"sums": [(name, n, sum(event[2] for event in events if event[3] == name)) for name, n in by_type.items()]}
    if projection == "chains":
        links = dict.fromkeys(by_stream, "")
        for _, stream, version, _ in events:
            links[stream] = link(links[stream], version)
        return {"chains": [(stream, n, links[stream]) for stream, n in by_stream.items()]}
    rows = [event[:3] for event in events]
    if projection == "journal":
        return {"journal": rows, "journal_streams": [(stream, 0) for stream in by_stream]}
    return {"entries": rows, "counts": list(by_type.items())}


async def check_redis_read_model(database: asyncpg.Pool, client: Any) -> None:
    """Check the same of the rows in Redis; `client` is connected to it.

    Raises:
        AssertionError: the first difference.
    """

    async def rows(table: str, *columns: str) -> list[tuple[str, ...]]:
        keys = [key async for key in client.scan_iter(f"{{order_totals}}:{table}:*", count=5000)]
        return sorted([tuple(map(bytes.decode, await client.hmget(key, columns))) for key in keys])

    expected = sorted(tuple(map(str, row)) for row in await database.fetch(ORDER_TOTALS))
    actual = await rows("order_totals", "customer_id", "orders", "total_cents")
    assert actual == expected, (
        f"order_totals has {sorted(set(actual) - set(expected))[:4]}, right is {sorted(set(expected) - set(actual))[:4]}"
    )
    expected = sorted(tuple(map(str, row)) for row in await database.fetch(ORDER_STATES))
    actual = await rows("order_states", "stream_id", "version", "last_event")
    assert actual == expected, f"order_states has {len(actual)} rows, {len(expected)} are right"
    places = await client.hvals("{order_totals}::places")
    applied = sum(int(json.loads(place)["events"]) for place in places)
    recorded = await database.fetchval("SELECT count(*) FROM events")
    assert applied == recorded, f"{applied} events were applied, {recorded} are recorded"


def _beyond(rows: Collection[Any], others: Collection[Any]) -> list[Any]:
    """Return the first rows that others don't have."""
    return sorted(set(rows) - set(others))[:4]
