"""What the measurements share: servers, databases, events, and medians."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from eventspine import Event, EventType, PostgresEventStore, Projection, Table, TableWriter, migrate, on
from eventspine.connect import open_pool

Seen = TypeVar("Seen")

ORDER_PLACED = EventType.from_schema(
    {
        "type": "record",
        "name": "OrderPlaced",
        "fields": [
            {"name": "customer_id", "type": "string"},
            {"name": "total_cents", "type": "long"},
            {"name": "note", "type": "string"},
        ],
    }
)
NOTE = "n" * 250
_numbers = itertools.count(1)


@dataclass
class Figure:
    """One measured thing over several runs: ours and the rival's, in the unit given; more is better unless `less_is_better`.

    `target` bounds ours ÷ rival: from below where more is better, else from above. `limit` bounds ours alone, in the unit. Both
    are reported, met or missed, never asserted.
    """

    title: str
    unit: str
    rival_title: str
    less_is_better: bool = False
    target: float | None = None
    limit: float | None = None
    ours: list[float] = field(default_factory=list)
    rival: list[float] = field(default_factory=list)

    def row(self) -> str:
        ours, rival = median(self.ours), median(self.rival)
        ratio = rival / ours if self.less_is_better else ours / rival
        return (
            f"| {self.title} | {shown(ours)} ({shown(min(self.ours))} – {shown(max(self.ours))}) | {self.rival_title} | "
            f"{shown(rival)} ({shown(min(self.rival))} – {shown(max(self.rival))}) | {self.unit} | {ratio:.1f} × |"
        )

    def row_with_target(self) -> str:
        """The row of a table whose last two columns are ours ÷ rival and the target for it."""
        if not self.ours or not self.rival:
            return f"| {self.title} | | {self.rival_title} | | {self.unit} | | not measured |"
        ratio = median(self.ours) / median(self.rival)
        start = self.row().rpartition(f" {self.unit} |")[0]
        return f"{start} {self.unit} | {ratio:.2f} | {self._verdict(ratio)} |"

    def _verdict(self, ratio: float) -> str:
        verdicts = []
        for bound, seen, unit in ((self.target, ratio, ""), (self.limit, median(self.ours), f" {self.unit}")):
            if bound is not None:
                met = seen <= bound if self.less_is_better else seen >= bound
                verdicts.append(f"{'≤' if self.less_is_better else '≥'} {bound:g}{unit}: {'met' if met else 'missed'}")
        return ", ".join(verdicts)


class Totals(Projection):
    """20,000 rows, each updated again and again."""

    table = Table("totals", columns={"customer_id": "text", "orders": "bigint", "total_cents": "bigint"}, key="customer_id")

    @on("OrderPlaced")
    def placed(self, event: Event, totals: TableWriter) -> None:
        totals.increment(customer_id=event.data["customer_id"], orders=1, total_cents=event.data["total_cents"])


class Rows(Projection):
    """A new row for every event."""

    table = Table("rows", columns={"stream_id": "text", "customer_id": "text", "total_cents": "bigint"}, key="stream_id")

    @on("OrderPlaced")
    def placed(self, event: Event, rows: TableWriter) -> None:
        rows.upsert(stream_id=event.stream_id, customer_id=event.data["customer_id"], total_cents=event.data["total_cents"])


def data(number: int) -> dict[str, Any]:
    """About 300 bytes."""
    return {"customer_id": f"customer-{number % 20_000}", "total_cents": number % 1000, "note": NOTE}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@asynccontextmanager
async def database(postgres_dsn: str) -> AsyncIterator[tuple[str, asyncpg.Pool]]:
    """A new migrated database and a pool of 40 connections on it."""
    name = f"bench_{os.getpid()}_{next(_numbers)}"
    server = await asyncpg.connect(postgres_dsn)
    await server.execute(f"CREATE DATABASE {name}")
    dsn = urlunsplit(urlsplit(postgres_dsn)._replace(path=f"/{name}"))
    async with open_pool(dsn, max_connections=40) as pool:
        async with pool.acquire() as connection:
            await migrate(connection)
        yield dsn, pool
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


async def open_store(pool: asyncpg.Pool) -> PostgresEventStore:
    store = PostgresEventStore(pool)
    await store.register([ORDER_PLACED])
    return store


async def fill(store: PostgresEventStore, events: int) -> None:
    """Append events to distinct streams, as fast as it goes."""
    numbers = iter(range(events))

    async def work() -> None:
        for number in numbers:
            event = Event(event_type="OrderPlaced", data=data(number))
            await store.append(f"Order-{number}", "Order", [event], expected_version=0)

    await asyncio.gather(*(work() for _ in range(512)))


async def warm(pool: asyncpg.Pool, connections: int) -> None:
    """Open that many of the pool's connections, before the clock starts."""
    held = await asyncio.gather(*(pool.acquire() for _ in range(connections)))
    for connection in held:
        await pool.release(connection)


async def rate(work: Callable[[int], Coroutine[Any, Any, object]], numbers: Iterable[int], tasks: int) -> float:
    """Do the work for each number, in that many tasks, and return how many a second."""
    count = 0

    async def worker() -> None:
        nonlocal count
        for number in left:
            await work(number)
            count += 1

    left = iter(numbers)
    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(tasks)))
    return count / (time.perf_counter() - started)


async def reached(look: Callable[[], Awaitable[Seen]], until: Callable[[Seen], bool], limit_s: float = 300) -> float:
    """Look every 5 ms until it is so, and return the time when it was."""
    deadline = time.perf_counter() + limit_s
    while not until(await look()):
        if time.perf_counter() > deadline:
            raise RuntimeError(f"not reached in {limit_s} s: {await look()}")
        await asyncio.sleep(0.005)
    return time.perf_counter()


def create_topic(bootstrap: str, topic: str, partitions: int = 6) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1)])[topic].result(30)


def shown(value: float) -> str:
    """With three significant digits, or without decimals."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
