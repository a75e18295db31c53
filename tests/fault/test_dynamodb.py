"""DynamoDB at its worst: throttled, in conflict, silent, with an index that lags, and writers that are killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from eventspine import ANY, AppendCondition, ConcurrencyError, Event, Query, QueryItem, Unavailable
from eventspine.store.dynamodb import DynamoDBEventStore, open_table
from eventspine.store.dynamodb.create import create_table
from tests.dynamodb import DynamoDBService
from tests.event_types import EVENT_TYPES, paid, placed
from tests.fault.dynamodb_proxy import BREAK_AFTER, BREAK_BEFORE, PASS, DynamoDBProxy, Fault, conflict, refusal
from tests.waiting import wait_for


class Table:
    """A table of its own behind a proxy; `open` opens stores as other processes would."""

    def __init__(self, service: DynamoDBService, proxy: DynamoDBProxy, name: str, opened: AsyncExitStack) -> None:
        self.proxy = proxy
        self._service = service
        self._name = name
        self._opened = opened

    def dsn(self, port: int) -> str:
        return self._service.dsn(self._name, port=port)

    async def open(self, **options: Any) -> DynamoDBEventStore:
        table = await self._opened.enter_async_context(open_table(self.dsn(self.proxy.port)))
        store = DynamoDBEventStore(table, poll_s=0.02, **options)
        await store.register(EVENT_TYPES)
        return store


@pytest.fixture
async def table(dynamodb: DynamoDBService) -> AsyncIterator[Table]:
    assert dynamodb.port is not None
    async with AsyncExitStack() as opened:
        name = f"test-{uuid4().hex}"
        await create_table(await opened.enter_async_context(open_table(dynamodb.dsn(name))))
        proxy = DynamoDBProxy(dynamodb.port)
        await opened.enter_async_context(proxy.running())
        yield Table(dynamodb, proxy, name, opened)


async def check_log(store: DynamoDBEventStore) -> list[Event]:
    """Return the log: its positions are dense, each stream's versions too, and streams and log are the same."""
    last = await store.last_position()
    log = await store.read_all(limit=last + 10)
    assert [event.global_position for event in log] == list(range(1, last + 1))
    assert len({event.event_id for event in log}) == last
    for stream_id in {event.stream_id for event in log}:
        stream = await store.read_stream(stream_id)
        assert [event.version for event in stream] == list(range(1, len(stream) + 1))
        assert stream == [event for event in log if event.stream_id == stream_id]
    return log


def _strike(dice: random.Random) -> Any:
    """Let about a third of the requests fail, each in one of the ways in which they do, and hide a part of the index."""

    def strike(operation: str, request: dict[str, Any]) -> Fault:
        if operation == "QueryIndex":
            return lambda answer: answer | {"Items": [item for item in answer["Items"] if dice.random() < 0.5]}
        if dice.random() > 0.3:
            return PASS
        ways: list[Fault] = [
            BREAK_BEFORE,
            BREAK_AFTER,
            refusal("ThrottlingException"),
            refusal("ProvisionedThroughputExceededException"),
        ]
        if operation == "TransactWriteItems":
            ways += [conflict(request), refusal("TransactionInProgressException")]
        return dice.choice(ways)

    return strike


@pytest.mark.parametrize("seed", range(2))
async def test_nothing_is_lost_doubled_or_skipped_whatever_fails(table: Table, seed: int) -> None:
    stores = [await table.open() for _ in range(3)]
    follower = (await table.open()).subscribe(batch_size=60)
    table.proxy.strike = _strike(random.Random(seed))
    acked: list[Event] = []

    async def write(number: int) -> None:
        for n in range(5):
            events = [paid(n) for _ in range(1 + n % 3)]
            acked.extend(await stores[number % 3].append(f"Order-{number % 5}", "Order", events, ANY))

    async def follow() -> list[Event]:
        return [await anext(follower) for _ in range(9 * 9)]

    async with asyncio.timeout(60):
        seen, *_ = await asyncio.gather(follow(), *(write(number) for number in range(9)))
    table.proxy.strike = lambda *_: PASS
    log = await check_log(stores[0])
    assert sorted(acked, key=lambda event: event.global_position) == log == seen


@pytest.mark.parametrize("fault", [BREAK_BEFORE, BREAK_AFTER])
async def test_a_lost_answer_is_asked_for_with_the_same_token(table: Table, fault: Fault) -> None:
    store = await table.open()
    tokens: list[str] = []

    def strike(operation: str, request: dict[str, Any]) -> Fault:
        if operation != "TransactWriteItems":
            return PASS
        tokens.append(request["ClientRequestToken"])
        return fault if len(tokens) < 3 else PASS

    table.proxy.strike = strike
    [recorded] = await store.append("Order-1", "Order", [placed()], 0)
    assert (len(tokens), len(set(tokens))) == (3, 1)
    assert await check_log(store) == [recorded]


