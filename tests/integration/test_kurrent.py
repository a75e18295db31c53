"""The EventStoreDB door: programs of its clients, unmodified; then what no well-behaved client does."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import asyncpg
import grpc
import psutil
import pytest

from eventspine import Event, EventType, PostgresEventStore, PostgresSink, Projection, Relay, Table, TableWriter, on
from eventspine.consumers import Consumer
from eventspine.relay.topics import TopicSettings
from eventspine.store.kurrent import KurrentServer
from eventspine.store.kurrent.following import Mark, follow_all
from eventspine.store.kurrent.messages import message_class
from eventspine.store.kurrent.reading import Item, Reader
from eventspine.store.kurrent.rules import Rules
from eventspine.store.kurrent.tail import Tail
from tests.certificates import Authority
from tests.event_types import placed, record
from tests.jvm import run_java
from tests.npm import run_node
from tests.processes import processes
from tests.python_clients import run_client
from tests.waiting import wait_for

_ROOT = Path(__file__).parents[2]
_STREAMS = "/event_store.client.streams.Streams"
_PERSISTENT = "/event_store.client.persistent_subscriptions.PersistentSubscriptions"
SCHEMES = {"esdbclient": "esdb", "kurrentdbclient": "kdb"}

_AppendRequest = message_class("AppendRequest")
_AppendResponse = message_class("AppendResponse")
_ReadRequest = message_class("ReadRequest")
_ReadResponse = message_class("ReadResponse")
_GroupRequest = message_class("GroupRequest")
_GroupRead = message_class("GroupRead")
_GroupReadResponse = message_class("GroupReadResponse")


@pytest.fixture
async def door(store: PostgresEventStore) -> AsyncIterator[int]:
    """The port of a door to this test's store."""
    async with KurrentServer(store).listening(port=0) as port:
        yield port


@pytest.fixture
async def bare_door(pool: asyncpg.Pool) -> AsyncIterator[int]:
    """The port of a door to a store where no event types are registered."""
    async with KurrentServer(PostgresEventStore(pool)).listening(port=0) as port:
        yield port


@pytest.fixture
async def channel(door: int) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door}") as channel:
        yield channel


@pytest.mark.parametrize("library", SCHEMES)
async def test_the_tutorial(bare_door: int, library: str) -> None:
    uri = f"{SCHEMES[library]}://127.0.0.1:{bare_door}?Tls=false"
    assert await asyncio.to_thread(run_client, library, "tutorial.py", uri) == "done\n"


@pytest.fixture
async def tls_door(pool: asyncpg.Pool, tmp_path: Path) -> AsyncIterator[tuple[int, Path]]:
    """As `bare_door`, over TLS: the port, and the authority's certificate."""
    authority = Authority(tmp_path)
    signed = authority.sign("door")
    server = KurrentServer(PostgresEventStore(pool), tls_cert=signed.certificate.read_bytes(), tls_key=signed.key.read_bytes())
    async with server.listening(port=0) as port:
        yield port, authority.certificate


@pytest.mark.parametrize("library", SCHEMES)
async def test_the_tutorial_over_tls(tls_door: tuple[int, Path], library: str) -> None:
    uri = f"{SCHEMES[library]}://admin:changeit@127.0.0.1:{tls_door[0]}"
    assert await asyncio.to_thread(run_client, library, "tutorial.py", uri, str(tls_door[1])) == "done\n"


async def test_the_official_client_for_node(bare_door: int) -> None:
    assert await asyncio.to_thread(run_node, "kurrent.cjs", f"kurrentdb://127.0.0.1:{bare_door}?tls=false") == "done\n"


async def test_the_official_client_for_node_over_tls(tls_door: tuple[int, Path]) -> None:
    uri = f"kurrentdb://admin:changeit@127.0.0.1:{tls_door[0]}?tlsCaFile={quote(str(tls_door[1]))}"
    assert await asyncio.to_thread(run_node, "kurrent.cjs", uri) == "done\n"


