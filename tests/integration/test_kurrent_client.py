"""KurrentEventStore beyond the contract: who may use it, what other programs wrote, what streams hide, lost servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import msgspec
import pytest

from eventspine import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    AppendCondition,
    ConcurrencyError,
    DecodeError,
    Event,
    EventIdTaken,
    EventspineError,
    InvalidEvent,
    PostgresEventStore,
    Query,
    QueryItem,
    SettingsError,
    StreamAppend,
    Unavailable,
)
from eventspine.schemas.opaque import Opaque
from eventspine.store.kurrent import KurrentConnection, KurrentEventStore, KurrentServer
from tests.contract.test_event_store import take
from tests.event_types import EVENT_TYPES, paid, placed
from tests.fault.proxy import Proxy
from tests.integration.test_kurrent_access import secure_door
from tests.integration.test_kurrent_copy import propose, remove, uri
from tests.waiting import wait_for


@pytest.fixture
async def door(pool: asyncpg.Pool) -> AsyncIterator[int]:
    """The port of a door that knows no event types, like a KurrentDB."""
    async with KurrentServer(PostgresEventStore(pool)).listening(port=0) as port:
        yield port


@asynccontextmanager
async def client(address: str, *, retry_s: float = 5.0) -> AsyncIterator[KurrentEventStore]:
    async with KurrentConnection(address) as connection, KurrentEventStore(connection, retry_s=retry_s) as store:
        await store.register(EVENT_TYPES)
        yield store


async def test_users_and_certificates(pool: asyncpg.Pool, tmp_path: Path) -> None:
    async with secure_door(PostgresEventStore(pool), tmp_path) as (port, certificate):
        place = f"127.0.0.1:{port}?tlsCaFile={certificate}"
        async with client(f"esdb://admin:changeit@{place}") as store:
            [recorded] = await store.append("Order-1", "Order", [placed()], NO_STREAM)
        async with client(f"kdb+discover://eve:peep@{place}") as store:
            assert await store.read_stream("Order-1") == [recorded]
            with pytest.raises(SettingsError, match="may only read"):
                await store.append("Order-1", "Order", [paid()], 1)
        async with client(f"esdb://admin:wrong@{place}") as store:
            with pytest.raises(SettingsError, match="log in"):
                await store.read_all()
        async with client(f"esdb://admin:changeit@127.0.0.1:{port}") as store:  # whose authority nobody knows
            with pytest.raises(SettingsError, match="certificate"):
                await store.last_position()
            with pytest.raises(SettingsError, match="certificate"):
                await store.append("Order-1", "Order", [paid()], 1)
            with pytest.raises(SettingsError, match="certificate"):
                await anext(store.subscribe())


async def test_what_other_programs_wrote(door: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door}") as channel, client(uri(door)) as store:
        await propose(channel, "no category", "Foreign", b'{"a": 1}')
        await propose(channel, "Order-1", "OrderPaid", b'{"amount_cents": 7}')
        foreign, typed = await store.read_all()
        assert (foreign.stream_id, foreign.data, foreign.schema_version) == ("no category", {"a": 1}, 0)
        assert (foreign.metadata["by"], foreign.timestamp) == ("them", foreign.created_at)
        assert (typed.data, typed.schema_version, typed.version) == ({"amount_cents": 7}, 1, 1)
        await propose(channel, "Order-1", "OrderPaid", b'{"amount_cents": "seven"}')
        with pytest.raises(DecodeError, match=r"Order-1@2 .*amount_cents"):
            await store.read_stream("Order-1")
        picture = Event(event_type="Picture", data=Opaque("image/png", b"\x89PNG\0"))
        [recorded] = await store.append("Album-1", "Album", [picture], 0)
        assert recorded.data == {"content": b"\x89PNG\0"}


async def test_the_doors_own_store_sees_the_same_events(door: int, store: PostgresEventStore) -> None:
    """Appended natively, of a type that is registered there: read in today's version."""
    async with client(uri(door)) as ours:
        [recorded] = await store.append("Order-1", "Order", [placed(user_id="u", correlation_id="c")], 0)
        assert await ours.read_stream("Order-1") == [recorded]
        [copy] = await ours.append("Order-1", "Order", [paid(9, causation_id="x")], 1)
        [_, seen] = await store.read_stream("Order-1")
        assert (seen.event_id, seen.data, seen.causation_id, seen.global_position) == (copy.event_id, copy.data, "x", 2)


