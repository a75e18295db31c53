"""The store through a real PgBouncer in transaction mode: many clients, three connections to Postgres, nothing left on them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from pathlib import Path

import asyncpg
import msgspec
import pytest

import eventspine
from eventspine import (
    ANY,
    AppendCondition,
    ConcurrencyError,
    ConditionFailed,
    Event,
    PostgresEventStore,
    Query,
    QueryItem,
    Relay,
    SettingsError,
    StreamAppend,
    Unavailable,
    migrate,
)
from eventspine.connect import open_pool
from eventspine.store.postgres.audit import verify_log
from eventspine.store.postgres.bulk import Imported
from tests.event_types import EVENT_TYPES, paid, placed
from tests.integration.test_cli import run
from tests.oracle import check_acked, check_log, check_topics
from tests.pgbouncer import SERVER_CONNECTIONS, PgBouncer, pgbouncer
from tests.waiting import wait_for

__all__ = ["pgbouncer"]


@pytest.fixture
def through(pgbouncer: PgBouncer, database: str) -> str:
    """DSN of the test's database through PgBouncer, without saying so."""
    return pgbouncer.through(database)


@pytest.fixture
def dsn(through: str) -> str:
    return f"{through}?pgbouncer=true"


# Connections to this database, but for the one that asks.
_ON_SERVER = "SELECT count(DISTINCT pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

# What PgBouncer itself sets on a connection for each client is not left behind by us.
_LEFT_BEHIND = """
SELECT (SELECT count(*) FROM pg_prepared_statements) AS statements,
       (SELECT count(*) FROM pg_listening_channels()) AS channels,
       (SELECT count(*) FROM pg_cursors WHERE name <> '') AS cursors,
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
       (SELECT array_agg(name) FROM pg_settings WHERE source = 'session'
           AND name NOT IN ('client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings', 'application_name',
                            'transaction_isolation', 'transaction_read_only', 'transaction_deferrable')) AS settings"""


async def check_nothing_is_left(dsn: str) -> None:
    """Look at every connection that PgBouncer holds: transactions that are open at once are on different ones."""
    async with open_pool(dsn, max_connections=SERVER_CONNECTIONS) as pool, AsyncExitStack() as transactions:
        servers = set()
        for _ in range(SERVER_CONNECTIONS):
            connection = await transactions.enter_async_context(pool.acquire())
            await transactions.enter_async_context(connection.transaction())
            servers.add(await connection.fetchval("SELECT pg_backend_pid()"))
            left = dict(await connection.fetchrow(_LEFT_BEHIND) or {})
            assert left == {"statements": 0, "channels": 0, "cursors": 0, "locks": 0, "settings": None}
        assert len(servers) == SERVER_CONNECTIONS


def reached(many: int) -> Callable[[int], bool]:
    return lambda now: now >= many


def imported(events: int) -> Iterator[Event]:
    for n in range(events):
        yield msgspec.structs.replace(placed(f"i{n}", n, tags=(f"import:{n % 3}",)), stream_id=f"Import-{n % 11}")