async def test_the_official_client_for_java(tls_door: tuple[int, Path]) -> None:
    uri = f"kurrentdb://admin:changeit@127.0.0.1:{tls_door[0]}?tlsCaFile={quote(str(tls_door[1]))}"
    assert await asyncio.to_thread(run_java, "Kurrent", uri, lock="kurrent.lock") == "done\n"


async def test_every_method_of_the_python_clients(bare_door: int) -> None:
    """Both libraries, their synchronous and their asynchronous client, all at once."""
    done = await asyncio.gather(
        *(
            asyncio.to_thread(run_client, library, "every_method.py", f"{scheme}://127.0.0.1:{bare_door}?Tls=false", kind)
            for library, scheme in SCHEMES.items()
            for kind in ("sync", "async")
        )
    )
    assert done == ["done\n"] * 4


async def test_the_command(database: str, kafka: str, topic_prefix: str, tmp_path: Path) -> None:
    """As users run it, with discovery, which asks for the cluster's members first."""
    async with processes(database, kafka, topic_prefix, tmp_path) as started:
        door = started.command(["serve", "kurrent", "--port", "0"])
        await wait_for(lambda: "kurrent: " in door.said)
        port = re.findall(r"127\.0\.0\.1:(\d+)", door.said)[0]
        uri = f"esdb://127.0.0.1:{port},127.0.0.1:{port}?Tls=false"
        assert await asyncio.to_thread(run_client, "esdbclient", "tutorial.py", uri) == "done\n"
        await door.stop()


def test_the_descriptor_set_is_that_of_the_proto_files(tmp_path: Path) -> None:
    compiled = tmp_path / "kurrent.binpb"
    subprocess.run([_ROOT / "scripts" / "kurrent-proto", compiled], check=True, timeout=60)
    assert compiled.read_bytes() == (_ROOT / "store" / "kurrent" / "proto" / "kurrent.binpb").read_bytes()


# What is stored.


async def test_a_registered_type_is_validated_and_stored_as_avro(store: PostgresEventStore, channel: Any) -> None:
    accepted = b'{"total_cents": 5, "customer_id": "c1"}'
    answer = await append(channel, "Order-1", ("OrderPlaced", accepted, b'{"$correlationId": "x", "a": 1}'))
    assert answer.WhichOneof("result") == "success"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await append(channel, "Order-1", ("OrderPlaced", b'{"total_cents": "five"}', b""))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "OrderPlaced" in (refused.value.details() or "")
    [event] = await store.read_stream("Order-1")
    assert (event.schema_version, event.data["total_cents"], event.correlation_id) == (1, 5, "x")
    [seen] = await read(channel, "Order-1")
    assert json.loads(seen.data)["customer_id"] == "c1"
    assert seen.custom_metadata == b'{"$correlationId": "x", "a": 1}'


async def test_batches_of_one_call_are_recorded_in_its_order(channel: Any) -> None:
    """Also where the first one's types are looked up, and the others' are known."""
    kinds = [f"Foreign{uuid4().hex}", *["OrderPaid"] * 40]
    batches = []
    for number, kind in enumerate(kinds):
        told = {"type": kind, "content-type": "application/json"}
        event = {"id": {"string": str(uuid4())}, "metadata": told, "data": b'{"amount_cents": %d}' % number}
        options = {"stream_identifier": {"stream_name": b"Order-1"}, "any": {}}
        batch = message_class("BatchAppendRequest")(
            correlation_id={"string": str(uuid4())}, options=options, proposed_messages=[event], is_final=True
        )
        batches.append(batch.SerializeToString())
    call = channel.stream_stream(
        f"{_STREAMS}/BatchAppend", response_deserializer=message_class("BatchAppendResponse").FromString
    )(iter(batches), timeout=30)
    assert [answer.WhichOneof("result") async for answer in call] == ["success"] * 41
    assert [json.loads(event.data)["amount_cents"] for event in await read(channel, "Order-1")] == list(range(41))


