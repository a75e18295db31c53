"""kill -9 of Redis under a consumer, its last writes lost or not, and a consumer that sleeps: rows and places stay one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventspine.consumers.redis_admin import RedisProjectionAdmin
from eventspine.consumers.redis_client import open_redis
from eventspine.schemas import Unavailable
from tests import oracle
from tests.fault.conftest import Spine
from tests.redis_server import RedisService
from tests.waiting import wait_for

_LOST_BYTES = 20_000  # some batches
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisService]:
    server = RedisService(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


async def test_redis_killed_and_a_consumer_frozen(spine: Spine, redis_server: RedisService) -> None:
    relay = spine.run.relay()
    settings: dict[str, Any] = {"read_model_dsn": redis_server.endpoint, "consume_batch_events": 50}

    async def applied() -> int:
        try:
            async with open_redis(redis_server.endpoint) as client:
                return sum(place.events for place in await RedisProjectionAdmin(client).places("order_totals"))
        except Unavailable:  # it reads its file
            return 0

    async def goes_on() -> None:
        before = await applied()
        await wait_for(applied, lambda count: count > before, timeout_s=30)

    frozen = spine.run.command(["consume", "tests.projections:OrderTotals"], **settings)
    async with spine.load(pause_s=0.2):
        await goes_on()
        for lost in (0, _LOST_BYTES, 0):
            redis_server.kill()
            if lost:  # what was not on the disk yet
                file = max(redis_server.folder.rglob("*.aof"), key=lambda file: file.stat().st_size)
                content = file.read_bytes()
                # Behind a whole transaction, as `redis-check-aof --fix` does. Redis itself cuts behind the last whole command,
                # and leaves the transaction open: at its next start it would apply half of it.
                end = content.rfind(_EXEC, 0, max(len(content) - lost, len(content) // 2))
                assert end > 0
                file.write_bytes(content[: end + len(_EXEC)])
            redis_server.start()
            await goes_on()
        frozen.freeze()
        heir = spine.run.command(["consume", "tests.projections:OrderTotals"], **settings)
        await wait_for(lambda: "partitions assigned" in heir.said, timeout_s=40)
        await goes_on()
        frozen.thaw()
        await goes_on()
    last = await spine.store.last_position()
    await wait_for(applied, lambda count: count >= last, timeout_s=60, every_s=0.1)
    for process in (relay, heir, frozen):
        await process.stop()
    await spine.check_published()
    async with open_redis(redis_server.endpoint) as client:
        await oracle.check_redis_read_model(spine.pool, client)
