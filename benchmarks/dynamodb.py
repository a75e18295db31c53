"""The store on DynamoDB Local beside what people write by hand: conditional puts, and BatchWriteItem without conditions.

Each writes events of about 300 bytes, one to a new stream each, 64 at once. Write units are counted twice: as DynamoDB Local
tells them (ReturnConsumedCapacity), and by AWS's rules from the items that were written.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.bench import ORDER_PLACED, Figure, data, say
from eventspine import Event
from eventspine.store.dynamodb import DynamoDBEventStore, Table, open_table
from eventspine.store.dynamodb.create import create_table
from tests.dynamodb import DynamoDBService

_CONCURRENT = 64
_BATCH = 25  # items of a BatchWriteItem


class CountingTable(Table):
    """Counts what transactions write by AWS's rules: two units for each KB of an item, one for each KB in the index."""

    by_rules = 0.0

    async def transact(self, operations: Sequence[dict[str, Any]], *, token: str = "") -> None:
        await super().transact(operations, token=token)
        self.by_rules += sum(2 * kilobytes(each["Put"]["Item"]) for each in operations)
        self.by_rules += sum(kilobytes(each["Put"]["Item"]) for each in operations if "GSI1PK" in each["Put"]["Item"])


def kilobytes(item: dict[str, dict[str, Any]]) -> int:
    """Return the KB of an item, begun ones for whole, as writes are billed."""
    return math.ceil(sum(len(name) + _size(value) for name, value in item.items()) / 1024)


def _size(value: dict[str, Any]) -> int:
    [(kind, content)] = value.items()
    return 3 + sum(1 + _size(each) for each in content) if kind == "L" else len(str(content) if kind == "N" else content)


async def measure_dynamodb(runs: int, scale: float) -> list[Figure]:
    """Measure; `scale` 1 is 5,000 events a run."""
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "local")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "local")
    by_hand, batches = "a conditional put per event", "BatchWriteItem, no conditions"
    appends = [Figure("append, 64 at once", "events/s", rival) for rival in (by_hand, batches)]
    unit = "units/event"
    told = [Figure("write units, as DynamoDB Local tells", unit, each, less_is_better=True) for each in (by_hand, batches)]
    ruled = [Figure("write units, by AWS's rules", unit, each, less_is_better=True) for each in (by_hand, batches)]
    streams = Figure("read streams, 64 at once", "streams/s", "the same Query, bare")
    log = Figure("read the log", "events/s", "Scan of the events put by hand, in no order")
    events = max(500, int(5_000 * scale))
    with tempfile.TemporaryDirectory() as folder:
        service = DynamoDBService(Path(folder))
        await asyncio.to_thread(service.start)
        try:
            for run in range(runs + 1):  # the first warms the JVM
                say(f"dynamodb, run {run} of {runs}")
                measured = await _measure(service, events)
                if run:
                    for each, rate in zip((*appends, *told, *ruled), measured[:6], strict=True):
                        each.ours.append(rate[0])
                        each.rival.append(rate[1])
                    for each, rate in zip((streams, log), measured[6:], strict=True):
                        each.ours.append(rate[0])
                        each.rival.append(rate[1])
        finally:
            service.kill()
    return [*appends, *told, *ruled, streams, log]


async def _measure(service: DynamoDBService, events: int) -> list[tuple[float, float]]:
    async with open_table(service.dsn(f"ours-{uuid4().hex}"), max_connections=_CONCURRENT) as opened:
        table = CountingTable(opened.client, opened.name)
        table.counting = True
        await create_table(table)
        store = DynamoDBEventStore(table)
        await store.register([ORDER_PLACED])
        table.units, table.by_rules = {"read": 0.0, "write": 0.0}, 0.0

        async def append(number: int) -> None:
            event = Event(event_type="OrderPlaced", data=data(number))
            await store.append(f"Order-{number}", "Order", [event], 0)

        ours = await _rate(events, append)
        units, rules = table.units["write"] / events, table.by_rules / events
        table.counting = False
        [recorded] = await store.read_all(0, 1)
        item = (await store.log.read_items(0, 1))[0]

        async def read(number: int) -> None:
            assert len(await store.read_stream(f"Order-{number}")) == 1

        reads = await _rate(events, read)
        began, position = time.perf_counter(), 0
        while page := await store.read_all(position, 1000):
            position = page[-1].global_position
        log = position / (time.perf_counter() - began)
        assert (position, recorded.version) == (events, 1)
    plain = {name: value for name, value in item.items() if name not in ("PK", "SK", "GSI1PK", "GSI1SK")}
    async with open_table(service.dsn(f"theirs-{uuid4().hex}"), max_connections=_CONCURRENT) as theirs:
        theirs.counting = True
        await create_table(theirs)

        async def put(number: int) -> None:
            assert await theirs.put({"PK": f"Order-{number}", "SK": f"{1:020d}", **plain}, if_absent=True)

        by_hand = await _rate(events, put)
        units_by_hand = theirs.units["write"] / events

        async def query(number: int) -> None:
            assert [each async for each in theirs.query(f"Order-{number}")]

        bare = await _rate(events, query)
        began, seen = time.perf_counter(), 0
        more: dict[str, Any] = {}
        while True:
            answer = await theirs.client.scan(TableName=theirs.name, **more)
            seen += answer["Count"]
            if "LastEvaluatedKey" not in answer:
                break
            more = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        scan = seen / (time.perf_counter() - began)
        theirs.units["write"] = 0.0

        attributes: dict[str, Any] = {
            name: {"B": value} if isinstance(value, bytes) else {"N" if isinstance(value, int) else "S": str(value)}
            for name, value in plain.items()
        }

        async def batch(number: int) -> None:
            keys = [{"PK": {"S": f"Batch-{number}-{place}"}, "SK": {"S": f"{1:020d}"}} for place in range(_BATCH)]
            items = [attributes | key for key in keys]
            answer = await theirs.client.batch_write_item(
                RequestItems={theirs.name: [{"PutRequest": {"Item": each}} for each in items]}, ReturnConsumedCapacity="TOTAL"
            )
            assert not answer["UnprocessedItems"]
            theirs.units["write"] += sum(each["CapacityUnits"] for each in answer["ConsumedCapacity"])

        batched = _BATCH * await _rate(events // _BATCH, batch)
        units_batched = theirs.units["write"] / (events // _BATCH * _BATCH)
    rates = [(ours, by_hand), (ours, batched), (units, units_by_hand), (units, units_batched), (rules, 1.0), (rules, 1.0)]
    return [*rates, (reads, bare), (log, scan)]


async def _rate(count: int, work: Callable[[int], Awaitable[None]]) -> float:
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            await work(number)

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(_CONCURRENT)))
    return count / (time.perf_counter() - began)
