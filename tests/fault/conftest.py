"""A path from append to read model for each fault test: processes, a load, and the oracle at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from eventspine import Event, PostgresEventStore
from tests import oracle
from tests.event_types import paid, placed
from tests.processes import Process, Processes, processes
from tests.waiting import wait_for

_SHARDS = "SELECT shard, state, position, worker_id FROM relay_shards WHERE relay_id = $1 ORDER BY shard"
_OWNERS = """
SELECT shard, worker_id FROM relay_shards
 WHERE relay_id = $1 AND worker_id IS NOT NULL AND leased_until > clock_timestamp() AND state = 'publishing'"""


class Spine:
    """The whole path under test."""

    def __init__(self, store: PostgresEventStore, pool: asyncpg.Pool, bootstrap: str, topic_prefix: str, run: Processes) -> None:
        self.store = store
        self.pool = pool
        self.bootstrap = bootstrap
        self.topic_prefix = topic_prefix
        self.run = run
        self.acked: list[Event] = []
        self._orders = 0

    async def append(self, orders: int, *, at_once: int = 20) -> None:
        """Append that many orders of two events each, some at once."""
        numbers = iter(range(self._orders, self._orders + orders))
        self._orders += orders

        async def append_orders() -> None:
            for number in numbers:
                customer = f"c{number % 17}"
                self.acked += await self.store.append(
                    f"Order-{number}", "Order", [placed(customer, number, correlation_id=customer)], expected_version=0
                )
                self.acked += await self.store.append(f"Order-{number}", "Order", [paid(number)], expected_version=1)

        await asyncio.gather(*(append_orders() for _ in range(at_once)))

    @asynccontextmanager
    async def load(self, *, pause_s: float = 0.0) -> AsyncIterator[None]:
        """Append while the block runs, 20 orders at a time, with a pause behind each."""
        done = asyncio.Event()

        async def append_until_done() -> None:
            while not done.is_set():
                await self.append(20, at_once=1)
                await asyncio.sleep(pause_s)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(append_until_done())
            try:
                yield
            finally:
                done.set()

    async def applied(self) -> int:
        """How many events the read model has."""
        if not await self.pool.fetchval("SELECT to_regclass('projection_offsets') IS NOT NULL"):
            return 0
        return int(await self.pool.fetchval("SELECT coalesce(sum(events), 0) FROM projection_offsets"))

    @property
    def relay_id(self) -> str:
        return f"{self.topic_prefix}relay"

    async def relayed(self, *alive: Process, timeout_s: float = 60.0) -> None:
        """Wait until the relay has passed every event of the log."""

        async def look() -> tuple[int, int, list[tuple[object, ...]]]:
            for process in alive:
                process.check_running()
            last = await self.store.last_position()
            rows = [tuple(row) for row in await self.pool.fetch(_SHARDS, self.relay_id)]
            passed = min((row[2] if row[1] == "publishing" else 0 for row in rows), default=0)
            return passed, last, rows

        await wait_for(look, lambda seen: seen[0] >= seen[1], timeout_s=timeout_s, every_s=0.05)

    async def owners(self) -> dict[int, str]:
        """Which worker has which shard."""
        return {row["shard"]: row["worker_id"] for row in await self.pool.fetch(_OWNERS, self.relay_id)}

    async def parked(self) -> list[int]:
        """The positions that are parked."""
        rows = await self.pool.fetch("SELECT global_position FROM relay_parked WHERE relay_id = $1 ORDER BY 1", self.relay_id)
        return [row["global_position"] for row in rows]

    async def command(self, *arguments: str, code: int = 0, **settings: Any) -> str:
        """Run `eventspine …` to its end and return what it said."""
        process = self.run.command(list(arguments), **settings)
        ended = await process.ended(60)
        assert ended == code, f"{arguments} ended with {ended}, saying:\n{process.said}"
        return process.said

    async def caught_up(self, *alive: Process, timeout_s: float = 60.0) -> None:
        """Wait until the read model has every event of the log."""

        async def look() -> tuple[int, int]:
            for process in alive:
                process.check_running()
            return await self.applied(), await self.store.last_position()

        await wait_for(look, lambda seen: seen[0] >= seen[1], timeout_s=timeout_s, every_s=0.1)

    async def check_published(self, *, at_least_once: bool = False) -> int:
        """The oracle without a consumer: acked ⊆ log, log dense, topics = log but for what is parked."""
        await oracle.check_log(self.pool)
        await oracle.check_acked(self.pool, self.acked)
        parked = await self.parked()
        return await oracle.check_topics(self.pool, self.bootstrap, self.topic_prefix, at_least_once=at_least_once, parked=parked)

    async def check(self, *, at_least_once: bool = False) -> None:
        """The oracle: acked ⊆ log, log dense, topics = log, read model = fold of the log."""
        await self.check_published(at_least_once=at_least_once)
        await oracle.check_read_model(self.pool)


@pytest.fixture
async def spine(
    store: PostgresEventStore, pool: asyncpg.Pool, database: str, kafka: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[Spine]:
    async with processes(database, kafka, topic_prefix, tmp_path) as run:
        yield Spine(store, pool, kafka, topic_prefix, run)
