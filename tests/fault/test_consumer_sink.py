"""A read model's database that is slow, locked, or dies: the consumer waits, in bounded memory, as a member of its group."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

import asyncpg
import psutil
import pytest

from eventspine import ANY, Event
from eventspine.local.postgres import PostgresService
from tests.fault.conftest import Spine
from tests.fault.proxy import postgres_proxy
from tests.oracle import check_read_model
from tests.processes import Process
from tests.waiting import wait_for

LONG = bool(os.environ.get("EVENTSPINE_SOAK_MINUTES"))
SESSION_S = 3
LOCKED_S = 30 if LONG else 5
BACKLOG = 200_000 if LONG else 20_000

_BLOCKED = "SELECT count(*) FROM pg_locks WHERE relation = 'order_totals'::regclass AND NOT granted"


def memory_mb(process: Process) -> float:
    return float(psutil.Process(process.popen.pid).memory_info().rss) / 1e6


@pytest.mark.parametrize("protocol", ["classic", "consumer"] if LONG else ["classic"])
async def test_a_slow_sink_is_waited_for_in_bounded_memory(spine: Spine, protocol: str) -> None:
    """Each answer takes 200 ms, a table is locked for longer than the session lasts, and a backlog of many batches waits."""
    await spine.append(20)
    relay = spine.run.relay(relay_batch_events=20_000)
    async with postgres_proxy(spine.run.database) as (proxy, dsn):
        consumer = spine.run.command(
            ["consume", "tests.projections:OrderTotals"],
            read_model_dsn=dsn,
            session_timeout_s=SESSION_S,
            group_protocol=protocol,
            consume_batch_events=5_000,
        )
        await spine.caught_up(relay, consumer)
        before_mb = peak_mb = memory_mb(consumer)
        proxy.pause_s = 0.1  # for a request, and for its answer
        async with spine.pool.acquire() as blocker, blocker.transaction():
            await blocker.execute("LOCK TABLE order_totals IN EXCLUSIVE MODE")
            for start in range(0, BACKLOG, 500):
                order = {"customer_id": "c", "total_cents": 1}
                # Half of that when it is compressed: what is fetched at once is bounded by its compressed bytes.
                events = [Event(event_type="OrderPlaced", data=order | {"note": secrets.token_hex(500)}) for _ in range(500)]
                spine.acked += await spine.store.append(f"Order-b{start % 8_000}", "Order", events, expected_version=ANY)
            await spine.relayed(relay)
            await wait_for(lambda: spine.pool.fetchval(_BLOCKED), timeout_s=30)
            for _ in range(LOCKED_S * 2):
                await asyncio.sleep(0.5)
                peak_mb = max(peak_mb, memory_mb(consumer))

        async def done() -> bool:
            nonlocal peak_mb
            peak_mb = max(peak_mb, memory_mb(consumer))
            consumer.check_running()
            return await spine.applied() >= await spine.store.last_position()

        await wait_for(done, timeout_s=180, every_s=0.2)
        proxy.pause_s = 0.0
        await consumer.stop()
    await relay.stop()
    print(f"\n{protocol}: {BACKLOG} events of 1 kB waited: {before_mb:.0f} MB before, {peak_mb:.0f} MB at most")
    # 64 MB wait in the client, with their headers, beside two or three batches as Python's objects; all of them would be 1 GB.
    assert peak_mb < before_mb + 270, f"{before_mb:.0f} MB before, {peak_mb:.0f} MB at most"
    assert "consumer waits" not in consumer.said, consumer.said
    assert consumer.said.count("partitions assigned") == consumer.said.count("partitions revoked") == 1, consumer.said
    await check_read_model(spine.pool)


async def test_the_read_models_own_server_dies_again_and_again(spine: Spine, tmp_path: Path) -> None:
    """Its last transactions are lost, rows and offsets together; the log is elsewhere, and knows nothing of it."""
    server = PostgresService(tmp_path / "read-model")
    await asyncio.to_thread(server.start)
    try:
        relay = spine.run.relay()
        consumer = spine.run.command(["consume", "tests.projections:OrderTotals"], read_model_dsn=server.endpoint)
        counted = 0
        async with spine.load():
            for _ in range(3):
                counted = await wait_for(lambda: applied(server), lambda now: now > counted + 50, timeout_s=60, every_s=0.1)  # noqa: B023
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
        last = await spine.store.last_position()
        await wait_for(lambda: applied(server), lambda now: now >= last, timeout_s=60, every_s=0.1)
        await relay.stop()
        await consumer.stop()
        async with asyncpg.create_pool(server.endpoint, min_size=1) as pool:
            await check_read_model(pool, log=spine.pool)
    finally:
        await asyncio.to_thread(server.kill)


async def applied(server: PostgresService) -> int:
    try:
        connection = await asyncpg.connect(server.endpoint, timeout=10)
    except (OSError, asyncpg.PostgresError):
        return 0
    try:
        return int(await connection.fetchval("SELECT coalesce(sum(events), 0) FROM projection_offsets") or 0)
    except asyncpg.UndefinedTableError:
        return 0
    finally:
        await connection.close()
