"""A log copied into another store, stopped in between, and compared."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from eventspine import ANY, EventType, Fenced, IntegrityError, PostgresEventStore, SchemaError
from eventspine.store.copying import Copy, copy_log
from eventspine.store.dynamodb import DynamoDBEventStore, open_table
from eventspine.store.postgres.audit import verify_log
from eventspine.store.postgres.copying import PostgresCopy
from eventspine.store.postgres.migrate import migrate
from tests.dynamodb import DynamoDBService
from tests.event_types import ORDER_PAID, paid, placed, record
from tests.integration.test_audit import fill
from tests.oracle import check_log


@pytest.fixture
async def other(empty_database: str) -> AsyncIterator[asyncpg.Pool]:
    """A pool on a second, migrated database with an empty log."""
    async with asyncpg.create_pool(empty_database, min_size=1, max_size=4) as pool:
        async with pool.acquire() as connection:
            await migrate(connection)
        yield pool


class Stop(Exception):
    """Ends a copy."""


async def test_a_copy_that_was_stopped_goes_on_and_is_the_log(
    store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool
) -> None:
    await fill(store)
    await store.append("Order-tagged", "Order", [placed(tags=("red", "blue")), paid()], 0)
    events = await store.read_all()
    source, target = PostgresCopy(pool), PostgresCopy(other)

    def stop(copy: Copy) -> None:
        if copy.now >= 20:
            raise Stop

    with pytest.raises(Stop):
        await copy_log(source, target, batch_events=10, on_progress=stop)
    assert await target.last_position() == 20
    done = await copy_log(source, target, batch_events=10)
    assert done == Copy(20, len(events) - 20, len(events))
    assert await copy_log(source, target) == Copy(len(events), 0, len(events))
    assert await check_log(other) == len(events)
    assert (await verify_log(other)).findings == []
    again = PostgresEventStore(other)
    assert await again.read_all() == events
    await store.append("Order-tagged", "Order", [paid(7)], 2)
    assert (await copy_log(source, target)).now == 1
    await again.append("Order-tagged", "Order", [paid()], ANY)
    with pytest.raises(IntegrityError, match="not the beginning of this log"):
        await copy_log(source, target)


async def test_what_was_altered_in_the_copy_is_named(store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool) -> None:
    await store.append("Order-1", "Order", [placed(), paid(), paid()], 0)
    await copy_log(PostgresCopy(pool), PostgresCopy(other))
    await other.execute("ALTER TABLE events DISABLE TRIGGER USER")
    await other.execute("UPDATE events SET metadata = '{}' WHERE global_position = 2")
    with pytest.raises(IntegrityError, match="at position 2 in metadata"):
        await copy_log(PostgresCopy(pool), PostgresCopy(other))
    await other.execute("UPDATE events SET payload = '\\x00' WHERE global_position = 3")
    with pytest.raises(IntegrityError, match="at position 3 in payload"):  # the last one, before anything is copied
        await copy_log(PostgresCopy(pool), PostgresCopy(other))


async def test_a_store_of_something_else_is_refused(store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool) -> None:
    await store.append("Order-1", "Order", [placed(), paid()], 0)
    mine = PostgresEventStore(other)
    await mine.register([EventType.from_schema(record("Other", ("x", "long")))])
    with pytest.raises(SchemaError, match="other schemas under the ids"):
        await copy_log(PostgresCopy(pool), PostgresCopy(other))
    assert await mine.last_position() == 0


async def test_who_appends_to_the_target_meanwhile_ends_the_copy(
    store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool
) -> None:
    await store.append("Order-1", "Order", [placed(), *(paid(n) for n in range(9))], 0)
    target = PostgresCopy(other)
    await target.pin_schemas(*await PostgresCopy(pool).schemas())
    [event, *others] = await PostgresCopy(pool).read_copied(0, 10)
    with pytest.raises(Fenced, match="ends at position 0, not at 1"):
        await target.write_copied(others)
    await target.write_copied([event])
    with pytest.raises(Fenced, match="ends at position 1, not at 0"):
        await target.write_copied([event])


async def test_personal_fields_stay_where_their_keys_are(pool: asyncpg.Pool, other: asyncpg.Pool) -> None:
    kept = record("Moved", ("customer_id", "string"), ("to", "string"), subject="customer_id")
    kept["fields"][1]["personal"] = True
    await PostgresEventStore(pool).register([EventType.from_schema(kept), ORDER_PAID])
    with pytest.raises(SchemaError, match="Moved have personal fields"):
        await copy_log(PostgresCopy(pool), PostgresCopy(other))


async def test_there_and_back_by_commands(
    store: PostgresEventStore, pool: asyncpg.Pool, other: asyncpg.Pool, dynamodb: DynamoDBService, database: str,
    empty_database: str, tmp_path: Path,
) -> None:  # fmt: skip
    """Through DynamoDB, the log is still the log."""
    await fill(store)
    await store.append("Order-tagged", "Order", [placed(tags=("red", "blue")), paid()], 0)
    await asyncio.gather(*(store.append(f"Order-many{n}", "Order", [placed()], 0) for n in range(120)))
    await store.append("Order-long", "Order", [placed(), *(paid(n) for n in range(199))], 0)
    events = await store.read_all()
    table = dynamodb.dsn(f"test-{uuid4().hex[:12]}")
    environment = os.environ | {"EVENTSPINE_DYNAMODB_DSN": table}

    def run(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "eventspine", *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def copy(source: str, target: str, code: int = 0) -> str:
        return run("copy", "--from", source, "--to", target, code=code)

    assert "make the table with" in await asyncio.to_thread(copy, database, table, 2)
    assert " is made" in await asyncio.to_thread(run, "dynamodb", "create-table")
    assert f"✓ the {len(events)} events of both are the same" in await asyncio.to_thread(copy, database, table)
    assert f"{len(events)} events were there already" in await asyncio.to_thread(copy, database, table)
    async with open_table(table) as opened:
        moved = DynamoDBEventStore(opened)
        assert await moved.read_all(limit=len(events) + 1) == events
        assert (await moved.append("Order-tagged", "Order", [paid(8)], 2))[0].global_position == len(events) + 1
        events += await moved.read_all(len(events))
    await asyncio.to_thread(copy, table, empty_database)
    assert await check_log(other) == len(events)
    assert await PostgresEventStore(other).read_all(limit=len(events)) == events
    assert "not the beginning of this log" in await asyncio.to_thread(copy, database, table, 1)
    assert "set AWS_ACCESS_KEY_ID" in await asyncio.to_thread(copy, database, "dynamodb://events", 2)
    assert "use an endpoint like" in await asyncio.to_thread(copy, database, "dynamodb://events?region=x&endpoint=y", 2)
    assert "names no DynamoDB table" in await asyncio.to_thread(copy, database, "dynamodb://", 2)