async def test_all_that_a_store_does_at_once(dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    """20 connections of two stores, and of other processes, share 3 to Postgres."""
    acked: list[Event] = []
    conflicts = unmet = 0
    async with (
        eventspine.connect(dsn, event_types=EVENT_TYPES) as one,
        eventspine.connect(dsn) as two,
    ):
        stores = (one, two)

        async def append(worker: int) -> None:
            for n in range(15):
                acked.extend(await stores[n % 2].append(f"Order-{worker}", "Order", [placed(f"w{worker}", n)], ANY))
                acked.extend(await stores[worker % 2].append(f"Order-{worker}x{n}", "Order", [paid(n), paid(n)], 0))

        async def race(worker: int) -> None:
            """All want the next version of one stream."""
            nonlocal conflicts
            for _ in range(10):
                version = len(await stores[worker % 2].read_stream("Order-race"))
                try:
                    acked.extend(await stores[worker % 2].append("Order-race", "Order", [paid(worker)], version))
                except ConcurrencyError:
                    conflicts += 1

        async def claim(worker: int) -> None:
            """Each seat goes to one of all who want it."""
            nonlocal unmet
            for seat in range(10):
                taken = AppendCondition(Query(QueryItem(tags=[f"seat:{seat}"])))
                event = placed(f"w{worker}", seat, tags=(f"seat:{seat}",))
                try:
                    acked.extend(await stores[worker % 2].append(f"Seat-{seat}w{worker}", "Seat", [event], ANY, condition=taken))
                except ConditionFailed:
                    unmet += 1

        async def transact(worker: int) -> None:
            """A row of the user's and an event, together or not at all."""
            for n in range(10):
                async with stores[worker % 2].pool.acquire() as connection:
                    transaction = connection.transaction()
                    await transaction.start()
                    await connection.execute("INSERT INTO mine VALUES ($1, $2)", worker, n)
                    events = await stores[worker % 2].append(f"Mine-{worker}", "Mine", [paid(n)], ANY, connection=connection)
                    if n % 3:
                        await transaction.commit()
                        acked.extend(events)
                    else:
                        await transaction.rollback()

        async def append_pairs(worker: int) -> None:
            for n in range(10):
                pair = [StreamAppend(f"Pair-{worker}{side}{n}", "Pair", [paid(n)], 0) for side in "ab"]
                for events in await stores[n % 2].append_streams(pair):
                    acked.extend(events)

        async def keep(worker: int) -> None:
            for n in range(10):
                await stores[n % 2].save_checkpoint(f"subscription {worker}", n)
                await stores[n % 2].save_snapshot(f"Order-{worker}", "Order", {"n": n}, version=n)
            assert await one.load_checkpoint(f"subscription {worker}") == 9
            snapshot = await two.load_snapshot(f"Order-{worker}")
            assert snapshot is not None
            assert snapshot.state == {"n": 9}

        async def look(*arguments: str) -> None:
            """Run a command: another process, whose statements could have the names of ours."""
            for line in (await run(*arguments, dsn=dsn, folder=tmp_path)).splitlines():
                assert json.loads(line)

        seen: list[list[Event]] = [[], []]

        async def follow(number: int, store: PostgresEventStore) -> None:
            async for event in store.subscribe(batch_size=50, poll_s=0.05):
                seen[number].append(event)

        await pool.execute("CREATE TABLE mine (worker int, n int)")
        followers = [asyncio.create_task(follow(number, store)) for number, store in enumerate(stores)]
        work = [each(worker) for each in (append, race, claim, transact, append_pairs, keep) for worker in range(6)]
        work += [look("events", "tail", "--from", "0", "--json"), look("streams", "categories", "--json")]
        outcomes = await asyncio.gather(
            one.import_events("old", imported(500), batch_events=60),
            two.import_events("older", imported(200), batch_events=30),
            *work,
        )
        assert outcomes[:2] == [Imported(0, 500), Imported(0, 200)]

        n = await check_log(pool)
        await check_acked(pool, acked)
        assert n == len(acked) + 700
        race_won = await one.read_stream("Order-race")
        assert len(race_won) + conflicts == 60
        assert 10 + unmet == 60
        assert (
            await pool.fetchval("SELECT count(*) FROM mine") == 36 == len(await one.read(Query(QueryItem(categories=["Mine"]))))
        )
        for events in seen:
            await wait_for(partial(len, events), reached(n))
            assert [event.global_position for event in events] == list(range(1, n + 1))
        assert seen[0] == seen[1] == await one.read_all(limit=n)
        report = await verify_log(one.pool)
        assert (report.events, report.unsealed, report.findings) == (n, 0, [])
        assert await pool.fetchval(_ON_SERVER) <= SERVER_CONNECTIONS + pool.get_size() - 1
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
    await check_nothing_is_left(dsn)


async def test_a_subscription_is_late_by_no_more_than_it_polls(dsn: str) -> None:
    async with eventspine.connect(dsn, event_types=EVENT_TYPES) as store:
        subscription = store.subscribe(poll_s=0.2)
        numbers = count(1)
        for _ in range(5):
            following = asyncio.create_task(anext(subscription))
            await wait_for(lambda: subscription.caught_up)
            [recorded] = await store.append("Order-1", "Order", [paid()], ANY)
            async with asyncio.timeout(0.2 + 2.0):  # the second number is for a busy machine
                event = await following
            assert (event.event_id, event.global_position) == (recorded.event_id, next(numbers))
        await subscription.aclose()
    await check_nothing_is_left(dsn)


async def test_stores_go_on_when_the_connections_to_postgres_are_cut(dsn: str, pool: asyncpg.Pool) -> None:
    acked: list[Event] = []
    async with eventspine.connect(dsn, event_types=EVENT_TYPES) as store:

        async def append(worker: int) -> None:
            for n in range(30):
                acked.extend(await store.append(f"Order-{worker}", "Order", [paid(n)], n))

        async def cut() -> None:
            for share in range(1, 4):
                await wait_for(partial(len, acked), reached(share * 30))
                await pool.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND pid <> pg_backend_pid()"
                )

        await asyncio.gather(cut(), *(append(worker) for worker in range(8)))
    assert await check_log(pool) == len(acked) == 240
    await check_acked(pool, acked)


