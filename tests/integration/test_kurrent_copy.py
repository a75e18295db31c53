"""`eventspine import kurrent`: from a door to another database, killed on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest

from eventspine import (
    ANY,
    Event,
    IntegrityError,
    InvalidEvent,
    PostgresEventStore,
    SettingsError,
    StreamAppend,
    migrate,
)
from eventspine.store.kurrent import KurrentConnection, KurrentEventStore, KurrentServer
from eventspine.store.kurrent.copying import copy_events, verify_copy
from eventspine.store.kurrent.messages import message_class
from tests.event_types import EVENT_TYPES, paid, placed
from tests.processes import processes
from tests.waiting import wait_for

_STREAMS = "/event_store.client.streams.Streams"
_AppendRequest = message_class("AppendRequest")
_DeleteRequest = message_class("DeleteRequest")


@pytest.fixture
async def source(pool: asyncpg.Pool) -> AsyncIterator[int]:
    """The port of a door that knows no event types, as the server that programs come from."""
    async with KurrentServer(PostgresEventStore(pool)).listening(port=0) as port:
        yield port


@pytest.fixture
async def target(empty_database: str) -> AsyncIterator[PostgresEventStore]:
    """The store to copy into, with event types of its own."""
    pool = await asyncpg.create_pool(empty_database, min_size=1, max_size=4, command_timeout=60)
    async with pool.acquire() as connection:
        await migrate(connection)
    store = PostgresEventStore(pool)
    await store.register(EVENT_TYPES)
    yield store
    pool.terminate()


@asynccontextmanager
async def client(port: int) -> AsyncIterator[KurrentEventStore]:
    async with KurrentConnection(uri(port)) as connection, KurrentEventStore(connection) as store:
        await store.register(EVENT_TYPES)
        yield store


def uri(port: int) -> str:
    return f"esdb://127.0.0.1:{port}?tls=false"


async def propose(channel: Any, name: str, event_type: str, data: bytes, event_id: UUID | None = None) -> None:
    """Append as a program does that knows nothing of us."""
    headers = {"type": event_type, "content-type": "application/json"}
    target = {"stream_identifier": {"stream_name": name.encode()}, "any": {}}
    event = {"id": {"string": str(event_id or uuid4())}, "metadata": headers, "data": data, "custom_metadata": b'{"by": "them"}'}
    requests = [_AppendRequest(options=target), _AppendRequest(proposed_message=event)]
    await channel.stream_unary(f"{_STREAMS}/Append")(iter(each.SerializeToString() for each in requests))


async def remove(channel: Any, name: str, how: str) -> None:
    options = {"stream_identifier": {"stream_name": name.encode()}, "any": {}}
    await channel.unary_unary(f"{_STREAMS}/{how}")(_DeleteRequest(options=options).SerializeToString())


async def test_a_copy_that_is_killed_loses_and_repeats_nothing(
    source: int, pool: asyncpg.Pool, empty_database: str, target: PostgresEventStore, tmp_path: Path
) -> None:
    origin = PostgresEventStore(pool)
    await origin.register(EVENT_TYPES)
    for start in range(0, 6000, 400):
        events = [
            StreamAppend(f"Order-{start // 400}-{n}", "Order", [placed(str(n)), *(paid(k) for k in range(9))], 0)
            for n in range(40)
        ]
        await origin.append_streams(events)

    async with processes(empty_database, "127.0.0.1:1", "unused", tmp_path) as started:
        kills = 0
        while True:
            copying = started.command(["import", "kurrent", "--from", uri(source), "--batch-events", "20"])
            before = await target.last_position()

            async def moved(before: int = before, process: Any = copying.popen) -> bool:
                return process.poll() is not None or await target.last_position() > before + 500

            await wait_for(moved, timeout_s=60)
            if kills == 2:
                assert await copying.ended(60) == 0, copying.said
                break
            assert copying.popen.poll() is None, copying.said
            copying.kill()
            await copying.ended()
            kills += 1
    assert "verified: 6,000 events in 600 streams" in copying.said
    there, here = await origin.read_all(limit=10_000), await target.read_all(limit=10_000)
    assert len(here) == 6000
    assert [facts(event) for event in here] == [facts(event) for event in there]


def facts(event: Event) -> tuple[Any, ...]:
    """What a copy keeps; its metadata are looked at below."""
    return event.event_id, event.stream_id, event.version, event.event_type, event.schema_version, dict(event.data)


async def test_what_streams_hide_is_left_out_and_numbers_are_noted(source: int, target: PostgresEventStore) -> None:
    shared = uuid4()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{source}") as channel:
        for n in range(5):
            await propose(channel, "Order-cut", "Foreign", b'{"n": %d}' % n)
            await propose(channel, "Order-gone", "Foreign", b"{}")
            await propose(channel, "Order-dead", "Foreign", b"{}")
            await propose(channel, "Order-back", "Foreign", b'{"n": %d}' % n)
        await propose(channel, "no category at all", "Foreign", b'{"a": 1}', shared)
        await propose(channel, "Order-shared", "Foreign", b'{"b": 2}', shared)
        await propose(channel, "$$Order-cut", "$metadata", b'{"$maxCount": 2}')
        await propose(channel, "$own", "Foreign", b"{}")
        await remove(channel, "Order-gone", "Delete")
        await remove(channel, "Order-dead", "Tombstone")
        await remove(channel, "Order-back", "Delete")
        await propose(channel, "Order-back", "Foreign", b'{"n": 5}')
    async with client(source) as ours:
        [native] = await ours.append("Order-ours", "Order", [placed(tags=("t",), user_id="u", correlation_id="c")], ANY)

    async with KurrentConnection(uri(source)) as connection:
        copied = await copy_events(connection, target, batch_events=3)
        verified = await verify_copy(connection, target)
        assert (copied.events, copied.hidden) == (6, 18)
        assert (verified.events, verified.streams, verified.renumbered) == (6, 5, 2)
        log = await target.read_all()
        assert [(event.stream_id, event.version, event.data.get("n")) for event in log[:2]] == [
            ("Order-cut", 1, 3), ("Order-cut", 2, 4),
        ]  # fmt: skip
        assert [event.metadata["kurrent"]["revision"] for event in log[:2]] == [3, 4]
        assert log[0].metadata["kurrent"]["metadata"] == '{"by": "them"}'
        one, other = log[2:4]
        assert (one.stream_id, one.event_id, one.data) == ("kurrent-no category at all", shared, {"a": 1})
        assert (other.stream_id, other.metadata["kurrent"]["id"], other.data) == ("Order-shared", str(shared), {"b": 2})
        assert (log[4].stream_id, log[4].version, log[4].metadata["kurrent"]["revision"]) == ("Order-back", 1, 5)
        assert (log[5].event_id, log[5].data, log[5].metadata) == (native.event_id, native.data, native.metadata)
        assert (log[5].tags, log[5].schema_version) == (("t",), 1)

        assert (await copy_events(connection, target)).events == 0  # nothing is new
        await target.append("Order-shared", "Order", [paid()], ANY)
        with pytest.raises(IntegrityError, match="Order-shared"):
            await verify_copy(connection, target)


async def test_copies_that_can_not_be_true_are_refused(source: int, pool: asyncpg.Pool, target: PostgresEventStore) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{source}") as channel:
        await propose(channel, "Order-1", "OrderPaid", b'{"amount_cents": 5}')
        await propose(channel, "Order-1", "OrderPaid", b'{"amount_cents": "five"}')
    async with KurrentConnection(uri(source)) as connection:
        with pytest.raises(InvalidEvent, match=r"OrderPaid for stream 'Order-1'.*amount_cents: 'five'"):
            await copy_events(connection, target, batch_events=1)
        assert [event.data for event in await target.read_all()] == [{"amount_cents": 5}]

    async with KurrentServer(target).listening(port=0) as port, KurrentConnection(uri(port)) as connection:
        with pytest.raises(SettingsError, match="has events already"):
            await copy_events(connection, PostgresEventStore(pool))


async def test_a_copy_goes_on_from_its_own_source_only(source: int, target: PostgresEventStore) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{source}") as channel:
        await propose(channel, "Order-gone", "Foreign", b"{}")
        await remove(channel, "Order-gone", "Delete")
        await propose(channel, "Order-1", "Foreign", b"{}")
        async with KurrentConnection(uri(source)) as connection:
            assert (await copy_events(connection, target)).position == 3
            await propose(channel, "Order-1", "Foreign", b"{}")
            assert (await copy_events(connection, target)).events == 1
    async with KurrentServer(target).listening(port=0) as port, KurrentConnection(uri(port)) as connection:
        with pytest.raises(SettingsError, match="another source"):
            await copy_events(connection, target)
