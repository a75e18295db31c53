"""Poison events on a real table: found, set aside with their streams, retried, discarded; the others go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import asyncpg
import pytest

from eventspine import Event, Fenced, PostgresSink, Projection, ProjectionError, Table, TableWriter, Unavailable, on
from eventspine.consumers.engine import Engine
from eventspine.consumers.parked import Kept, Parked
from eventspine.consumers.places import Item, Partition
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from tests.waiting import wait_for

P0, P1 = Partition("events.Order", 0), Partition("events.Order", 1)


class Sums(Projection):
    """Its column takes small numbers only: Postgres refuses the others."""

    name = "sums"
    table = Table("sums", columns={"id": "text", "n": "smallint"}, key="id")
    rows = Table("sum_rows", columns={"position": "bigint", "n": "bigint"}, key="position")

    @on("Added")
    def added(self, event: Event, sums: TableWriter, rows: TableWriter) -> None:
        sums.increment(id=event.stream_id, n=event.data["n"])
        rows.insert(position=event.global_position, n=1)


class LenientSums(Sums):
    name = "sums"
    poison = "skip"


class HaltingSums(Sums):
    name = "sums"
    poison = "halt"


class Balances(Projection):
    """Reads its rows: batches are folded again when these are there."""

    table = Table("balances", columns={"id": "text", "n": "bigint"}, key="id")

    @on("Added")
    def added(self, event: Event, balances: TableWriter) -> None:
        before = balances.get(id=event.stream_id) or {"n": 0}
        balances.upsert(id=event.stream_id, n=before["n"] + event.data["n"])


def item(position: int, stream: str, n: object, *, offset: int | None = None) -> Item:
    event = Event(event_type="Added", data={"n": n}, stream_id=stream, version=1, global_position=position)
    return Item(P0, position - 1 if offset is None else offset, position, 0, "Added", stream, event, raw=event)


class Bench:
    """An engine on one partition, whose records are kept in memory."""

    def __init__(self, pool: asyncpg.Pool, projection: Projection) -> None:
        self.mended: dict[int, object] = {}
        self.pool = pool
        self.sink = PostgresSink(pool)
        self.projection = projection
        self.engine = Engine(
            projection, self.sink, keep=lambda item: Kept(b"{}", b"key", str(item.event).encode()), read=self.read
        )
        self.seen: dict[int, Item] = {}

    async def start(self) -> Bench:
        await self.sink.prepare(self.projection)
        await self.engine.claim({P0: ""})
        return self

    async def read(self, rows: Sequence[Parked]) -> list[Item]:
        items = [self.seen[row.position]._replace(raw=row) for row in rows]
        return [
            item(each.position, each.stream_id, self.mended.get(each.position, each.event.data["n"]))._replace(raw=each.raw)
            for each in items
            if each.event
        ]

    async def apply(self, *items: Item) -> None:
        self.seen |= {each.position: each for each in items}
        staged = self.engine.stage(items)
        if staged is not None:
            await self.engine.write(staged)

    async def sums(self) -> dict[str, int]:
        return {row["id"]: row["n"] for row in await self.pool.fetch("SELECT id, n FROM sums")}

    async def parked(self) -> list[tuple[int, str, int]]:
        rows = await self.pool.fetch("SELECT global_position, state, tries FROM projection_parked ORDER BY 1")
        return [tuple(row) for row in rows]

    async def ask(self, stream: str, what: str) -> None:
        await PostgresProjectionAdmin(self.pool).ask(self.projection.name, what, stream)
        await self.engine.look_at_parked()


HUGE = 10**6


async def test_what_postgres_refuses_is_found_and_its_stream_parked(pool: asyncpg.Pool) -> None:
    bench = await Bench(pool, Sums()).start()
    clean = [item(position, f"Order-{position % 7}", 1) for position in range(1, 40)]
    clean[10], clean[20] = item(11, "Order-x", HUGE), item(21, "Order-x", 1)
    clean[30] = item(31, "Order-y", "a text")
    await bench.apply(*clean)
    assert await bench.parked() == [(11, "parked", 1), (21, "waiting", 0), (31, "parked", 1)]
    assert sum((await bench.sums()).values()) == 36
    assert await pool.fetchval("SELECT count(*) FROM sum_rows") == 36
    await bench.apply(item(40, "Order-x", 1), item(41, "Order-1", 1))
    assert (await bench.parked())[-1] == (40, "waiting", 0)
    place = bench.engine.places[P0]
    assert (place.next_offset, place.last_position, place.events) == (41, 41, 41)
    assert await pool.fetchval("SELECT next_offset FROM projection_offsets") == 41


async def test_retry_in_vain_and_retry_that_mends(pool: asyncpg.Pool) -> None:
    bench = await Bench(pool, Sums()).start()
    await bench.apply(item(1, "Order-x", 1), item(2, "Order-x", HUGE), item(3, "Order-x", 2), item(4, "Order-x", 3))
    await bench.ask("Order-x", "retry")
    assert await bench.parked() == [(2, "parked", 2), (3, "waiting", 0), (4, "waiting", 0)]
    assert await bench.sums() == {"Order-x": 1}
    bench.mended[2] = 5
    bench.mended[4] = HUGE
    await bench.ask("Order-x", "retry")
    assert await bench.parked() == [(4, "parked", 1)]
    assert await bench.sums() == {"Order-x": 8}
    bench.mended.clear()
    await bench.ask("Order-x", "retry")
    assert await bench.parked() == []
    await bench.apply(item(5, "Order-x", 1))
    assert await bench.sums() == {"Order-x": 12}


async def test_discard_one_or_all(pool: asyncpg.Pool) -> None:
    bench = await Bench(pool, Sums()).start()
    for stream in ("Order-x", "Order-y"):
        start = 1 if stream == "Order-x" else 4
        await bench.apply(item(start, stream, HUGE), item(start + 1, stream, 2), item(start + 2, stream, 3))
    await bench.ask("Order-x", "discard")
    await bench.ask("Order-y", "discard-all")
    assert await bench.parked() == []
    assert await bench.sums() == {"Order-x": 5}
    await bench.apply(item(7, "Order-y", 1))
    assert await bench.sums() == {"Order-x": 5, "Order-y": 1}


async def test_another_owner_knows_what_is_parked(pool: asyncpg.Pool) -> None:
    first = await Bench(pool, Sums()).start()
    await first.apply(item(1, "Order-x", HUGE))
    second = await Bench(pool, Sums()).start()
    await second.apply(item(2, "Order-x", 1))
    assert await second.parked() == [(1, "parked", 1), (2, "waiting", 0)]
    with pytest.raises(Fenced):
        await first.apply(item(2, "Order-x", 1))


async def test_what_was_parked_is_retried_under_a_policy_that_skips(pool: asyncpg.Pool) -> None:
    """Two of three are refused again, and none holds the others up."""
    parking = await Bench(pool, Sums()).start()
    await parking.apply(item(1, "Order-x", HUGE), item(2, "Order-x", 2), item(3, "Order-x", HUGE), item(4, "Order-x", 4))
    skipping = await Bench(pool, LenientSums()).start()
    skipping.seen = parking.seen
    async with asyncio.timeout(20):
        await skipping.ask("Order-x", "retry")
    assert await skipping.parked() == [(1, "skipped", 2), (3, "skipped", 1)]
    assert await skipping.sums() == {"Order-x": 6}
    await skipping.apply(item(5, "Order-x", 1))
    assert await skipping.sums() == {"Order-x": 7}


async def test_skip_keeps_what_it_skipped_for_people(pool: asyncpg.Pool) -> None:
    bench = await Bench(pool, LenientSums()).start()
    await bench.apply(item(1, "Order-x", HUGE), item(2, "Order-x", 2))
    assert await bench.parked() == [(1, "skipped", 1)]
    assert await bench.sums() == {"Order-x": 2}


async def test_halt_writes_nothing_behind(pool: asyncpg.Pool) -> None:
    bench = await Bench(pool, HaltingSums()).start()
    with pytest.raises(ProjectionError, match=r"global position 2.*Postgres refuses it"):
        await bench.apply(item(1, "Order-x", 1), item(2, "Order-x", HUGE), item(3, "Order-y", 2))
    again = await Bench(pool, Sums()).start()
    assert again.engine.places[P0].next_offset == 1


async def test_rows_are_read_anew_for_each_batch(pool: asyncpg.Pool) -> None:
    """By an owner that has read them before, and by the next one."""
    first = await Bench(pool, Balances()).start()
    for position in range(1, 5):
        await first.apply(item(position, "Order-x", position))
    second = await Bench(pool, Balances()).start()
    await second.apply(item(5, "Order-x", 5))
    third = await Bench(pool, Balances()).start()
    await third.apply(item(6, "Order-x", 6), item(7, "Order-x", 7))
    assert await pool.fetchval("SELECT n FROM balances") == 28


async def test_a_crash_after_a_discard_discards_no_other(pool: asyncpg.Pool) -> None:
    """The event behind the discarded one is refused too, and set aside anew; then the connection is lost."""
    bench = await Bench(pool, Sums()).start()
    await bench.apply(item(1, "Order-x", HUGE), item(2, "Order-x", HUGE), item(3, "Order-x", 3), item(4, "Order-x", 4))
    await PostgresProjectionAdmin(pool).ask("sums", "discard", "Order-x")
    async with pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("SELECT FROM projection_parked WHERE global_position = 3 FOR UPDATE")
        asking = asyncio.create_task(bench.engine.look_at_parked())
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        pid = await wait_for(lambda: pool.fetchval(waiting))
        assert await bench.parked() == [(2, "parked", 1), (3, "waiting", 0), (4, "waiting", 0)]
        await pool.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(Unavailable):
            await asking
    heir = await Bench(pool, Sums()).start()
    heir.seen = bench.seen
    await heir.engine.look_at_parked()
    assert await heir.parked() == [(2, "parked", 2), (3, "waiting", 0), (4, "waiting", 0)]
    heir.mended[2] = 2
    await heir.ask("Order-x", "retry")
    assert await heir.sums() == {"Order-x": 9}


async def test_what_is_staged_of_a_partition_that_was_given_up_is_not_written(pool: asyncpg.Pool) -> None:
    """Its streams that are parked are not known any more; and it may be ours again, under another epoch."""
    bench = await Bench(pool, Balances()).start()
    await bench.engine.claim({P1: ""})
    await bench.apply(item(1, "Order-x", "a text"), item(2, "Order-y", 1))
    mine, gone = item(3, "Order-z", 1, offset=0)._replace(partition=P1), item(4, "Order-x", 1, offset=2)
    for again in (False, True):
        staged = bench.engine.stage([gone, mine])
        assert staged is not None
        bench.engine.release([P0])
        if again:
            await bench.engine.claim({P0: ""})
        await bench.engine.write(staged)
        assert await bench.parked() == [(1, "parked", 1)]
        assert await pool.fetchval("SELECT next_offset FROM projection_offsets WHERE partition = 0") == 2
        if not again:
            await bench.engine.claim({P0: ""})
            mine = item(5, "Order-z", 1, offset=1)._replace(partition=P1)
    assert [tuple(row) for row in await pool.fetch("SELECT id, n FROM balances ORDER BY id")] == [("Order-y", 1), ("Order-z", 2)]
    await bench.apply(gone)
    assert await bench.parked() == [(1, "parked", 1), (4, "waiting", 0)]


async def test_an_owner_that_is_relieved_in_the_middle_of_a_retry_writes_nothing(pool: asyncpg.Pool) -> None:
    """A retry moves no offset: only the epoch tells that somebody else may have done it, too."""
    bench = await Bench(pool, Sums()).start()
    await bench.apply(item(1, "Order-x", HUGE))
    bench.mended[1] = 1
    await PostgresProjectionAdmin(pool).ask("sums", "retry")
    async with pool.acquire() as heir, heir.transaction():
        await heir.execute("UPDATE projection_offsets SET epoch = epoch + 1")
        retrying = asyncio.create_task(bench.engine.look_at_parked())
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        await wait_for(lambda: pool.fetchval(waiting))
    with pytest.raises(Fenced):
        await retrying
    assert await bench.parked() == [(1, "parked", 1)]
    assert await bench.sums() == {}


async def test_a_reset_forgets_what_was_parked_while_it_waited(pool: asyncpg.Pool) -> None:
    """What it left parked would be retried, and applied again when its record comes again."""
    bench = await Bench(pool, Sums()).start()
    await bench.apply(item(1, "Order-x", HUGE))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("LOCK TABLE sums IN EXCLUSIVE MODE")
        writing = asyncio.create_task(bench.apply(item(2, "Order-x", 1), item(3, "Order-y", 1)))
        await wait_for(lambda: pool.fetchval(waiting), lambda count: count == 1)
        resetting = asyncio.create_task(PostgresProjectionAdmin(pool).reset(bench.projection))
        await wait_for(lambda: pool.fetchval(waiting), lambda count: count == 2)
    await writing
    assert await resetting == 1
    assert await bench.parked() == []
    assert await bench.sums() == {}
    with pytest.raises(Fenced):
        await bench.engine.look_at_parked()


async def test_a_process_that_freezes_in_its_transaction_holds_up_nobody_for_ever(pool: asyncpg.Pool) -> None:
    class Frozen(Balances):
        name = "balances"
        frozen = False

        @on("Added")
        def added(self, event: Event, balances: TableWriter) -> None:
            balances.get(id=event.stream_id)
            if self.frozen:
                time.sleep(1.0)  # as if the process was stopped, between reading rows and writing them
            balances.upsert(id=event.stream_id, n=1)

    projection = Frozen()
    frozen = Bench(pool, projection)
    frozen.engine = Engine(
        projection, PostgresSink(pool, idle_timeout_s=0.2), keep=lambda item: Kept(b"{}", b"key", b""), read=frozen.read
    )
    await frozen.start()
    projection.frozen = True
    with pytest.raises(Unavailable):
        await frozen.apply(item(1, "Order-1", 1))
    heir = await Bench(pool, Balances()).start()
    await heir.apply(item(1, "Order-1", 5))
    assert await pool.fetchval("SELECT n FROM balances") == 5
    assert await pool.fetchval("SHOW idle_in_transaction_session_timeout") == "0"
