"""The hash chain: what it finds, and what it proves."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventspine import ANY, Event, EventspineError, IntegrityError, PostgresEventStore
from eventspine.store.postgres.audit import AuditReport, Proof, check_proof, prove, seal, steps, verify_log
from tests.event_types import EVENT_TYPES, paid, placed
from tests.unit.test_codec import EVERYTHING_DATA


async def fill(store: PostgresEventStore, rounds: int = 12, category: str = "Order") -> list[Event]:
    """Batches of several sizes: tags, metadata of all kinds, every Avro type, several streams."""
    for n in range(rounds):
        events = [
            placed(
                f"ä{n}",
                n,
                tags=("b", 'a"\\{}') if n % 2 else (),
                correlation_id=f"c{n}",
                nested={"x": [1.5, None, "ü"], "a": 1e22},
            ),
            Event(event_type="EverythingHappened", data=EVERYTHING_DATA),
        ]
        await asyncio.gather(*(store.append(f"{category}-{n}-{m}", category, [paid(m)], 0) for m in range(n % 5)))
        await store.append(f"{category}-1", category, events, ANY)
    return await store.read_all(limit=10_000)


async def tamper(pool: asyncpg.Pool, *statements: str) -> None:
    """What a superuser can do: past the triggers."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        for statement in statements:
            await connection.execute(statement)


def named(report: AuditReport) -> list[tuple[int, str]]:
    return [(finding.position, finding.kind) for finding in report.findings]


async def test_an_untouched_log_is_what_was_recorded(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    events = await fill(store)
    seen: list[tuple[int, int]] = []
    report = await verify_log(pool, on_progress=lambda done, of: seen.append((done, of)))
    assert (report.events, report.unsealed, report.findings) == (len(events), 0, [])
    assert report.links > 12
    assert report.head is not None
    assert report.head[0] == len(events)
    assert seen[-1] == (len(events), len(events))
    assert (await verify_log(pool, head=report.head)).findings == []


async def test_an_empty_log(pool: asyncpg.Pool) -> None:
    assert await verify_log(pool) == AuditReport(0, 0, 0, None, [])
    assert await seal(pool) == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("stream_id", "'Order-x'"), ("stream_type", "'Invoice'"), ("version", "version + 500"), ("id", "gen_random_uuid()"),
        ("event_type", "'OrderShipped'"), ("schema_version", "2"), ("payload", "payload || '\\x00'"),
        ("metadata", "metadata || '{\"user_id\": \"eve\"}'"), ("tags", "ARRAY['c']"), ("tags", "NULL"), ("tags", "'{}'"),
        ("created_at", "created_at + interval '1 microsecond'"),
    ],
)  # fmt: skip
async def test_an_altered_column_is_named(store: PostgresEventStore, pool: asyncpg.Pool, column: str, value: str) -> None:
    events = await fill(store)
    place = next(event.global_position for event in events if event.tags and event.global_position > 5)
    await tamper(pool, f"UPDATE events SET {column} = {value} WHERE global_position = {place}")
    report = await verify_log(pool)
    assert named(report) == [(place, "altered")]
    assert f"the event at position {place}" in report.findings[0].says


