"""A log copied into another store, stopped in between, and compared."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from eventspine import ANY, EventType, Fenced, IntegrityError, PostgresEventStore, SchemaError
from eventspine.store.copying import Copy, copy_log
from eventspine.store.postgres.audit import verify_log
from eventspine.store.postgres.copying import PostgresCopy
from eventspine.store.postgres.migrate import migrate
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
