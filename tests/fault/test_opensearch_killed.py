"""kill -9 of OpenSearch and of consumers while events flow from Kafka: at the end the index is a fold of the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from eventspine.consumers.opensearch_admin import OpenSearchProjectionAdmin
from eventspine.consumers.opensearch_client import SearchServer, open_opensearch
from tests.fault.conftest import Spine
from tests.fault.opensearch_proxy import OpenSearchProxy, Strike, opensearch_proxy
from tests.opensearch import OpenSearchService, rows_of, wipe
from tests.oracle import ORDER_STATES, ORDER_TOTALS
from tests.processes import Process
from tests.waiting import wait_for


@pytest.fixture
async def server(opensearch: OpenSearchService) -> AsyncIterator[SearchServer]:
    """Calls to an empty node."""
    async with open_opensearch(opensearch.dsn) as server:
        await wipe(server)
        yield server


@pytest.fixture
async def proxy(opensearch: OpenSearchService) -> AsyncIterator[OpenSearchProxy]:
    async with opensearch_proxy(opensearch.port or 0) as proxy:
        yield proxy


class Reader:
    """The path into OpenSearch: consumers, and what the index must hold."""

    def __init__(self, spine: Spine, server: SearchServer) -> None:
        self._spine = spine
        self._server = server
        self._admin = OpenSearchProjectionAdmin(server)

    def consumer(self, dsn: str) -> Process:
        return self._spine.run.command(["consume", "tests.projections:OrderTotals"], read_model_dsn=dsn)

    async def applied(self) -> int:
        await self._admin.prepare()
        return sum(place.events for place in await self._admin.places("order_totals"))

    async def caught_up(self, *alive: Process) -> None:
        async def look() -> tuple[int, int]:
            for process in alive:
                process.check_running()
            return await self.applied(), await self._spine.store.last_position()

        await wait_for(look, lambda seen: seen[0] >= seen[1], timeout_s=90, every_s=0.2)

    async def check(self) -> None:
        """The index equals an offline fold of the log, and every event was applied once."""
        for table, columns, query in (
            ("order_totals", ("customer_id", "orders", "total_cents"), ORDER_TOTALS),
            ("order_states", ("stream_id", "version", "last_event"), ORDER_STATES),
        ):
            actual = {tuple(row[column] for column in columns) for row in await rows_of(self._server, table)}
            expected = {tuple(row) for row in await self._spine.pool.fetch(query)}
            assert actual == expected, f"{table} differs in {sorted(actual ^ expected)[:4]}"
        assert await self.applied() == await self._spine.pool.fetchval("SELECT count(*) FROM events")


async def test_consumers_and_the_server_are_killed(
    spine: Spine, server: SearchServer, opensearch: OpenSearchService, proxy: OpenSearchProxy
) -> None:
    """Consumers die with documents on the way, the server dies in the middle of a bulk and comes back, twice."""
    reader, relay = Reader(spine, server), spine.run.relay()
    victim = reader.consumer(proxy.dsn)
    async with spine.load(pause_s=0.2):
        await wait_for(reader.applied, lambda applied: applied > 100, timeout_s=60)
        for moment in ("half", "unanswered"):
            proxy.strike = Strike("documents", moment)
            await wait_for(lambda: proxy.strike is not None and proxy.strike.struck, timeout_s=30)
            victim.kill()
            await victim.ended()
            victim = reader.consumer(proxy.dsn)
        for turn in range(2):
            proxy.strike = Strike("documents", holds=True, skip=turn)
            await asyncio.wait_for(proxy.strike.held.wait(), 60)
            proxy.strike.released.set()
            await asyncio.to_thread(opensearch.kill)
            await asyncio.to_thread(opensearch.start)
    await reader.caught_up(relay, victim)
    for process in (relay, victim):
        await process.stop()
    await reader.check()


async def test_the_commands_look_after_opensearch(spine: Spine, server: SearchServer, opensearch: OpenSearchService) -> None:
    await spine.append(30)
    reader, relay = Reader(spine, server), spine.run.relay()
    consumer = reader.consumer(opensearch.dsn)
    await reader.caught_up(relay, consumer)

    async def say(*arguments: str, code: int = 0) -> str:
        return await spine.command("projections", *arguments, code=code, read_model_dsn=opensearch.dsn)

    (told,) = json.loads((await say("list", "--json")).splitlines()[-1])
    assert (told["projection"], told["events"], told["parked"], told["paused"]) == ("order_totals", 60, 0, False)
    places = json.loads((await say("status", "order_totals", "--json")).splitlines()[-1])
    assert sum(place["events"] for place in places) == 60
    await say("pause", "order_totals")
    await wait_for(lambda: "consumer pauses" in consumer.said, timeout_s=30)
    await say("resume", "order_totals")
    await say("parked", "list", "order_totals")
    await say("parked", "retry", "order_totals", code=2)
    assert "emptied" in await say("reset", "tests.projections:OrderTotals", "--yes")
    await wait_for(reader.applied, lambda applied: applied == 60, timeout_s=60, every_s=0.2)
    for process in (relay, consumer):
        await process.stop()
    await reader.check()
