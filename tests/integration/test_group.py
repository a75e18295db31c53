"""Competing consumers on Postgres."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventspine import ANY, Event, PostgresEventStore, SettingsError
from eventspine.schemas.postgres import load_sql
from eventspine.store.postgres.group import Bucket, WorkerGroup, bucket_positions
from tests.event_types import paid
from tests.waiting import wait_for

SQL = "eventspine.store.postgres"


async def append(store: PostgresEventStore, count: int, streams: int = 20, seed: int = 1) -> None:
    dice = random.Random(seed)
    for n in range(count):
        await store.append(f"Order-{dice.randrange(streams)}", "Order", [paid(n)], ANY)


@asynccontextmanager
async def running(*workers: WorkerGroup) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks)


class Ledger:
    """What handlers saw: in order for each stream, and by which worker."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.by: dict[int, list[str]] = {}
        self.at_work: Counter[str] = Counter()

    def handler(self, worker: str) -> Callable[[Event], Awaitable[None]]:
        async def handle(event: Event) -> None:
            self.at_work[event.stream_id] += 1
            assert self.at_work[event.stream_id] == 1, f"{event.stream_id} is handled twice at once"
            await asyncio.sleep(0)
            self.seen.append(event)
            self.by.setdefault(event.global_position, []).append(worker)
            self.at_work[event.stream_id] -= 1

        return handle

    def versions(self) -> dict[str, list[int]]:
        versions: dict[str, list[int]] = {}
        for event in self.seen:
            versions.setdefault(event.stream_id, []).append(event.version)
        return versions


def make(store: PostgresEventStore, handle: Callable[[Event], Awaitable[None]], **options: Any) -> WorkerGroup:
    settings: dict[str, Any] = {"buckets": 8, "poll_s": 0.2, "lease_s": 3.0, "first_pause_s": 0.01, "max_tries": 3}
    return WorkerGroup(store, "mails", "Order", handle, **(settings | options))


async def test_workers_share_the_streams_and_keep_their_order(store: PostgresEventStore) -> None:
    ledger = Ledger()
    await append(store, 100)
    await store.append("Invoice-1", "Invoice", [paid()], ANY)
    workers = [make(store, ledger.handler(f"w{n}"), batch_events=7) for n in range(3)]
    async with running(*workers):
        await append(store, 200, seed=2)
        await wait_for(lambda: len(ledger.seen), lambda count: count == 300)
        await wait_for(lambda: sorted(len(worker.buckets) for worker in workers), lambda held: held == [2, 3, 3])
        await append(store, 100, seed=3)
        await wait_for(lambda: len(ledger.seen), lambda count: count == 400)
    assert all(versions == list(range(1, len(versions) + 1)) for versions in ledger.versions().values())
    assert sum(worker.events for worker in workers) == 400
    assert len({name for names in ledger.by.values() for name in names}) == 3


