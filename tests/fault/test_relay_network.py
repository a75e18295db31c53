"""Slow lines, answers that come late, connections that break, between the relay and its servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from eventspine.local.kafka import KafkaService
from tests.fault.conftest import Spine
from tests.fault.proxy import END_TXN, Trap, kafka_proxy, postgres_proxy
from tests.waiting import wait_for


async def test_a_commit_that_takes_longer_than_the_lease(spine: Spine) -> None:
    """Its answer is on its way while another relay could take over: the lease is kept meanwhile."""
    await spine.append(60)
    async with kafka_proxy(spine.bootstrap) as proxy:
        relay = spine.run.relay(bootstrap=proxy.bootstrap, relay_lease_s=1)
        await wait_for(spine.owners, timeout_s=30)
        other = spine.run.relay(relay_lease_s=1)
        await wait_for(lambda: "stands by" in other.said, timeout_s=30)
        before = await spine.owners()
        proxy.trap = trap = Trap(END_TXN, "unanswered", lambda: None, holds=True)
        await spine.append(30)
        await wait_for(lambda: trap.sprung)
        await asyncio.sleep(2.5)  # past the lease
        trap.release()
        await spine.append(30)
        await spine.relayed(relay, other)
        assert await spine.owners() == before
        await relay.stop()
        await other.stop()
    await spine.check_published()


async def test_narrow_and_broken_lines(spine: Spine) -> None:
    """Both servers are far away, and connections to either break at any byte; Postgres ends the sessions, too."""
    async with kafka_proxy(spine.bootstrap) as kafka, postgres_proxy(spine.run.database) as (postgres, dsn):
        kafka.bytes_per_s, kafka.pause_s, postgres.pause_s = 200_000, 0.005, 0.005
        relay = spine.run.relay(bootstrap=kafka.bootstrap, postgres_dsn=dsn, relay_lease_s=1)
        await wait_for(spine.owners, timeout_s=30)
        async with spine.load():
            for proxy in (kafka, postgres, kafka, postgres):
                before = await spine.store.last_position()
                proxy.cut()
                await wait_for(lambda: _passed(spine), lambda position, before=before: position >= before, timeout_s=30)  # type: ignore[misc]
            before = await spine.store.last_position()
            await spine.pool.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND client_port = "
                "ANY ($1::int[])",
                postgres.client_ports,
            )
            await wait_for(lambda: _passed(spine), lambda position: position >= before, timeout_s=30)
        kafka.bytes_per_s, kafka.pause_s, postgres.pause_s = 0, 0.0, 0.0
        await spine.relayed(relay)
        await relay.stop()
    await spine.check_published()


async def _passed(spine: Spine) -> int:
    return int(await spine.pool.fetchval("SELECT min(position) FROM relay_shards WHERE relay_id = $1", spine.relay_id) or 0)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[KafkaService]:
    """A broker that a test may break."""
    broker = KafkaService(tmp_path / "broker")
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


async def test_the_brokers_disk_is_full(spine: Spine, own_broker: KafkaService) -> None:
    """Its writes fail as on a full disk, so that it gives its only folder up and ends. With room again, it is started anew."""
    spine.bootstrap = own_broker.endpoint
    relay = spine.run.relay(bootstrap=own_broker.endpoint, relay_lease_s=1)
    assert own_broker.pid is not None
    async with spine.load():
        await wait_for(lambda: _passed(spine), lambda position: position > 100, timeout_s=30)
        largest = max(path.stat().st_size for path in (own_broker.folder / "data").rglob("*.log"))
        psutil.Process(own_broker.pid).rlimit(psutil.RLIMIT_FSIZE, (largest + 20_000, -1))
        await wait_for(lambda: own_broker.pid is None, timeout_s=60)
        before = await spine.store.last_position()
        await wait_for(spine.store.last_position, lambda position: position > before + 100)
        await asyncio.to_thread(own_broker.start)
    await spine.relayed(relay)
    await relay.stop()
    await spine.check_published()
