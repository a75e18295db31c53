"""The same projection from Kafka and from the log; parked events and the commands that look after them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from eventspine import (
    Consumer,
    Event,
    Fenced,
    LogConsumer,
    PostgresEventStore,
    PostgresSink,
    Projection,
    ProjectionError,
    Sql,
    SqlWriter,
    on,
)
from eventspine.connect import open_pool
from tests.event_types import paid, placed
from tests.integration.test_relay_and_consumer import make_consumer, relaying
from tests.oracle import check_read_model
from tests.processes import processes
from tests.projections import OrderTotals
from tests.waiting import wait_for


def make_log_consumer(store: PostgresEventStore, pool: asyncpg.Pool, **options: Any) -> LogConsumer:
    return LogConsumer(OrderTotals(), PostgresSink(pool), store.log, load_event_types=store.log.pinned_types, **options)


@asynccontextmanager
async def running(consumer: Consumer | LogConsumer) -> AsyncIterator[None]:
    task = asyncio.create_task(consumer.run())
    try:
        yield
    finally:
        consumer.stop()
        await task


async def append(store: PostgresEventStore, name: str, orders: int) -> None:
    for number in range(orders):
        await store.append(f"Order-{name}{number}", "Order", [placed(f"c{number % 3}", number), paid(number)], expected_version=0)


class Untidy(Projection):
    """Its own SQL leaves a setting and a lock on the connection; each second event is refused after that."""

    sql = Sql("SELECT set_config('eventspine.test', 'left', false)", "SELECT pg_advisory_lock(7)")

    @on("OrderPlaced", "OrderPaid")
    def happened(self, event: Event, sql: SqlWriter) -> None:
        sql.execute("SELECT set_config('eventspine.test', $1, false)", event.stream_id)
        sql.execute("SELECT pg_advisory_lock($1)", event.global_position)
        sql.execute("SELECT 1 / $1::int", event.version % 2)


async def test_nothing_of_somebodys_own_sql_stays_on_a_connection(store: PostgresEventStore, database: str) -> None:
    async with open_pool(database, max_connections=1) as pool:
        await append(store, "a", 3)
        sink = PostgresSink(pool)
        await sink.prepare(Untidy())
        consumer = LogConsumer(Untidy(), sink, store.log, load_event_types=store.log.pinned_types)
        async with running(consumer):
            await wait_for(lambda: pool.fetchval("SELECT count(*) = 3 FROM projection_parked"), timeout_s=30)
        assert await pool.fetchval("SELECT coalesce(current_setting('eventspine.test', true), '')") == ""
        assert await pool.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def right(pool: asyncpg.Pool) -> None:
    async def look() -> str:
        try:
            await check_read_model(pool)
        except (AssertionError, asyncpg.PostgresError) as missing:
            return str(missing)
        return ""

    await wait_for(look, lambda said: not said, timeout_s=30, every_s=0.1)


async def test_from_the_log_and_on_from_kafka(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str
) -> None:
    await append(store, "a", 30)
    async with running(make_log_consumer(store, pool, batch_events=7)):
        await right(pool)
        await append(store, "b", 10)
        await right(pool)
    async with relaying(store, kafka, topic_prefix):
        await append(store, "c", 10)
        async with running(make_consumer(store, pool, kafka, topic_prefix)):
            await append(store, "d", 10)
            await right(pool)
    with pytest.raises(ProjectionError, match="has gone on from Kafka"):
        await make_log_consumer(store, pool).run()


async def test_a_second_process_takes_the_log_over(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    first, second = make_log_consumer(store, pool), make_log_consumer(store, pool)
    task = asyncio.create_task(first.run())
    await append(store, "a", 3)
    await right(pool)
    async with running(second):
        await wait_for(lambda: second.state, lambda state: state == "consuming")
        await append(store, "b", 3)
        with pytest.raises(Fenced, match="one process at a time"):
            await asyncio.wait_for(task, 20)
        await right(pool)


async def test_parked_listed_and_retried_by_commands(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, database: str, tmp_path: Path
) -> None:
    """The database refuses one customer, until somebody mends that."""
    async with processes(database, kafka, topic_prefix, tmp_path) as run, relaying(store, kafka, topic_prefix):

        async def command(*arguments: str, code: int = 0) -> str:
            process = run.command(["projections", *arguments])
            assert await process.ended(60) == code, process.said
            return process.said

        consumer = run.consumer()
        await append(store, "a", 5)
        await right(pool)
        await pool.execute("ALTER TABLE order_totals ADD CONSTRAINT no_poison CHECK (customer_id <> 'poison')")
        await store.append("Order-p", "Order", [placed("poison"), paid(1)], expected_version=0)
        await append(store, "b", 5)

        async def parked() -> list[Any]:
            return [tuple(row) for row in await pool.fetch("SELECT stream_id, version, state FROM parked_versions")]

        await pool.execute(
            "CREATE VIEW parked_versions AS SELECT p.stream_id, e.version, p.state FROM projection_parked p JOIN events e "
            "USING (global_position) ORDER BY 2"
        )
        await wait_for(parked, lambda seen: seen == [("Order-p", 1, "parked"), ("Order-p", 2, "waiting")], timeout_s=30)
        listed = json.loads(await command("parked", "list", "order_totals", "--json"))
        assert [(each["stream"], each["state"]) for each in listed] == [("Order-p", "parked"), ("Order-p", "waiting")]
        assert "no_poison" in listed[0]["reason"]
        shown = [json.loads(line) for line in (await command("parked", "show", "order_totals", "Order-p")).splitlines() if line]
        assert shown[0]["headers"]["ce_subject"] == "Order-p"
        (summary,) = json.loads(await command("list", "--json"))
        assert (summary["projection"], summary["parked"], summary["events"]) == ("order_totals", 2, 22)
        await pool.execute("ALTER TABLE order_totals DROP CONSTRAINT no_poison")
        await command("parked", "retry", "order_totals")
        await right(pool)
        assert not await parked()
        status = json.loads(await command("status", "order_totals", "--json"))
        assert sum(each["events"] for each in status) == 22

        await command("pause", "order_totals")
        await wait_for(lambda: "consumer pauses" in consumer.said, timeout_s=20)
        await append(store, "c", 2)
        await command("resume", "order_totals")
        await right(pool)
        assert "say --yes" in await command("reset", "tests.projections:OrderTotals", code=2)
        await command("reset", "tests.projections:OrderTotals", "--yes")
        await right(pool)
        consumer.check_running()
        await consumer.stop()