async def test_a_worker_that_stops_leaves_its_buckets_to_the_others(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    ledger = Ledger()
    first, second = (make(store, ledger.handler(name), lease_s=30) for name in "ab")
    async with running(second):
        async with running(first):
            await wait_for(lambda: (len(first.buckets), len(second.buckets)), lambda held: held == (4, 4), timeout_s=30)
        await wait_for(lambda: len(second.buckets), lambda held: held == 8)
        await append(store, 50)
        await wait_for(lambda: len(ledger.seen), lambda count: count == 50)
    assert await pool.fetchval("SELECT count(*) FROM group_buckets WHERE worker_id IS NOT NULL") == 0


async def test_a_silent_worker_loses_its_buckets_and_can_not_move_them(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    """It sleeps in a handler, lease and all, until another has taken over and gone on."""
    ledger = Ledger()
    await append(store, 30)
    entered, wake = asyncio.Event(), asyncio.Event()

    async def sleep(event: Event) -> None:
        entered.set()
        await wake.wait()

    sleeper = make(store, sleep, worker_id="sleeper", lease_s=1.0)
    sleeper._keep_lease = wake.wait  # type: ignore[assignment, method-assign]
    async with running(sleeper):
        await entered.wait()
        async with running(make(store, ledger.handler("awake"), lease_s=1.0)):
            await wait_for(lambda: len(ledger.seen), lambda count: count == 30)
            before = await pool.fetch("SELECT bucket, last_position FROM group_buckets ORDER BY bucket")
            await append(store, 5)
            await wait_for(lambda: len(ledger.seen), lambda count: count == 35)
            wake.set()
        assert before
    assert sum(names == ["awake"] for names in ledger.by.values()) == 35


async def test_a_poison_event_parks_its_stream_and_no_other(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    ledger = Ledger()
    broken = True
    record = ledger.handler("w")

    async def handle(event: Event) -> None:
        if broken and event.stream_id == "Order-3" and event.version == 2:
            raise ValueError("the printer is on fire")
        await record(event)

    for n in range(1, 6):
        for version in range(4):
            await store.append(f"Order-{n}", "Order", [paid()], version)
    parked = load_sql(SQL, "sql/list_parked")
    async with running(make(store, handle, batch_events=6)):
        await wait_for(lambda: len(ledger.seen), lambda count: count == 17)
        await store.append("Order-3", "Order", [paid()], 4)  # comes later, and waits behind it
        rows = await wait_for(lambda: pool.fetch(parked, "mails"), lambda rows: len(rows) == 4)
        assert [(row["stream_id"], row["tries"]) for row in rows] == [("Order-3", 3), *[("Order-3", 0)] * 3]
        assert rows[0]["reason"] == "ValueError: the printer is on fire"

        await pool.execute(load_sql(SQL, "sql/retry_parked"), "mails", "Order-3")  # still broken
        rows = await wait_for(lambda: pool.fetch(parked, "mails"), lambda rows: rows[0]["tries"] == 6)
        assert [row["retry"] for row in rows] == [False] * 4
        broken = False
        await pool.execute(load_sql(SQL, "sql/retry_parked"), "mails", None)
        await wait_for(lambda: pool.fetch(parked, "mails"), lambda rows: not rows)
        await store.append("Order-3", "Order", [paid()], 5)
        await wait_for(lambda: len(ledger.seen), lambda count: count == 22)
    assert ledger.versions()["Order-3"] == [1, 2, 3, 4, 5, 6]


async def test_a_discarded_event_lets_those_behind_it_go_on(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    ledger = Ledger()
    record = ledger.handler("w")

    async def handle(event: Event) -> None:
        if event.version == 1:
            raise ValueError("never")
        await record(event)

    await store.append("Order-1", "Order", [paid(), paid(), paid()], 0)
    async with running(make(store, handle, max_tries=1)):
        await wait_for(lambda: pool.fetch(load_sql(SQL, "sql/list_parked"), "mails"), lambda rows: len(rows) == 3)
        assert await pool.fetchval(load_sql(SQL, "sql/discard_parked"), "mails", "Order-1") == 1
        await pool.execute(load_sql(SQL, "sql/retry_parked"), "mails", None)
        await wait_for(lambda: len(ledger.seen), lambda count: count == 2)
    assert ledger.versions() == {"Order-1": [2, 3]}


async def test_connections_cut_again_and_again(store: PostgresEventStore, pool: asyncpg.Pool, postgres: str) -> None:
    """At least once, each stream in order: repeats are allowed, gaps and inversions are not."""
    ledger = Ledger()
    workers = [make(store, ledger.handler(f"w{n}"), batch_events=5) for n in range(2)]
    server = await asyncpg.connect(postgres)
    name = await pool.fetchval("SELECT current_database()")
    async with running(*workers):
        for round_ in range(5):
            await append(store, 40, seed=round_)
            await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        await wait_for(lambda: len({event.event_id for event in ledger.seen}), lambda count: count == 200, timeout_s=40)
    await server.close()
    for versions in ledger.versions().values():
        for n, version in enumerate(versions):
            assert version == 1 or version - 1 in versions[:n]


async def test_a_group_keeps_its_category_and_buckets(store: PostgresEventStore) -> None:
    ledger = Ledger()
    async with running(make(store, ledger.handler("w"))):
        pass
    async with running(make(store, ledger.handler("w"))):
        await append(store, 3)
        await wait_for(lambda: len(ledger.seen), lambda count: count == 3)
    with pytest.raises(SettingsError, match="exists with category 'Order' and 8 buckets"):
        await make(store, ledger.handler("w"), buckets=9).run()


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=5),
    st.lists(st.integers(1, 60), max_size=8, unique=True),
    st.integers(0, 80),
    st.integers(1, 4),
)
def test_no_bucket_moves_beyond_what_was_read(last: list[int], places: list[int], beyond: int, limit: int) -> None:
    """Whatever a cut batch leaves out of a bucket lies behind the position to which the bucket moves."""
    held = [Bucket(number, 1, position) for number, position in enumerate(last)]
    owner = {place: place % len(last) for place in places}
    end = max([*places, *last]) + beyond
    due = sorted(place for place in places if place > last[owner[place]])
    batch = [Event(event_type="x", data={}, global_position=place) for place in due[:limit]]
    moved = bucket_positions(held, batch, end=end, full=len(batch) == limit)
    for place in due[limit:]:
        assert place > moved[owner[place]]
    assert all(moved[bucket.number] >= bucket.last_position for bucket in held)
    if len(batch) < limit:
        assert set(moved.values()) == {end}
