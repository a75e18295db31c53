"""Persistent subscriptions of the EventStoreDB door: what happens between one consumer's end and the next one's begin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest

from eventspine import PostgresEventStore
from eventspine.store.kurrent import KurrentServer
from eventspine.store.kurrent.messages import message_class
from tests.waiting import wait_for

_STREAMS = "/event_store.client.streams.Streams"
_PERSISTENT = "/event_store.client.persistent_subscriptions.PersistentSubscriptions"
_SOMEBODY_WAITS = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
_PARK = 1
_JOB = {"stream_identifier": {"stream_name": b"Job-1"}, "group_name": "g"}
_SETTINGS = {
    "max_retry_count": 3, "min_checkpoint_count": 10, "max_checkpoint_count": 1000, "checkpoint_after_ms": 60_000,
    "live_buffer_size": 500, "read_batch_size": 20, "history_buffer_size": 500, "message_timeout_ms": 30_000,
    "consumer_strategy": "RoundRobin",
}  # fmt: skip


@pytest.fixture
async def channel(pool: asyncpg.Pool) -> AsyncIterator[Any]:
    """A channel to a door whose store has the group `g` on Job-1, with three events."""
    async with KurrentServer(PostgresEventStore(pool)).listening(port=0) as port, talking_to(port) as channel:
        await append(channel, 3)
        request = message_class("GroupRequest")(options={**_JOB, "settings": _SETTINGS})
        await channel.unary_unary(f"{_PERSISTENT}/Create")(request.SerializeToString())
        yield channel


async def test_a_consumer_that_comes_while_the_last_one_leaves_is_served(channel: Any, pool: asyncpg.Pool) -> None:
    """The group's place can't be written for a while, so it still has to be written when the next consumer comes."""
    async with consuming(channel) as (given, answer):
        first = [await given() for _ in range(3)]
        async with pool.acquire() as holder, holder.transaction():
            await holder.execute("SELECT FROM kurrent_groups FOR UPDATE")
            await answer(ack={"ids": [{"string": each.id.string} for each in first]})
            await answer(end=True)
            await wait_for(lambda: pool.fetchval(_SOMEBODY_WAITS))
            async with consuming(channel) as (given_next, _):
                pass_on = asyncio.create_task(given_next())
                await append(channel, 1)
                await holder.execute("ROLLBACK; BEGIN")
                assert (await pass_on).stream_revision == 3


async def test_what_was_parked_before_a_replay_is_replayed(channel: Any, pool: asyncpg.Pool) -> None:
    """Parking takes its time: it is refused a lock until the replay was asked for."""
    async with consuming(channel) as (given, answer):
        first = await given()
        async with pool.acquire() as holder, holder.transaction():
            await holder.execute("LOCK TABLE kurrent_parked IN SHARE MODE")
            await answer(nack={"ids": [{"string": first.id.string}], "action": _PARK, "reason": "bad"})
            await wait_for(lambda: pool.fetchval(_SOMEBODY_WAITS))
            request = message_class("GroupReplay")(options={**_JOB, "no_limit": {}})
            replay = channel.unary_unary(f"{_PERSISTENT}/ReplayParked")(request.SerializeToString())
            info = message_class("GroupInfoRequest")(options=_JOB)
            await channel.unary_unary(f"{_PERSISTENT}/GetInfo")(info.SerializeToString())  # the door has taken in the replay
        await replay
        assert [(await given()).stream_revision for _ in range(3)] == [1, 2, 0]


async def test_a_consumer_that_ends_and_cancels_at_once_is_gone(channel: Any) -> None:
    """As clients stop: they end their side, and cancel the call. One that stayed would be given events, and never answer."""
    info = message_class("GroupInfoRequest")(options=_JOB).SerializeToString()
    describe = channel.unary_unary(f"{_PERSISTENT}/GetInfo", response_deserializer=message_class("GroupInfoResponse").FromString)
    for moments in range(60):
        async with consuming(channel) as (_, answer):
            await answer(end=True)
            for _ in range(moments):
                await asyncio.sleep(0)

    async def nobody() -> bool:
        return not (await describe(info)).subscription_info.connections

    await wait_for(nobody)


@asynccontextmanager
async def talking_to(port: int) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


async def append(channel: Any, count: int) -> None:
    request = message_class("AppendRequest")
    frames = [request(options={"stream_identifier": {"stream_name": b"Job-1"}, "any": {}})]
    for _ in range(count):
        event = {"id": {"string": str(uuid4())}, "metadata": {"type": "Noted", "content-type": "application/json"}, "data": b"{}"}
        frames.append(request(proposed_message=event))
    await channel.stream_unary(f"{_STREAMS}/Append")(iter([frame.SerializeToString() for frame in frames]))


@asynccontextmanager
async def consuming(channel: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Read the group: what gives the next event, and what answers or, with `end`, ends the consumer's side."""
    request = message_class("GroupRead")
    response = message_class("GroupReadResponse")
    call = channel.stream_stream(f"{_PERSISTENT}/Read", response_deserializer=response.FromString)()

    async def answer(*, end: bool = False, **content: Any) -> None:
        if end:
            await call.done_writing()
        else:
            await call.write(request(**content).SerializeToString())

    async def given() -> Any:
        async with asyncio.timeout(10):
            return (await call.read()).event.event

    await answer(options={**_JOB, "buffer_size": 30, "uuid_option": {"string": {}}})
    assert (await call.read()).WhichOneof("content") == "subscription_confirmation"
    try:
        yield given, answer
    finally:
        call.cancel()
