"""Projections built anew beside the live ones, and put in their place."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from eventspine import (
    Consumer,
    Event,
    Fenced,
    IntegrityError,
    PostgresEventStore,
    PostgresSink,
    Projection,
    ProjectionError,
    SettingsError,
    Sql,
    SqlWriter,
    Table,
    TableWriter,
    on,
)
from eventspine.consumers.folding import Folded, fold
from eventspine.consumers.places import Partition, Place
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from eventspine.consumers.rebuild import Rebuild
from eventspine.consumers.sides import Sides
from eventspine.consumers.sink import Work
from eventspine.relay.offsets import next_offsets
from tests.event_types import paid
from tests.integration.test_projection_sources import append, make_log_consumer, right, running
from tests.integration.test_relay_and_consumer import make_consumer, relaying
from tests.oracle import check_read_model
from tests.processes import processes
from tests.projections import OrderTotals
from tests.waiting import wait_for


def make_rebuild(store: PostgresEventStore, pool: asyncpg.Pool, projection: Projection | None = None) -> Rebuild:
    return Rebuild(projection or OrderTotals(), pool, store.log, load_event_types=store.log.pinned_types)


async def build(rebuild: Rebuild, parts: int = 3, **options: Any) -> None:
    parts, end = await rebuild.begin(parts, **options)
    await asyncio.gather(*(rebuild.build_part(part, parts, end) for part in range(parts)))
    await rebuild.complete(end)


async def spoil(pool: asyncpg.Pool) -> None:
    """Make the live rows wrong, as a mended mistake in a handler leaves them."""
    await pool.execute("UPDATE order_totals SET total_cents = total_cents + 1")
    await pool.execute("DELETE FROM order_states WHERE stream_id = (SELECT min(stream_id) FROM order_states)")


async def test_built_under_load_swapped_and_rolled_back(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    await append(store, "a", 60)
    rebuild = make_rebuild(store, pool)
    async with relaying(store, kafka, topic_prefix), running(make_consumer(store, pool, kafka, topic_prefix)):
        await right(pool)
        await spoil(pool)
        load = asyncio.create_task(append(store, "b", 150))
        await build(rebuild)
        position = await rebuild.swap()
        await load
        assert position >= 120
        await right(pool)
        await append(store, "c", 5)
        await right(pool)

        await rebuild.roll_back()  # to the spoilt ones, which catch up
        await append(store, "d", 5)
        expected = "SELECT sum((event_data ->> 'total_cents')::bigint) + 3 FROM events WHERE event_type = 'OrderPlaced'"
        wanted = await pool.fetchval(expected)
        await wait_for(lambda: pool.fetchval("SELECT sum(total_cents) FROM order_totals"), lambda seen: seen == wanted)

        await rebuild.roll_back()  # undone
        await right(pool)
        await rebuild.drop(old=True)
        with pytest.raises(ProjectionError, match="no old tables"):
            await rebuild.roll_back()
    assert await pool.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'order_totals@%'") == 0


async def test_a_topic_that_lost_records_is_followed_behind_what_is_built(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    def expire() -> None:
        """Remove all records from the topic, as a short retention does."""
        admin = AdminClient({"bootstrap.servers": kafka})
        ends = next_offsets(admin, [(f"{topic_prefix}Order", number) for number in range(3)], committed=False)
        asked = [TopicPartition(*partition, offset) for partition, offset in ends.items() if offset]
        for done in admin.delete_records(asked).values():
            done.result(20)

    def consumer() -> Consumer:
        return make_consumer(store, pool, kafka, topic_prefix)

    async with relaying(store, kafka, topic_prefix) as relay:
        await append(store, "a", 20)
        await wait_for(lambda: relay.position, lambda position: position == 40)
        await asyncio.to_thread(expire)
        with pytest.raises(IntegrityError, match="no longer has the next record"):
            await asyncio.wait_for(consumer().run(), 60)

        rebuild = make_rebuild(store, pool)
        await build(rebuild)
        await rebuild.swap()
        async with running(consumer()):
            await append(store, "b", 20)
            await right(pool)

        await append(store, "c", 20)  # and lost again before it was read
        await wait_for(lambda: relay.position, lambda position: position == 120)
        await asyncio.to_thread(expire)
        await append(store, "d", 20)
        with pytest.raises(IntegrityError, match=r"no longer has the next record|nobody knows what lay between"):
            await asyncio.wait_for(consumer().run(), 60)
        await build(rebuild)
        await rebuild.swap()
        async with running(consumer()):
            await append(store, "e", 20)
            await right(pool)


async def test_a_projection_of_the_log(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await append(store, "a", 20)
    rebuild = make_rebuild(store, pool)
    async with running(make_log_consumer(store, pool)):
        await right(pool)
        await spoil(pool)
    live = make_log_consumer(store, pool)
    task = asyncio.create_task(live.run())
    await build(rebuild)
    await append(store, "b", 5)
    await wait_for(lambda: live.state, lambda state: state == "consuming")
    await rebuild.swap()
    with pytest.raises(Fenced):  # its supervisor starts it again
        await asyncio.wait_for(task, 20)
    first = "SELECT partition FROM projection_offsets WHERE projection = 'order_totals'"
    assert [row[0] for row in await pool.fetch(first)] == [0]
    async with running(make_log_consumer(store, pool)):
        await append(store, "c", 5)
        await right(pool)


async def test_the_first_build_goes_on_from_kafka(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    await append(store, "a", 20)
    rebuild = make_rebuild(store, pool)
    await build(rebuild, parts=1)
    await rebuild.swap()
    await check_read_model(pool)
    async with relaying(store, kafka, topic_prefix), running(make_consumer(store, pool, kafka, topic_prefix)):
        await append(store, "b", 20)
        await right(pool)


async def test_what_is_not_complete_is_not_swapped(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    rebuild = make_rebuild(store, pool)
    await PostgresProjectionAdmin(pool).prepare()
    with pytest.raises(ProjectionError, match="run `projections rebuild` first"):
        await rebuild.swap()
    await append(store, "a", 20)
    parts, end = await rebuild.begin(3)
    assert (parts, end) == (3, 40)
    await rebuild.build_part(1, parts, end)
    with pytest.raises(ProjectionError, match="not come to position 40"):
        await rebuild.complete(end)
    with pytest.raises(ProjectionError, match="complete"):
        await rebuild.swap()
    await append(store, "b", 1)
    await build(rebuild, parts=7)  # goes on with three
    await rebuild.swap()
    await check_read_model(pool)


class Customers(Projection):
    """A changed OrderTotals: another table, another shape, under the same name."""

    name = "order_totals"
    migrations = ()
    totals = Table(
        "order_totals", columns={"customer_id": "text", "orders": "bigint", "mean": "numeric(10,2)"}, key="customer_id"
    )

    @on("OrderPlaced")
    def placed(self, event: Event, totals: TableWriter) -> None:
        row = totals.get(customer_id=event.data["customer_id"]) or {"orders": 0, "mean": 0}
        orders = row["orders"] + 1
        mean = (row["mean"] * row["orders"] + event.data["total_cents"]) / orders
        totals.upsert(customer_id=event.data["customer_id"], orders=orders, mean=mean)


async def test_a_changed_declaration_and_what_others_have_on_the_tables(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await append(store, "a", 30)
    async with running(make_log_consumer(store, pool)):
        await right(pool)
    role = f"reader_{await pool.fetchval('SELECT pg_backend_pid()')}"
    await pool.execute(f"CREATE ROLE {role}")
    try:
        await pool.execute(f"GRANT SELECT ON order_totals TO {role}")
        await pool.execute("CREATE VIEW best AS SELECT customer_id, orders FROM order_totals ORDER BY orders DESC LIMIT 1")
        await pool.execute("CREATE INDEX by_version ON order_states (version)")
        with pytest.raises(ProjectionError, match="projections rebuild"):
            await PostgresSink(pool).prepare(Customers())

        rebuild = make_rebuild(store, pool, Customers())
        await build(rebuild, parts=1)  # its rows are read, and streams share them
        [compared] = await rebuild.compare(examples=1)
        assert compared[:8] == ("order_totals", 60, 60, 3, 3, 0, 0, 0)
        assert compared.only_columns == ("mean", "total_cents")
        await rebuild.swap()
        await PostgresSink(pool).prepare(Customers())
        means = "SELECT customer_id, avg((event_data ->> 'total_cents')::bigint)::numeric(10,2) FROM events, "
        means += "jsonb_to_record(event_data) AS x(customer_id text) WHERE event_type = 'OrderPlaced' GROUP BY 1 ORDER BY 1"
        assert await pool.fetch("SELECT customer_id, mean FROM order_totals ORDER BY 1") == await pool.fetch(means)
        assert await pool.fetchval("SELECT orders FROM best") == 10
        await pool.execute("UPDATE order_totals SET orders = 11 WHERE customer_id = 'c1'")
        assert await pool.fetchval("SELECT orders FROM best") == 11, "the view reads the old table"
        assert await pool.fetchval("SELECT has_table_privilege($1, 'order_totals', 'SELECT')", role)

        same = make_rebuild(store, pool, Customers())
        await build(same, parts=1)
        [compared] = await same.compare()
        assert compared[:8] == ("order_totals", 60, 60, 3, 3, 0, 0, 1)
        assert compared.columns == {"orders": 1}
        assert compared.examples == [({"customer_id": "c1"}, {"orders": 11}, {"orders": 10})]

        await pool.execute("CREATE MATERIALIZED VIEW stuck AS SELECT * FROM order_totals")
        with pytest.raises(ProjectionError, match="drop stuck first"):
            await same.swap()
        await pool.execute("DROP MATERIALIZED VIEW stuck")
        await same.swap()
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_indexes_that_somebody_made_are_kept(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await append(store, "a", 3)
    async with running(make_log_consumer(store, pool)):
        await right(pool)
    await pool.execute("CREATE INDEX by_version ON order_states (version)")
    rebuild = make_rebuild(store, pool)
    await build(rebuild)
    await rebuild.swap()
    indexed = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename = 'order_states' ORDER BY 1"
    assert [row[0].partition(" USING ")[2] for row in await pool.fetch(indexed)] == ["btree (version)", "btree (stream_id)"]


async def test_a_table_in_use_is_waited_for(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await append(store, "a", 3)
    async with running(make_log_consumer(store, pool)):
        await right(pool)
        rebuild = make_rebuild(store, pool)
        await build(rebuild)
        async with pool.acquire() as reader, reader.transaction():
            assert await reader.fetchval("SELECT count(*) FROM order_totals") == 3
            swap = asyncio.create_task(rebuild.swap())
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%'"
            await wait_for(lambda: pool.fetchval(waits))
        await swap
        await right(pool)


async def test_a_small_batch_never_waits_for_a_swap_that_waits_for_it(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    """Postgres locks the tables of a statement before the statement waits for a row of offsets."""
    await append(store, "a", 3)
    projection, sink, partition = OrderTotals(), PostgresSink(pool), Partition("events.Order", 0)
    await sink.prepare(projection)
    before = (await sink.claim(projection, {partition: "id"})).places
    [event, *_] = await store.read_stream("Order-a0")
    folded = fold(projection, [event])
    work = Work(before, {partition: Place(1, 1, event.global_position, 1)}, folded, lambda _: folded, lambda _: [])
    assert folded.writes
    assert not folded.missing
    rebuild = make_rebuild(store, pool)
    await build(rebuild)
    writes: list[asyncio.Task[Folded]] = []

    async def write_meanwhile(position: int) -> None:
        writes.append(asyncio.create_task(sink.write(projection, work)))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

        async def waits_or_done() -> bool:
            return writes[0].done() or bool(await pool.fetchval(waits))

        await wait_for(waits_or_done)

    await Sides(pool, projection.name).swap(write_meanwhile, None)
    with pytest.raises(Fenced):
        await writes[0]
    assert await pool.fetchval("SELECT count(*) FROM order_states") == 3


class Notes(Projection):
    """Writes by SQL of its own; refuses what costs 13."""

    name = "notes"
    sql = Sql("CREATE TABLE IF NOT EXISTS notes (stream_id text PRIMARY KEY, said text[] NOT NULL)")

    @on("OrderPlaced", "OrderPaid")
    def happened(self, event: Event, sql: SqlWriter) -> None:
        if event.data.get("total_cents") == refused:
            raise ValueError("unlucky")
        sql.execute(
            "INSERT INTO notes AS mine VALUES ($1, ARRAY[$2]) ON CONFLICT (stream_id) DO UPDATE SET said = mine.said || $2",
            event.stream_id,
            event.event_type,
        )


refused = 13


class Careless(Projection):
    """Writes to a table that its own SQL does not make."""

    name = "careless"
    sql = Sql()

    @on("OrderPlaced")
    def happened(self, event: Event, sql: SqlWriter) -> None:
        sql.execute("INSERT INTO elsewhere VALUES ($1)", event.stream_id)


async def test_sql_of_its_own_never_meets_the_live_tables(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await append(store, "a", 5)
    await pool.execute("CREATE TABLE elsewhere (stream_id text)")
    rebuild = make_rebuild(store, pool, Careless())
    with pytest.raises(ProjectionError, match=r"finds only what the statements in Sql\(…\) make"):
        await build(rebuild)
    assert await pool.fetchval("SELECT count(*) FROM elsewhere") == 0
    rebuild = make_rebuild(store, pool, Notes())
    await build(rebuild)
    await rebuild.swap()
    assert await pool.fetchval("SELECT count(*) FROM notes WHERE said = '{OrderPlaced,OrderPaid}'") == 5


async def test_what_is_parked_in_a_build_waits_in_its_partition(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(store, "a", 20)  # number 13 costs 13
    notes = Notes()
    await PostgresProjectionAdmin(pool).prepare()
    async with relaying(store, kafka, topic_prefix):
        consumer = make_consumer(store, pool, kafka, topic_prefix, notes)
        async with running(consumer):
            taken = "SELECT coalesce(sum(events), 0) FROM projection_offsets WHERE projection = 'notes'"
            await wait_for(lambda: pool.fetchval(taken), lambda events: events == 40)
            rebuild = make_rebuild(store, pool, notes)
            await build(rebuild)
            with pytest.raises(SettingsError, match=r"parked events of 1 streams.*routing of your own"):
                await rebuild.swap()
            where = await pool.fetchrow("SELECT topic, partition FROM projection_parked WHERE projection = 'notes'")
            assert where is not None
            asked: list[Sequence[str]] = []

            def partitions_of(streams: Sequence[str]) -> Mapping[str, Partition]:
                asked.append(streams)
                return dict.fromkeys(streams, Partition(*where))

            await rebuild.swap(partitions_of)
            assert asked == [["Order-a13"]]
            await store.append("Order-a13", "Order", [paid(13)], expected_version=2)
            parked = "SELECT array_agg(state ORDER BY global_position) FROM projection_parked WHERE projection = 'notes'"
            await wait_for(lambda: pool.fetchval(parked), lambda states: states == ["parked", "waiting", "waiting"])
            monkeypatch.setattr("tests.integration.test_rebuild.refused", -1)
            await PostgresProjectionAdmin(pool).ask("notes", "retry")
            said = "SELECT said FROM notes WHERE stream_id = 'Order-a13'"
            await wait_for(lambda: pool.fetchval(said), lambda now: now == ["OrderPlaced", "OrderPaid", "OrderPaid"])


class Migrated(Projection):
    name = "migrated"
    migrations: ClassVar[Sequence[str]] = ()
    table = Table("migrated", columns={"id": "text", "total": "bigint"}, key="id")

    @on("OrderPlaced")
    def placed(self, event: Event, table: TableWriter) -> None:
        table.increment(id=event.data["customer_id"], total=event.data["total_cents"])


async def test_tables_are_migrated_once_in_order(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    class Longer(Migrated):
        migrations: ClassVar[Sequence[str]] = (
            "ALTER TABLE migrated ADD COLUMN note text",
            "ALTER TABLE migrated ADD COLUMN more int DEFAULT 7",
        )
        table = Table("migrated", columns=Migrated.table.columns | {"note": "text", "more": "int"}, key="id")

    class Changed(Longer):
        migrations: ClassVar[Sequence[str]] = ("ALTER TABLE migrated ADD COLUMN other text",)

    class Broken(Longer):
        migrations: ClassVar[Sequence[str]] = (*Longer.migrations, "ALTER TABLE migrated ADD COLUMN note text")

    Longer.name = Changed.name = Broken.name = "migrated"
    sink = PostgresSink(pool)
    await sink.prepare(Migrated())
    await pool.execute("INSERT INTO migrated VALUES ('a', 1)")
    for _ in range(2):
        await sink.prepare(Longer())
    assert tuple(await pool.fetchrow("SELECT * FROM migrated") or ()) == ("a", 1, None, 7)
    with pytest.raises(ProjectionError, match="a migration that ran was changed"):
        await sink.prepare(Changed())
    with pytest.raises(ProjectionError, match="ADD COLUMN note text' fails"):
        await sink.prepare(Broken())
    await pool.execute("DROP TABLE migrated")
    await sink.prepare(Longer())  # made as declared
    rebuild = make_rebuild(store, pool, Longer())
    await append(store, "a", 3)
    await build(rebuild)
    await rebuild.swap()
    await sink.prepare(Longer())
    assert await pool.fetchval("SELECT sum(total) FROM migrated") == 3


async def test_by_commands_killed_and_continued(
    store: PostgresEventStore, pool: asyncpg.Pool, database: str, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    await append(store, "a", 10)
    await asyncio.gather(*(append(store, f"b{n}-", 100) for n in range(10)))
    name = "tests.projections:OrderTotals"
    async with processes(database, kafka, topic_prefix, tmp_path) as run:
        parts = ["projections", "rebuild", name, "--processes", "2", "--no-swap"]
        slow: dict[str, Any] = {"consume_batch_events": 100}
        killed = 0
        first = run.command(parts, **slow)
        progress = "SELECT min(next_offset) FROM projection_offsets WHERE projection = 'order_totals@build'"
        while first.popen.poll() is None and killed < 4:
            children = first.children()
            if children:
                children[killed % len(children)].kill()
                killed += 1
            await asyncio.sleep(0.3)
        first.kill()
        assert killed
        again = run.command(parts, **slow)
        assert await again.ended(60) == 0, again.said
        assert "order_totals is built to position 2,020" in again.said
        assert await pool.fetchval(progress) == 2020
        compared = run.command(["projections", "diff", name])
        assert await compared.ended() == 1
        assert "there is no live table order_totals" in compared.said
        swapped = run.command(["projections", "swap", name])
        assert await swapped.ended() == 0, swapped.said
        await check_read_model(pool)
        await spoil(pool)
        whole = run.command(["projections", "rebuild", name, "--diff"])
        assert await whole.ended(60) == 0, whole.said
        assert "order_states: 1,009 rows live (position 2,020), 1,010 built" in whole.said
        assert "rows that differ by column: total_cents 3" in whole.said
        await check_read_model(pool)
        back = run.command(["projections", "rollback", name])
        assert await back.ended() == 0
        compared = run.command(["projections", "drop", name])
        assert await compared.ended() == 0
        assert await pool.fetchval("SELECT count(*) FROM order_states") == 1009