async def test_what_else_can_be_done_to_a_log(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    count = len(await fill(store))
    await tamper(pool, "UPDATE events SET event_data = event_data || '{\"total_cents\": 1000000}' WHERE global_position = 1")
    assert named(await verify_log(pool)) == [(1, "event_data altered")]
    await tamper(pool, "DELETE FROM events WHERE global_position IN (3, 4)")
    assert named(await verify_log(pool))[:3] == [(1, "event_data altered"), (3, "missing"), (4, "missing")]
    await tamper(
        pool,
        "UPDATE events SET global_position = 1000000 WHERE global_position = 6",
        "UPDATE events SET global_position = 6 WHERE global_position = 20",
        "UPDATE events SET global_position = 20 WHERE global_position = 1000000",
    )
    report = await verify_log(pool)
    assert [each for each in named(report) if each[1] == "swapped"] == [(6, "swapped"), (20, "swapped")]
    assert "the events at positions 6 and 20 were swapped" in [finding.says for finding in report.findings]
    assert report.events == count - 2


async def test_a_chain_that_was_altered_with_its_events(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await fill(store)
    head = (await verify_log(pool)).head
    assert head is not None
    # The leaf of the altered event is made right again: the link's digest tells.
    await tamper(
        pool,
        "UPDATE events SET metadata = '{}' WHERE global_position = 1",
        "UPDATE links SET leaves = (SELECT string_agg(event_digest(e), ''::bytea ORDER BY global_position) FROM events e "
        "WHERE e.global_position <= links.last_position) WHERE number = 1",
    )
    [finding] = (await verify_log(pool)).findings
    assert finding.kind == "link altered"
    # The whole chain is written anew: only a head that was kept elsewhere tells.
    await tamper(pool, "DELETE FROM links")
    await seal(pool, batch_events=7)
    assert (await verify_log(pool)).findings == []
    [finding] = (await verify_log(pool, head=head)).findings
    assert (finding.position, finding.kind) == (head[0], "head differs")


async def test_links_that_are_missing(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await fill(store)
    await tamper(pool, "DELETE FROM links WHERE number = 3")
    kinds = {finding.kind for finding in (await verify_log(pool)).findings}
    assert "link missing" in kinds


async def test_without_the_chain_events_are_sealed_later(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    without = PostgresEventStore(pool, hash_chain=False)
    await without.register(EVENT_TYPES)
    await fill(without, 4)
    await store.append("Order-9", "Order", [paid()], 0)  # the chain has a hole before it, so this one waits too
    report = await verify_log(pool)
    assert (report.links, report.unsealed, report.findings) == (0, report.events, [])
    assert await seal(pool, batch_events=4) == report.events
    await store.append("Order-9", "Order", [paid()], 1)
    report = await verify_log(pool)
    assert (report.unsealed, report.findings) == (0, [])
    assert report.links > 3


async def test_sealing_beside_writers(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    without = PostgresEventStore(pool, hash_chain=False)
    await without.register(EVENT_TYPES)
    await asyncio.gather(fill(store, 6), fill(without, 6, "Invoice"), *(seal(pool, batch_events=3) for _ in range(3)))
    await seal(pool)
    report = await verify_log(pool)
    assert (report.unsealed, report.findings) == (0, [])


# Proofs


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_the_path_to_the_end_is_short(number: int, further: int) -> None:
    path = steps(number, number + further)
    assert path[0] == number
    assert path[-1] == number + further
    for one, next_ in pairwise(path):
        assert one in (next_ - 1, next_ - (next_ & -next_))
    assert len(path) <= path[-1].bit_length() ** 2


async def test_a_proof_for_each_event(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    events = await fill(store)
    head = (await verify_log(pool)).head
    assert head is not None
    for event in events[:: len(events) // 10]:
        proof = await prove(pool, event.event_id)
        sent = msgspec.json.decode(msgspec.json.encode(proof), type=Proof)
        check_proof(sent, head[1])
        assert sent.id == event.event_id


async def test_a_proof_that_was_altered_proves_nothing(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    event = (await fill(store))[5]
    proof = await prove(pool, event.event_id)
    head = (await verify_log(pool)).head
    assert head is not None
    altered: list[dict[str, Any]] = [
        {"payload": proof.payload + b"\0"}, {"metadata": "{}"}, {"stream_id": "Order-2"}, {"global_position": 7}, {"tags": ["x"]},
        {"leaves": proof.leaves[32:]}, {"leaves": proof.leaves + bytes(32)}, {"path": proof.path[:-1]}, {"path": proof.path[1:]},
        {"path": []}, {"path": [(*proof.path[0][:2], bytes(32), *proof.path[0][3:]), *proof.path[1:]]},
    ]  # fmt: skip
    for change in altered:
        with pytest.raises(IntegrityError):
            check_proof(msgspec.structs.replace(proof, **change), head[1])
    with pytest.raises(IntegrityError):
        check_proof(proof, "00" * 32)


async def test_no_proof_for_what_is_not_there(pool: asyncpg.Pool, store: PostgresEventStore) -> None:
    with pytest.raises(EventspineError, match="there is no event"):
        await prove(pool, uuid4())
    without = PostgresEventStore(pool, hash_chain=False)
    await without.register(EVENT_TYPES)
    [recorded] = await without.append("Order-1", "Order", [paid()], 0)
    with pytest.raises(EventspineError, match="audit seal"):
        await prove(pool, recorded.event_id)
