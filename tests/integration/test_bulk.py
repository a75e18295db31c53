"""Bulk import through COPY."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import asyncpg
import msgspec
import pytest

from eventspine import ANY, Event, EventIdTaken, InvalidEvent, PostgresEventStore, Query, QueryItem
from eventspine.store.postgres.audit import verify_log
from eventspine.store.postgres.bulk import Imported
from tests.event_types import paid, placed
from tests.oracle import check_log


def source(count: int, streams: int = 7) -> Iterator[Event]:
    for n in range(count):
        event = placed(f"c{n}", n, tags=(f"n:{n % 3}",)) if n % 2 else paid(n)
        yield msgspec.structs.replace(event, stream_id=f"Order-{n % streams}", event_id=UUID(int=n + 1))


async def test_an_import_is_recorded_like_appends(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await store.append("Order-1", "Order", [paid(1)], 0)
    seen: list[Imported] = []
    assert await store.import_events("old", source(100), batch_events=30, on_progress=seen.append) == Imported(0, 100)
    assert seen == [Imported(0, 0), Imported(0, 30), Imported(0, 60), Imported(0, 90), Imported(0, 100)]
    await store.append("Order-1", "Order", [paid(1)], ANY)
    assert await check_log(pool) == 102
    events = await store.read_all()
    assert [event.event_id.int for event in events[1:-1]] == list(range(1, 101))
    assert len(await store.read(Query(QueryItem(tags=["n:1"])))) == sum(event.tags == ("n:1",) for event in source(100))
    report = await verify_log(pool)
    assert (report.events, report.unsealed, report.findings) == (102, 0, [])


async def test_a_stopped_import_goes_on(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    async def breaking(after: int) -> AsyncIterator[Event]:
        for n, event in enumerate(source(100)):
            if n == after:
                raise RuntimeError("the source broke")
            yield event

    for after in (25, 66):
        with pytest.raises(RuntimeError, match="the source broke"):
            await store.import_events("old", breaking(after), batch_events=10)
    assert await store.import_events("old", source(100), batch_events=33) == Imported(60, 40)
    assert await store.import_events("old", source(100), batch_events=7) == Imported(100, 0)
    assert await check_log(pool) == 100
    with pytest.raises(InvalidEvent, match="ends 50 events before"):
        await store.import_events("old", source(50))


async def test_two_runs_of_an_import_at_once_record_it_once(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    outcomes = await asyncio.gather(
        *(store.import_events("old", source(200), batch_events=20) for _ in range(2)), return_exceptions=True
    )
    assert any(isinstance(outcome, Imported) for outcome in outcomes)
    assert await check_log(pool) == 200


async def test_an_import_beside_appends(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    async def append(number: int) -> None:
        for _ in range(25):
            await store.append(f"Order-{number}", "Order", [paid()], ANY)

    await asyncio.gather(store.import_events("old", source(500), batch_events=20), *(append(n) for n in range(10)))
    assert await check_log(pool) == 750
    assert (await verify_log(pool)).findings == []


async def test_what_an_import_refuses(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    with pytest.raises(InvalidEvent, match="names its stream"):
        await store.import_events("old", [paid()])
    with pytest.raises(InvalidEvent, match="data does not fit"):
        await store.import_events("old", [Event(event_type="OrderPaid", data={"amount_cents": "x"}, stream_id="Order-1")])
    assert await store.import_events("a", source(10)) == Imported(0, 10)
    with pytest.raises(EventIdTaken):
        await store.import_events("b", source(10))
    assert await check_log(pool) == 10
