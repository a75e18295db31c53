"""Shards that move between processes, and that become more or fewer, under load and kill -9."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil

from tests.fault.conftest import Spine
from tests.fault.proxy import ADD_PARTITIONS_TO_TXN, END_TXN, Trap, kafka_proxy
from tests.waiting import wait_for


async def test_a_dead_process_loses_its_shards_to_the_others(spine: Spine) -> None:
    first = spine.run.relay(relay_shards=4, relay_lease_s=1)
    second = spine.run.relay(relay_shards=4, relay_lease_s=1)
    async with spine.load():
        owners = await wait_for(spine.owners, lambda owners: len(owners) == 4 and len(set(owners.values())) == 2, timeout_s=30)
        first.kill()
        heir = next(owner for owner in owners.values() if f"-{second.popen.pid}-" in owner)
        await wait_for(spine.owners, lambda owners: len(owners) == 4 and set(owners.values()) == {heir})
        third = spine.run.relay(relay_lease_s=1)
        await wait_for(spine.owners, lambda owners: len(owners) == 4 and len(set(owners.values())) == 2)
    await spine.relayed(second, third)
    await second.stop()
    await spine.relayed(third)
    await third.stop()
    await spine.check_published()


async def test_reshard_under_load(spine: Spine) -> None:
    """1 to 3 to 2 shards: the command is killed between its closings, relays while it works, and run again."""
    relays = [spine.run.relay(relay_shards=1, relay_lease_s=1), spine.run.relay(relay_lease_s=1)]
    async with kafka_proxy(spine.bootstrap) as proxy, spine.load():
        await wait_for(spine.owners)
        await spine.command("relay", "reshard", "3")
        await wait_for(spine.owners, lambda owners: len(owners) == 3, timeout_s=30)
        await _come_through(spine)
        command = spine.run.command(["relay", "reshard", "2"], bootstrap=proxy.bootstrap)
        proxy.trap = Trap(END_TXN, "unanswered", command.kill, skip=1)  # the second of three closings
        assert await command.ended() == -9
        relays.pop(0).kill()
        relays.append(spine.run.relay(relay_lease_s=1))
        await spine.command("relay", "reshard", "2")
        await wait_for(spine.owners, lambda owners: len(owners) == 2, timeout_s=30)
    await spine.relayed(*relays)
    assert sorted(await spine.owners()) == [0, 1]
    for relay in relays:
        await relay.stop()
    await spine.check_published()


async def test_reshard_twice_without_an_event_between(spine: Spine) -> None:
    await spine.append(20)
    relay = spine.run.relay(relay_shards=2, relay_lease_s=1)
    await spine.relayed(relay)
    for shards in (3, 1):
        await spine.command("relay", "reshard", str(shards))
        await wait_for(spine.owners, lambda owners, shards=shards: len(owners) == shards)  # type: ignore[misc]
    await spine.append(20)
    await spine.relayed(relay)
    await relay.stop()
    await spine.check_published()


async def test_frozen_through_a_reshard(spine: Spine) -> None:
    """Its records belong to a shard that is closed: they are refused, whatever it still has on its way."""
    await spine.append(60)
    async with kafka_proxy(spine.bootstrap) as proxy:
        zombie = spine.run.relay(bootstrap=proxy.bootstrap, relay_shards=1, relay_lease_s=1)
        proxy.trap = trap = Trap(ADD_PARTITIONS_TO_TXN, "before", zombie.freeze, skip=2, holds=True)
        await wait_for(lambda: trap.sprung, timeout_s=30)
        await spine.command("relay", "reshard", "2", relay_lease_s=1)
        heir = spine.run.relay(relay_lease_s=1)
        await spine.relayed(heir)
        trap.release()
        zombie.thaw()
        await spine.append(60)
        await wait_for(spine.owners, lambda owners: len(set(owners.values())) == 2)
        await spine.relayed(heir, zombie)
        for process in (heir, zombie):
            await process.stop()
    await spine.check_published()


async def test_supervised_processes(spine: Spine) -> None:
    """A child that is killed is started again; children end with their parent, and all with a child that can't go on."""
    parent = spine.run.relay(processes=2, relay_lease_s=1)
    async with spine.load():
        first = await wait_for(spine.owners, lambda owners: len(set(owners.values())) == 2, timeout_s=30)
        victim = _pid(first[0])
        os.kill(victim, signal.SIGKILL)
        await wait_for(
            spine.owners,
            lambda owners: len(set(owners.values())) == 2 and str(victim) not in str(owners),
            timeout_s=30,
        )
    await spine.relayed(parent)
    children = psutil.Process(parent.popen.pid).children()
    parent.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 20)
    assert len(children) == 2
    assert not alive
    await spine.append(10)
    refused = spine.run.relay(processes=2, relay_shards=7)
    assert await refused.ended() == 2
    assert "has 2 shards, and the settings say 7" in refused.said
    relay = spine.run.relay(relay_lease_s=1)
    await spine.relayed(relay)
    await relay.stop()
    await spine.check_published()


async def _come_through(spine: Spine) -> None:
    """Wait until every shard is behind the change of shards before: it can be changed again then."""
    last = await spine.store.last_position()
    positions = "SELECT min(position) FROM relay_shards WHERE relay_id = $1 AND state = 'publishing'"
    await wait_for(lambda: spine.pool.fetchval(positions, spine.relay_id), lambda position: (position or 0) >= last, timeout_s=30)


def _pid(worker_id: str) -> int:
    """Return the process of a worker: it is called by host, process and a random part."""
    return int(worker_id.rsplit("-", 2)[1])
