"""A server with another history takes the place of the one that was published: the relay halts, and says why."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from eventspine import PostgresEventStore
from eventspine.local.postgres import PostgresService
from tests.conftest import dsn_of
from tests.event_types import placed
from tests.fault.conftest import Spine
from tests.fault.proxy import postgres_proxy


async def test_an_older_copy_is_promoted(spine: Spine, database: str, stack: Any, tmp_path: Path) -> None:
    """A base backup, more events, then the address leads to a server on the backup, as after a fail-over that lost them. That one
    has gone on past the relay's cursor before the relay sees it: its next read notices."""
    await spine.append(20)
    async with postgres_proxy(database) as (proxy, dsn):
        relay = spine.run.relay(postgres_dsn=dsn, relay_lease_s=1)
        await spine.relayed(relay)
        copy = PostgresService(tmp_path / "copy")
        await asyncio.to_thread(_back_up, stack.postgres, copy)
        await spine.append(10)
        await spine.relayed(relay)
        await asyncio.to_thread(copy.start)
        try:
            async with asyncpg.create_pool(dsn_of(copy.endpoint, urlsplit(database).path[1:]), min_size=1) as pool:
                other = PostgresEventStore(pool)
                for number in range(40):
                    await other.append(f"Order-other{number}", "Order", [placed()], expected_version=0)
            assert copy.port is not None
            proxy.redirect(copy.port)
            proxy.cut()
            assert await relay.ended() == 1
            assert "the log holds event" in relay.said
        finally:
            await asyncio.to_thread(copy.kill)
    await spine.check_published()


async def test_an_event_was_altered_and_kept_its_id(spine: Spine) -> None:
    """The event at the cursor is the same; what lies before it is not, and so the hash chain has another link."""
    await spine.append(20)
    relay = spine.run.relay(relay_lease_s=1)
    await spine.relayed(relay)
    await relay.stop()
    await spine.check_published()
    async with spine.pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute("UPDATE links SET digest = sha256(digest)")
    relay = spine.run.relay(relay_lease_s=1)
    assert await relay.ended() == 1
    assert "of the log's hash chain had the digest" in relay.said


def _back_up(server: PostgresService, copy: PostgresService) -> None:
    """Copy a running server's data folder."""
    data = copy.folder / "data"
    copy.folder.mkdir()
    data.mkdir(mode=0o700)
    owner = (server.folder / "data").stat()
    os.chown(data, owner.st_uid, owner.st_gid)
    address = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "eventspine"]
    copy._call(["pg_basebackup", "-D", str(data), *address, "-X", "stream", "-c", "fast"])