async def test_an_append_that_was_recorded_after_all_is_found_by_another_process(table: Table) -> None:
    store = await table.open(retry_s=0.2)
    events = [placed(), paid()]
    table.proxy.strike = lambda operation, _: BREAK_AFTER if operation == "TransactWriteItems" else PASS
    with pytest.raises(Unavailable):
        await store.append("Order-1", "Order", events, ANY)
    table.proxy.strike = lambda *_: PASS
    recorded = await (await table.open()).append("Order-1", "Order", events, ANY)
    assert await store.append("Order-1", "Order", events, 0) == recorded
    assert await check_log(store) == recorded


async def test_a_conflict_of_transactions_is_no_concurrency_error(table: Table) -> None:
    """Neither is contention on the log's head: only a stream that is read at another version is."""
    store = await table.open(retry_s=0.3)
    table.proxy.strike = lambda operation, request: conflict(request) if operation == "TransactWriteItems" else PASS
    with pytest.raises(Unavailable):
        await store.append("Order-1", "Order", [placed()], 0)
    table.proxy.strike = lambda *_: PASS
    await store.append("Order-1", "Order", [placed()], 0)
    with pytest.raises(ConcurrencyError):
        await store.append("Order-1", "Order", [placed()], 0)


async def test_thirty_two_writers_have_one_winner_for_each_version(table: Table) -> None:
    stores = [await table.open() for _ in range(32)]
    for version in range(2):
        outcomes = await asyncio.gather(
            *(store.append("Order-1", "Order", [paid(n)], version) for n, store in enumerate(stores)), return_exceptions=True
        )
        winners = [outcome for outcome in outcomes if isinstance(outcome, list)]
        assert [[event.version for event in winner] for winner in winners] == [[version + 1]]
        assert sum(isinstance(outcome, ConcurrencyError) for outcome in outcomes) == 31
    assert len(await check_log(stores[0])) == 2


async def test_what_the_index_does_not_show_yet_is_read_from_the_table(table: Table) -> None:
    store = await table.open()
    events = [paid(n) for n in range(130)]
    written = [await store.append(f"Order-{n % 7}", "Order", events[n : n + 13], ANY) for n in range(0, 130, 13)]
    log = [event for copies in written for event in copies]
    for hidden in (lambda n: True, lambda n: n % 2, lambda n: n > 90, lambda n: n in (1, 100, 101)):
        table.proxy.asked.clear()

        def strike(operation: str, _: Any, hidden: Any = hidden) -> Fault:
            if operation != "QueryIndex":
                return PASS
            return lambda answer: answer | {"Items": [e for e in answer["Items"] if not hidden(int(e["GSI1SK"]["N"]))]}

        table.proxy.strike = strike
        assert await store.read_all() == log
        assert (table.proxy.asked["QueryIndex"], table.proxy.asked["BatchGetItem"] > 0) == (1, True)
        assert await store.read_all(60, 60) == log[60:120]
        condition = AppendCondition(Query(QueryItem(categories=["Order"])), after=129)
        with pytest.raises(ConcurrencyError):
            await store.append("Order-x", "Order", [paid()], ANY, condition=condition)
    table.proxy.strike = lambda *_: PASS
    table.proxy.asked.clear()
    assert await store.read_all() == log
    assert table.proxy.asked["BatchGetItem"] == 0


@pytest.mark.parametrize("moment", [BREAK_BEFORE, BREAK_AFTER])
async def test_writers_that_are_killed_in_mid_append_leave_no_gap(table: Table, moment: str) -> None:
    """kill -9 of one of three at a transaction that has not reached the server, or whose answer has not come back."""
    victim = DynamoDBProxy(table.proxy._server_port)
    async with victim.running():
        store = await table.open()

        async def start(name: str, port: int) -> asyncio.subprocess.Process:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.fault.dynamodb_writer", table.dsn(port), name, stdout=asyncio.subprocess.PIPE
            )

        writers = {"victim": await start("victim", victim.port)}
        await wait_for(store.last_position)  # it has had its turn before the others come
        writers |= {name: await start(name, table.proxy.port) for name in ("a", "b")}
        transactions = count()

        def strike(operation: str, _: Any) -> Fault:
            if operation == "TransactWriteItems" and next(transactions) == 12:
                os.kill(writers["victim"].pid, signal.SIGKILL)
                return moment
            return PASS

        victim.strike = strike
        acked: dict[str, bytes] = {}
        async with asyncio.timeout(40):
            assert await writers["victim"].wait() == -signal.SIGKILL
            for name, writer in writers.items():
                assert writer.stdout is not None
                said = [] if name == "victim" else [await writer.stdout.readline() for _ in range(20)]
                if name != "victim":
                    writer.kill()
                acked[name] = b"".join([*said, await writer.stdout.read()])
                await writer.wait()
    log = await check_log(await table.open())
    recorded = {str(event.event_id) for event in log}
    for name, said_by_it in acked.items():
        ids = said_by_it.decode().rpartition("\n")[0].split()
        assert set(ids) <= recorded
        assert name == "victim" or len(ids) >= 40
    assert {event.stream_id.split("-")[1] for event in log} == {"victim", "a", "b"}
    streams = {event.stream_id for event in log}
    assert not [stream for stream in streams if sum(event.stream_id == stream for event in log) % 2]