async def test_several_streams_keep_every_kind_of_metadata(door: int) -> None:
    said: dict[str, Any] = {"n": 2**60, "half": 0.5, "none": None, "list": [1, {"a": True}], "text": "ä", "user_id": "u"}
    async with client(uri(door)) as store:
        appends = [
            StreamAppend("Order-1", "Order", [placed(tags=("b", "a"), correlation_id="c", **said)], NO_STREAM),
            StreamAppend("Order-2", "Order", [paid()], ANY),
        ]
        [[one], [two]] = await store.append_streams(appends)
        assert (one.tags, one.correlation_id) == (("a", "b"), "c")
        assert {name: one.metadata[name] for name in said} == said
        assert await store.read_all() == [one, two]
        with pytest.raises(InvalidEvent, match=r"\$correlationId"):
            await store.append(
                "Order-3", "Order", [Event(event_type="OrderPaid", data={"amount_cents": 1}, metadata={"$correlationId": "c"})], 0
            )


async def test_deleted_streams_and_hidden_events(door: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door}") as channel, client(uri(door)) as store:
        await store.append("Order-dead", "Order", [paid()], 0)
        await remove(channel, "Order-dead", "Tombstone")
        with pytest.raises(InvalidEvent, match="tombstone"):
            await store.append("Order-dead", "Order", [paid()], ANY)
        with pytest.raises(InvalidEvent, match="deleted"):
            await store.append_streams([StreamAppend("Order-dead", "Order", [paid()], ANY)])
        assert await store.read_stream("Order-dead") == []

        await propose(channel, "$$Order-1", "$metadata", b'{"$maxCount": 1}')
        first, second = await store.append("Order-1", "Order", [paid(1), paid(2)], 0)
        assert (first.version, first.global_position, second.version) == (1, 0, 2)  # the first one is hidden already
        assert await store.read_stream("Order-1") == [second]
        await remove(channel, "Order-1", "Delete")
        assert await store.read_stream("Order-1") == []
        with pytest.raises(ConcurrencyError) as caught:
            await store.append("Order-1", "Order", [paid()], STREAM_EXISTS)
        assert caught.value.actual == 0
        assert (await store.append("Order-1", "Order", [paid()], NO_STREAM))[0].version == 3


async def test_what_the_protocol_does_not_have_is_refused(door: int) -> None:
    async with client(uri(door)) as store:
        event = paid()
        with pytest.raises(EventspineError, match="no conditions"):
            await store.append("Order-1", "Order", [event], 0, condition=AppendCondition(Query(QueryItem(tags=["a"]))))
        with pytest.raises(EventspineError, match="no event by its id"):
            await store.read_event(event.event_id)
        assert await store.last_position() == 0
        await store.append("Order-1", "Order", [event], 0)
        with pytest.raises(EventIdTaken):
            await store.append("Order-1", "Order", [msgspec.structs.replace(event, data={"amount_cents": 5})], 0)


async def test_appends_and_subscriptions_outlast_a_server_that_goes(door: int) -> None:
    """Sixty appends in flight while every connection is cut ten times: each is recorded once, and seen once."""
    proxy = Proxy(door)
    async with proxy.running(), client(uri(proxy.port), retry_s=30.0) as store:
        seen = asyncio.create_task(take(store.subscribe(), 600))

        async def write(number: int) -> list[Event]:
            return [event for n in range(10) for event in await store.append(f"Order-{number}", "Order", [paid(n)], n)]

        writing = [asyncio.create_task(write(number)) for number in range(60)]
        for _ in range(10):
            before = await store.last_position()
            enough = min(before + 40, 600)
            await wait_for(store.last_position, enough.__le__, every_s=0.005)
            proxy.cut()
        written = [event for each in await asyncio.gather(*writing) for event in each]
        log = await store.read_all(limit=1000)
        assert log == sorted(written, key=lambda event: event.global_position) == await seen
        assert len(log) == 600

        proxy.refuses = True
        proxy.cut()
    async with client(uri(proxy.port), retry_s=0.2) as store:
        with pytest.raises(Unavailable):
            await store.append("Order-1", "Order", [paid()], ANY)
