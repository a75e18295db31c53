"""Events into documents of a real OpenSearch node, exactly once, next to the client's own bulk of the same documents.

    .venv/bin/python -m benchmarks.opensearch [events]

Kafka and Avro are left out: what is measured is the sink. Each figure is events a second, in a run of its own on a fresh index.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from opensearchpy import AsyncOpenSearch
from opensearchpy.helpers import async_bulk

from eventspine import Event, Projection, Table, TableWriter, on
from eventspine.consumers.engine import Engine
from eventspine.consumers.opensearch_client import SearchServer, open_opensearch
from eventspine.consumers.opensearch_sink import OpenSearchSink
from eventspine.consumers.parked import Kept
from eventspine.consumers.places import Item, Partition
from tests.opensearch import OpenSearchService, wipe

_BATCH: Final = 10_000
_KEYS: Final = 20_000
_PARTITION: Final = Partition("events.Order", 0)


class Customers(Projection):
    table = Table("customers", columns={"id": "text", "orders": "bigint", "cents": "bigint", "last": "text"}, key="id")

    @on("OrderPlaced")
    def placed(self, event: Event, customers: TableWriter) -> None:
        customers.increment(id=event.data["customer"], orders=1, cents=event.data["cents"])
        customers.upsert(id=event.data["customer"], last=event.stream_id)


class Orders(Projection):
    table = Table("orders", columns={"id": "text", "customer": "text", "cents": "bigint", "last": "text"}, key="id")

    @on("OrderPlaced")
    def placed(self, event: Event, orders: TableWriter) -> None:
        orders.insert(id=event.stream_id, customer=event.data["customer"], cents=event.data["cents"], last=event.data["customer"])


def _items(events: int) -> list[Item]:
    chance = random.Random(1)
    items = []
    for position in range(1, events + 1):
        data = {"customer": f"customer-{chance.randrange(_KEYS)}", "cents": chance.randrange(10_000)}
        event = Event(event_type="OrderPlaced", data=data, stream_id=f"Order-{position}", version=1, global_position=position)
        items.append(Item(_PARTITION, position - 1, position, 0, event.event_type, event.stream_id, event))
    return items


async def _sink(server: SearchServer, projection: Projection, items: Sequence[Item]) -> float:
    sink = OpenSearchSink(server)
    await sink.prepare(projection)
    engine = Engine(projection, sink, keep=lambda _: Kept(b"{}", b"", b""), read=_none)
    await engine.claim({_PARTITION: ""})
    started = time.perf_counter()
    for start in range(0, len(items), _BATCH):
        staged = engine.stage(items[start : start + _BATCH])
        assert staged is not None
        await engine.write(staged)
    return len(items) / (time.perf_counter() - started)


async def _none(_: Any) -> list[Item]:
    return []


async def _bare(server: SearchServer, url: str, projection: Projection, items: Sequence[Item]) -> float:
    """The same documents, as many times: what each batch leaves, without asking what is there."""
    await OpenSearchSink(server).prepare(projection)
    (table,) = projection.tables
    rows: dict[str, dict[str, Any]] = {}
    client = AsyncOpenSearch(url)
    taken_s = 0.0
    for start in range(0, len(items), _BATCH):
        touched: set[str] = set()
        for item in items[start : start + _BATCH]:
            assert item.event is not None
            data = item.event.data
            if table.name == "orders":
                row = {"id": item.stream_id, "customer": data["customer"], "cents": data["cents"], "last": data["customer"]}
            else:
                before = rows.get(data["customer"], {"orders": 0, "cents": 0})
                row = {
                    "id": data["customer"],
                    "orders": before["orders"] + 1,
                    "cents": before["cents"] + data["cents"],
                    "last": item.stream_id,
                }
            rows[row["id"]] = row | {"@eventspine": {"events.Order:0": [start + _BATCH, 0]}}
            touched.add(row["id"])

        async def actions(touched: set[str] = touched) -> AsyncIterator[dict[str, Any]]:
            for key in touched:
                yield {"_index": f"{table.name}-1", "_id": key, "_source": rows[key]}

        began = time.perf_counter()
        await async_bulk(client, actions(), chunk_size=2_000)
        taken_s += time.perf_counter() - began
    await client.close()
    return len(items) / taken_s


async def _measure(node: OpenSearchService, events: int) -> None:
    items = _items(events)
    async with open_opensearch(node.dsn) as server:
        for round_ in ("warm-up", "measured", "measured"):
            for projection in (Customers(), Orders()):
                await wipe(server)
                sink = await _sink(server, projection, items)
                await wipe(server)
                bare = await _bare(server, node.endpoint, projection, items)
                beside = f"bare async_bulk {bare:,.0f}/s, {sink / bare:.0%}"
                print(f"{round_}: {projection.name}: sink {sink:,.0f}/s, {beside}", flush=True)


def main() -> None:
    """Start a node, measure, stop it."""
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        node = OpenSearchService(Path(folder) / "opensearch")
        try:
            node.start()
            asyncio.run(_measure(node, events))
        finally:
            node.kill()


if __name__ == "__main__":
    main()