async def test_migrations_through_pgbouncer(pgbouncer: PgBouncer, empty_database: str) -> None:
    dsn = f"{pgbouncer.through(empty_database)}?pgbouncer=true"

    async def use(n: int) -> None:
        async with eventspine.connect(dsn, event_types=EVENT_TYPES) as store:
            await store.append(f"Order-{n}", "Order", [placed()], expected_version=0)

    await asyncio.gather(*(use(n) for n in range(6)))
    async with open_pool(dsn, max_connections=1) as pool:
        assert await check_log(pool) == 6
        async with pool.acquire() as connection:
            assert await migrate(connection) == []
    await check_nothing_is_left(dsn)


async def test_who_forgets_to_say_so_is_told(through: str, dsn: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"a pooler stands between .* add \?pgbouncer=true to the DSN"):
        async with eventspine.connect(through):
            pass
    assert "add ?pgbouncer=true to the DSN" in await run("events", "tail", dsn=through, folder=tmp_path, code=2)

    # With a pool of one's own, statements are sought where they were not prepared.
    async with asyncpg.create_pool(through, min_size=5, max_size=5) as own:
        store = PostgresEventStore(own)

        async def read_until_it_fails() -> None:
            while True:
                await asyncio.gather(*(store.read_all() for _ in range(20)))

        with pytest.raises(SettingsError, match=r"PgBouncer stands between.* statement_cache_size=0 to asyncpg\.create_pool"):
            await read_until_it_fails()

    # What they left behind harms nobody who says so. A client that logs in on a connection which PgBouncer is closing
    # after them is turned away, and may come again.
    async def is_let_in() -> bool:
        try:
            async with eventspine.connect(dsn):
                return True
        except Unavailable:
            return False

    await wait_for(is_let_in)
    async with eventspine.connect(dsn, event_types=EVENT_TYPES) as right:
        await asyncio.gather(*(right.append(f"Order-{n}", "Order", [paid()], 0) for n in range(20)))
        assert len(await right.read_all()) == 20


@pytest.mark.parametrize("said", ["pgbouncer=true", "pgbouncer=false", "search_path=one%2Cpublic&pgbouncer=true"])
async def test_a_server_without_pgbouncer_takes_the_option_too(database: str, said: str) -> None:
    async with eventspine.connect(f"{database}?{said}", event_types=EVENT_TYPES) as store:
        await store.append("Order-1", "Order", [paid()], 0)
        search_path = await store.pool.fetchval("SELECT current_setting('search_path')")
    assert search_path == ("one,public" if "search_path" in said else '"$user", public')


async def test_the_option_is_true_or_false(database: str) -> None:
    with pytest.raises(SettingsError, match="pgbouncer=perhaps in the DSN: say true"):
        async with open_pool(f"{database}?pgbouncer=perhaps"):
            pass


async def test_a_relay_polls(dsn: str, kafka: str, topic_prefix: str) -> None:
    """Its leases are rows, so it needs no session; it hears of appends by looking."""
    async with eventspine.connect(dsn, event_types=EVENT_TYPES) as store:
        relay = Relay(store.log, kafka, topic_prefix=topic_prefix, poll_s=0.05)
        running = asyncio.create_task(relay.run())
        await store.append("Order-1", "Order", [placed(), paid()], 0)
        await wait_for(lambda: relay.position, lambda position: position == 2, timeout_s=30)
        assert await check_topics(store.pool, kafka, topic_prefix) == 2
        relay.stop()
        await running
    await check_nothing_is_left(dsn)