async def test_events_of_the_store_are_read_through_the_door(store: PostgresEventStore, channel: Any) -> None:
    [recorded] = await store.append("Order-1", "Order", [placed("c1", total_cents=7)], 0)
    [seen] = await read(channel, "Order-1")
    assert UUID(seen.id.string) == recorded.event_id
    assert json.loads(seen.data)["total_cents"] == 7
    assert (seen.stream_revision, seen.commit_position) == (0, 1)


async def test_what_is_recorded_comes_before_the_mark_that_a_subscription_caught_up(store: PostgresEventStore) -> None:
    """Also where the door has not heard of it yet."""
    tail, reader = Tail(store, rules := Rules()), Reader(store, rules)
    await store.append("Order-1", "Order", [placed()], 0)
    following = follow_all(reader, tail, 0, resolve=False)

    async def first() -> Item | Mark:
        return await anext(following)

    given = asyncio.create_task(first())
    async with tail.running():
        assert isinstance(await given, Item)


class Notes(Projection):
    notes = Table("notes", columns={"stream_id": "text", "text": "text", "size": "bigint"}, key="stream_id")

    @on("Noted", "Raw")
    def noted(self, event: Event, notes: TableWriter) -> None:
        size = len(event.data.get("content", b""))
        notes.upsert(stream_id=event.stream_id, text=event.data.get("text", ""), size=size)


async def test_events_of_unregistered_types_are_relayed_and_projected(
    store: PostgresEventStore, pool: asyncpg.Pool, channel: Any, kafka: str, topic_prefix: str
) -> None:
    raw = bytes(range(256))
    await append(channel, "Note-1", ("Noted", b'{"text": "hello"}', b""))
    await append(channel, "Note-2", ("Raw", raw, raw))
    relay = Relay(store.log, kafka, topic_prefix=topic_prefix, topics=TopicSettings(partitions=2))
    consumer = Consumer(Notes(), PostgresSink(pool), kafka, load_event_types=store.log.pinned_types, topic_prefix=topic_prefix)
    running = [asyncio.create_task(relay.run()), asyncio.create_task(consumer.run())]
    try:
        await wait_for(lambda: sum(place.events for place in consumer.places.values()), lambda count: count == 2, timeout_s=40)
    finally:
        relay.stop()
        consumer.stop()
        await asyncio.gather(*running)
    rows = await pool.fetch("SELECT stream_id, text, size FROM notes ORDER BY stream_id")
    assert list(map(tuple, rows)) == [("Note-1", "hello", 0), ("Note-2", "", 256)]
    [seen] = await read(channel, "Note-2")
    assert (seen.data, seen.custom_metadata) == (raw, raw)


async def test_a_type_that_is_registered_later_is_read_beside_its_older_events(store: PostgresEventStore, channel: Any) -> None:
    await append(channel, "Later-1", ("LaterKnown", b'{"n": 1}', b""))
    await store.register([EventType.from_schema(record("LaterKnown", ("n", "long")))])
    await append(channel, "Later-1", ("LaterKnown", b'{"n": 2}', b""))
    events = await store.read_stream("Later-1")
    assert [(event.schema_version, event.data) for event in events] == [(0, {"n": 1}), (1, {"n": 2})]


# What no well-behaved client does.


async def test_malformed_requests_are_refused(store: PostgresEventStore, channel: Any) -> None:
    for method, content, code in [
        (f"{_STREAMS}/Delete", b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (f"{_STREAMS}/Delete", b"", grpc.StatusCode.INVALID_ARGUMENT),
        (f"{_PERSISTENT}/Create", b"", grpc.StatusCode.INVALID_ARGUMENT),
        (f"{_STREAMS}/Nothing", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("/no.such.Service/Call", b"", grpc.StatusCode.UNIMPLEMENTED),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(method)(content)
        assert refused.value.code() == code, method
    for contents in ([b"\xff\xff"], [proposed("T", b"")], []):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.stream_unary(f"{_STREAMS}/Append")(iter(contents))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    for options in (
        {"all": {}, "count": 1, "filter": {"event_type": {"regex": "("}}},
        {"all": {}, "count": 1, "filter": {"event_type": {}}},
        {"stream": {"stream_identifier": {"stream_name": b"\xff"}}, "count": 1},
        {"stream": {"stream_identifier": {"stream_name": b"a\0b"}}, "count": 1},
        {},
    ):
        call = channel.unary_stream(f"{_STREAMS}/Read")(_ReadRequest(options=options).SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [frame async for frame in call]
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, options
    assert await store.last_position() == 0


async def test_an_append_that_breaks_off_writes_nothing(store: PostgresEventStore, channel: Any) -> None:
    going = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        yield target("Order-1")
        yield proposed("Noted", b"{}")
        going.set()
        await asyncio.sleep(60)

    call = channel.stream_unary(f"{_STREAMS}/Append")(requests())
    await going.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    late = channel.stream_unary(f"{_STREAMS}/Append", response_deserializer=_AppendResponse.FromString)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await late(requests(), timeout=0.2)
    assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await append(channel, "Order-2", ("Noted", b"{}", b""))).success.position.commit_position == 1


async def test_an_append_that_is_too_large_writes_nothing(store: PostgresEventStore, channel: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await append(channel, "Order-1", *[("Noted", b"x" * 200_000, b"")] * 6)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    trailers = dict(refused.value.trailing_metadata())
    assert trailers["exception"] == "maximum-append-size-exceeded"
    assert await store.last_position() == 0


async def test_a_client_that_stops_reading_holds_up_nothing(database: str, kafka: str, topic_prefix: str, tmp_path: Path) -> None:
    """18 MB are there to be read, by twenty readers that don't: the server holds a page for each at most, and serves others."""
    async with processes(database, kafka, topic_prefix, tmp_path) as started:
        door = started.command(["serve", "kurrent", "--port", "0"])
        async with talking_to(door) as channel, talking_to(door) as silent:
            for number in range(20):
                await append(channel, f"Large-{number}", ("Noted", b"x" * 900_000, b""))
            before = psutil.Process(door.popen.pid).memory_info().rss
            calls = [silent.unary_stream(f"{_STREAMS}/Read")(everything()) for _ in range(20)]
            assert all([await call.read() for call in calls])
            for number in range(20):
                assert len(await read(channel, f"Large-{number}")) == 1
            assert (await append(channel, "Order-1", ("Noted", b"{}", b""))).WhichOneof("result") == "success"
            grown = psutil.Process(door.popen.pid).memory_info().rss - before
            assert grown < 200_000_000, grown
            frames = 1
            while await calls[0].read() is not grpc.aio.EOF:
                frames += 1
            assert frames == 21  # the first is the system's
            for call in calls:
                call.cancel()
        await door.stop()


async def test_the_same_events_again_write_nothing(store: PostgresEventStore, channel: Any) -> None:
    content = [proposed("Noted", b'{"n": 1}'), proposed("Noted", b'{"n": 2}')]
    call = channel.stream_unary(f"{_STREAMS}/Append", response_deserializer=_AppendResponse.FromString)
    answers = [await call(iter([target(name, any={}), *content])) for name in ("A-1", "A-1", "B-1", "B-1")]
    assert [each.success.position.commit_position for each in answers] == [2, 2, 4, 4]
    [first, second] = [seen.id.string for seen in await read(channel, "B-1")]
    assert [seen.id.string for seen in await read(channel, "A-1")] == [first, second]
    wrong = await call(iter([target("A-1", any={}), content[0], proposed("Noted", b"{}")]))
    assert wrong.WhichOneof("result") == "wrong_expected_version"
    assert await store.last_position() == 4


# Persistent subscriptions.


async def test_what_was_acknowledged_survives_a_kill(database: str, kafka: str, topic_prefix: str, tmp_path: Path) -> None:
    """The door is killed with events given out: those that were acknowledged before the last checkpoint do not come again."""
    async with processes(database, kafka, topic_prefix, tmp_path) as started:
        door = started.command(["serve", "kurrent", "--port", "0"])
        async with talking_to(door) as channel:
            await append(channel, "Job-1", *[("Noted", b"{}", b"")] * 20)
            options = {"stream_identifier": {"stream_name": b"Job-1"}, "group_name": "g", "settings": SETTINGS}
            await channel.unary_unary(f"{_PERSISTENT}/Create")(_GroupRequest(options=options).SerializeToString())
            async with consuming(channel) as (given, answer):
                for _ in range(12):
                    frame = await given()
                    await answer(ack={"ids": [{"string": frame.id.string}]})
                parked = await given()
                await answer(nack={"ids": [{"string": parked.id.string}], "action": 1, "reason": "bad"})
                pool = await asyncpg.connect(database)
                saved = "SELECT (SELECT place FROM kurrent_groups) = 13 AND (SELECT count(*) FROM kurrent_parked) = 1"
                await wait_for(lambda: pool.fetchval(saved))
                await pool.close()
                door.kill()
        door = started.command(["serve", "kurrent", "--port", "0"])
        async with talking_to(door) as channel, consuming(channel) as (given, answer):
            assert [(await given()).stream_revision for _ in range(7)] == list(range(13, 20))
        await door.stop()


SETTINGS = {
    "max_retry_count": 3, "min_checkpoint_count": 1, "max_checkpoint_count": 1, "live_buffer_size": 500, "read_batch_size": 20,
    "history_buffer_size": 500, "message_timeout_ms": 30_000, "checkpoint_after_ms": 100, "consumer_strategy": "RoundRobin",
}  # fmt: skip


@asynccontextmanager
async def talking_to(door: Any) -> AsyncIterator[Any]:
    await wait_for(lambda: "kurrent: " in door.said)
    port = re.findall(r"127\.0\.0\.1:(\d+)", door.said)[-1]
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield channel


@asynccontextmanager
async def consuming(channel: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Read the group `g` of Job-1: what gives the next event, and what answers."""
    call = channel.stream_stream(f"{_PERSISTENT}/Read", response_deserializer=_GroupReadResponse.FromString)()

    async def answer(**content: Any) -> None:
        await call.write(_GroupRead(**content).SerializeToString())

    async def given() -> Any:
        async with asyncio.timeout(20):
            frame = await call.read()
        return frame.event.event

    options = {
        "stream_identifier": {"stream_name": b"Job-1"},
        "group_name": "g",
        "buffer_size": 30,
        "uuid_option": {"string": {}},
    }
    await answer(options=options)
    assert (await call.read()).WhichOneof("content") == "subscription_confirmation"
    try:
        yield given, answer
    finally:
        call.cancel()


def target(name: str, **expected: Any) -> bytes:
    options = {"stream_identifier": {"stream_name": name.encode()}, **(expected or {"any": {}})}
    return bytes(_AppendRequest(options=options).SerializeToString())


def proposed(event_type: str, data: bytes, metadata: bytes = b"") -> bytes:
    content_type = "application/json" if data[:1] == b"{" else "application/octet-stream"
    message = {
        "id": {"string": str(uuid4())},
        "metadata": {"type": event_type, "content-type": content_type},
        "data": data,
        "custom_metadata": metadata,
    }
    return bytes(_AppendRequest(proposed_message=message).SerializeToString())


async def append(channel: Any, name: str, *events: tuple[str, bytes, bytes]) -> Any:
    call = channel.stream_unary(f"{_STREAMS}/Append", response_deserializer=_AppendResponse.FromString)
    return await call(iter([target(name), *(proposed(*event) for event in events)]), timeout=30)


async def read(channel: Any, name: str) -> list[Any]:
    stream = {"stream_identifier": {"stream_name": name.encode()}, "start": {}}
    options = {"stream": stream, "count": 1000, "no_filter": {}, "uuid_option": {"string": {}}}
    call = channel.unary_stream(f"{_STREAMS}/Read", response_deserializer=_ReadResponse.FromString)
    return [frame.event.event async for frame in call(_ReadRequest(options=options).SerializeToString(), timeout=30)]


def everything() -> bytes:
    options = {"all": {"start": {}}, "count": 2**63, "no_filter": {}, "uuid_option": {"string": {}}}
    return bytes(_ReadRequest(options=options).SerializeToString())
