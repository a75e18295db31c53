"""Every call of a client library that one server answers: `every_method.py LIBRARY URI sync|async`. Prints `done` at its end.

The tutorial beside it is how programs look; this is what they can ask for. The checks are written once, as coroutines: `call`
takes what a method returns, and awaits it where the client is the asynchronous one. Others may use the server meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

library, uri, kind_of_client = sys.argv[1:]
lib: Any = importlib.import_module(library)
faults: Any = importlib.import_module(f"{library}.exceptions")
NewEvent, StreamState = lib.NewEvent, lib.StreamState
NAME = "KurrentDBClient" if library == "kurrentdbclient" else "EventStoreDBClient"


async def call(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


async def take(items: Any, count: int | None = None) -> list[Any]:
    """Return the next items of an iterator of either kind; all of them if no count is given."""
    found: list[Any] = []
    while count is None or len(found) < count:
        try:
            found.append(await anext(items) if hasattr(items, "__anext__") else next(items))
        except (StopIteration, StopAsyncIteration):
            break
    return found


@asynccontextmanager
async def raises(*names: str) -> AsyncIterator[None]:
    kinds = tuple(kind for name in names for kind in (getattr(faults, name, None), getattr(faults, f"{name}Error", None)) if kind)
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"{names} was not raised")


def event(kind: str, **fields: Any) -> Any:
    return NewEvent(type=kind, data=b'{"n": 1}', **fields)


async def appended(client: Any, kind: str, count: int) -> tuple[str, list[Any]]:
    stream, events = f"{kind}-{uuid4()}", [event(kind) for _ in range(count)]
    await call(client.append_to_stream(stream, current_version=StreamState.NO_STREAM, events=events))
    return stream, events


async def check_appends(client: Any) -> None:
    stream = f"Order-{uuid4()}"
    assert await call(client.get_current_version(stream)) == StreamState.NO_STREAM
    async with raises("NotFound", "WrongCurrentVersion"):
        await call(client.append_events(stream, events=[event("A")], current_version=StreamState.EXISTS))
    first = await call(client.append_events(stream, events=[event("A"), event("B")], current_version=StreamState.NO_STREAM))
    if hasattr(client, "append_event"):
        second = await call(client.append_event(stream, event=event("C"), current_version=1))
    else:
        second = await call(client.append_to_stream(stream, events=event("C"), current_version=1))
    third = await call(client.append_events(stream, events=(event("D"),), current_version=StreamState.EXISTS))
    assert first < second < third <= await call(client.get_commit_position())
    nothing = await call(client.append_events(stream, events=[], current_version=StreamState.ANY))
    assert nothing is None or isinstance(nothing, int)
    async with raises("WrongCurrentVersion"):
        await call(client.append_events(stream, events=[event("E")], current_version=StreamState.NO_STREAM))
    assert await call(client.get_current_version(stream)) == 3
    async with raises("DeadlineExceeded", "GrpcDeadlineExceeded", "AppendDeadlineExceeded", "Internal"):  # at times, gRPC's own
        await call(client.append_events(stream, events=[event("F")], current_version=StreamState.ANY, timeout=0))


async def check_reads(client: Any) -> None:
    begin = await call(client.get_commit_position())
    kind = f"Read{uuid4().hex}"
    stream, events = await appended(client, kind, 5)
    ids = [each.id for each in events]
    cases: list[tuple[dict[str, Any], list[Any]]] = [
        ({}, ids), ({"stream_position": 2}, ids[2:]), ({"limit": 2}, ids[:2]), ({"backwards": True}, ids[::-1]),
        ({"stream_position": 1, "backwards": True}, ids[1::-1]), ({"stream_position": 9}, []),
    ]  # fmt: skip
    for options, expected in cases:
        assert [each.id for each in await take(await call(client.read_stream(stream, **options)))] == expected, options
        assert [each.id for each in await call(client.get_stream(stream, **options))] == expected, options
    async with raises("NotFound"):
        await take(await call(client.read_stream(f"None-{uuid4()}")))
    cases = [
        ({"commit_position": begin, "filter_include": [kind]}, ids),
        ({"commit_position": begin, "filter_include": [f"{kind}.*"], "limit": 2}, ids[:2]),
        ({"commit_position": begin, "filter_include": [f"{kind}-.*"], "filter_by_stream_name": True}, ids),
        ({"backwards": True, "filter_include": [kind], "limit": 5}, ids[::-1]),
    ]
    for options, expected in cases:
        found = [each.id for each in await take(await call(client.read_all(**options)))]
        assert found == expected, options
    others = await take(await call(client.read_all(commit_position=begin, filter_exclude=[r"\$.+", kind])))
    assert others
    assert all(each.type != kind for each in others)
    links = await take(await call(client.read_stream(f"$ce-{kind}", resolve_links=True)))
    assert [(each.id, each.link.stream_name) for each in links] == [(each, f"$ce-{kind}") for each in ids]
    position = await call(client.get_commit_position(filter_include=[kind]))
    assert position == (await call(client.get_stream(stream)))[-1].commit_position
    partly = await call(client.read_stream(stream))
    assert [each.id for each in await take(partly, 2)] == ids[:2]
    await call(partly.stop())


async def check_streams(client: Any) -> None:
    stream, _ = await appended(client, "Kept", 3)
    assert await call(client.get_stream_metadata(stream)) == ({}, StreamState.NO_STREAM)
    await call(client.set_stream_metadata(stream, metadata={"$maxCount": 1, "a": "b"}))
    assert await call(client.get_stream_metadata(stream)) == ({"$maxCount": 1, "a": "b"}, 0)
    assert len(await call(client.get_stream(stream))) == 1
    await call(client.set_stream_metadata(stream, metadata={"$maxAge": 10_000}, current_version=0))
    assert len(await call(client.get_stream(stream))) == 3
    async with raises("WrongCurrentVersion"):
        await call(client.set_stream_metadata(stream, metadata={}, current_version=0))
    await call(client.delete_stream(stream, current_version=StreamState.EXISTS))
    async with raises("NotFound"):
        await call(client.get_stream(stream))
    assert await call(client.get_current_version(stream)) in (StreamState.NO_STREAM, 2)
    await call(client.append_events(stream, events=[event("Kept")], current_version=StreamState.ANY))
    assert [each.stream_position for each in await call(client.get_stream(stream))] == [3]
    await call(client.tombstone_stream(stream, current_version=StreamState.ANY))
    for again in (client.delete_stream, client.tombstone_stream):
        async with raises("StreamIsDeleted"):
            await call(again(stream, current_version=StreamState.ANY))
    async with raises("StreamIsDeleted"):
        await call(client.get_stream_metadata(stream))


async def check_subscriptions(client: Any) -> None:
    begin = await call(client.get_commit_position())
    kind = f"Live{uuid4().hex}"
    stream, events = await appended(client, kind, 2)
    ids = [each.id for each in events]
    late = [event(kind), event(kind)]
    catching_up = await call(client.subscribe_to_stream(stream, include_caught_up=True))
    from_end = await call(client.subscribe_to_stream(stream, from_end=True))
    of_kind = await call(client.subscribe_to_all(commit_position=begin, filter_include=[kind], include_caught_up=True))
    all_from_end = await call(client.subscribe_to_all(from_end=True, filter_include=[f"{kind}-.*"], filter_by_stream_name=True))
    resolved = await call(client.subscribe_to_stream(f"$et-{kind}", resolve_links=True))
    checkpoints = await call(
        client.subscribe_to_all(
            commit_position=begin, filter_exclude=".*", include_checkpoints=True, window_size=1, checkpoint_interval_multiplier=1
        )
    )
    for subscription in (catching_up, of_kind):
        assert [each.id for each in await take(subscription, 2)] == ids
        assert type((await take(subscription, 1))[0]).__name__ == "CaughtUp"
    assert (await take(checkpoints, 1))[0].commit_position == begin + 1
    await call(client.append_events(stream, events=late, current_version=1))
    late_ids = [each.id for each in late]
    for subscription in (catching_up, from_end, of_kind, all_from_end):
        assert [each.id for each in await take(subscription, 2)] == late_ids
    assert [each.id for each in await take(resolved, 4)] == ids + late_ids
    for subscription in (catching_up, from_end, of_kind, all_from_end, resolved, checkpoints):
        await call(subscription.stop())
        assert await take(subscription) == []
    awaited = await call(client.subscribe_to_stream(f"None-{uuid4()}", timeout=0.2))
    async with raises("DeadlineExceeded", "GrpcDeadlineExceeded"):
        await take(awaited, 1)


async def check_persistent_streams(client: Any) -> None:
    kind = f"Job{uuid4().hex}"
    stream, _ = await appended(client, kind, 6)
    group, late, links = (f"{each}-{uuid4()}" for each in ("group", "late", "links"))
    settings = {"max_retry_count": 1, "message_timeout": 1.0, "max_subscriber_count": 1}
    await call(client.create_subscription_to_stream(group, stream, stream_position=1, **settings))
    await call(client.create_subscription_to_stream(late, stream, from_end=True, consumer_strategy="Pinned"))
    await call(client.create_subscription_to_stream(links, f"$ce-{kind}", resolve_links=True, consumer_strategy="RoundRobin"))
    async with raises("AlreadyExists"):
        await call(client.create_subscription_to_stream(late, stream))

    consumer = await call(client.read_subscription_to_stream(group, stream))
    assert consumer.subscription_id.endswith(group)
    async with raises("MaximumSubscriptionsReached", "FailedPrecondition"):
        await take(await call(client.read_subscription_to_stream(group, stream)), 1)
    seen = await take(consumer, 5)
    assert [each.stream_position for each in seen] == [1, 2, 3, 4, 5]
    await call(consumer.ack(seen[0]))
    await call(consumer.nack(seen[1], "park"))
    await call(consumer.nack(seen[2], "skip"))
    await call(consumer.nack(seen[3], "retry"))
    again = await take(consumer, 2)  # the fourth at once, the fifth when it was not answered in time
    assert [(each.stream_position, each.retry_count) for each in again] == [(4, 1), (5, 1)]
    await call(consumer.nack(again[0], "retry"))  # once too often: it is parked
    await call(consumer.ack(again[1].ack_id))
    await call(consumer.stop())
    async with asyncio.timeout(20):
        while (await call(client.get_subscription_info(group, stream))).parked_message_count != 2:
            pass
    await call(client.replay_parked_events(group, stream))
    consumer = await call(client.read_subscription_to_stream(group, stream))
    replayed = await take(consumer, 2)
    assert sorted(each.stream_position for each in replayed) == [2, 4]
    for each in replayed:
        await call(consumer.ack(each))
    await call(consumer.stop())
    assert (await call(client.get_subscription_info(group, stream))).parked_message_count == 0

    consumer = await call(client.read_subscription_to_stream(late, stream))
    await call(client.append_events(stream, events=[event(kind)], current_version=5))
    assert [each.stream_position for each in await take(consumer, 1)] == [6]
    await call(consumer.stop())
    consumer = await call(client.read_subscription_to_stream(links, f"$ce-{kind}", event_buffer_size=2))
    for n in range(7):
        [found] = await take(consumer, 1)
        assert (found.stream_name, found.stream_position, found.link.stream_position) == (stream, n, n)
        await call(consumer.ack(found))
    await call(consumer.stop())

    changed = {
        "message_timeout": 7.0, "max_retry_count": 4, "min_checkpoint_count": 5, "max_checkpoint_count": 50,
        "checkpoint_after": 3.0, "max_subscriber_count": 2, "live_buffer_size": 300, "read_batch_size": 10,
        "history_buffer_size": 200, "extra_statistics": True, "resolve_links": True, "consumer_strategy": "RoundRobin",
    }  # fmt: skip
    await call(client.update_subscription_to_stream(group, stream, **changed))
    info = await call(client.get_subscription_info(group, stream))
    assert {name: getattr(info, name) for name in changed} == changed, info
    assert {each.group_name for each in await call(client.list_subscriptions_to_stream(stream))} == {group, late}
    assert {group, late, links} <= {each.group_name for each in await call(client.list_subscriptions())}
    for name, source in ((group, stream), (late, stream), (links, f"$ce-{kind}")):
        await call(client.delete_subscription(name, source))
    for gone in (client.delete_subscription, client.get_subscription_info, client.replay_parked_events):
        async with raises("NotFound"):
            await call(gone(group, stream))
    async with raises("NotFound"):
        await take(await call(client.read_subscription_to_stream(group, stream)), 1)
    async with raises("NotFound"):
        await call(client.update_subscription_to_stream(group, stream, max_retry_count=3))


async def check_persistent_all(client: Any) -> None:
    begin = await call(client.get_commit_position())
    kind = f"Any{uuid4().hex}"
    stream, events = await appended(client, kind, 3)
    group, correlated = f"all-{uuid4()}", f"correlated-{uuid4()}"
    await call(client.create_subscription_to_all(group, commit_position=begin, filter_include=[kind]))
    by_name = {"filter_include": [f"{kind}-.*"], "filter_by_stream_name": True}
    await call(client.create_subscription_to_all(correlated, from_end=True, consumer_strategy="PinnedByCorrelation", **by_name))
    consumer = await call(client.read_subscription_to_all(group))
    others = await call(client.read_subscription_to_all(correlated))
    found = await take(consumer, 3)
    assert [each.id for each in found] == [each.id for each in events]
    for each in found:
        await call(consumer.ack(each))
    late = event(kind, metadata=b'{"$correlationId": "c"}')
    await call(client.append_events(stream, events=[late], current_version=2))
    for each in (consumer, others):
        [found_late] = await take(each, 1)
        assert found_late.id == late.id
        await call(each.ack(found_late))
        await call(each.stop())
    await call(client.update_subscription_to_all(group, commit_position=begin, max_retry_count=9))
    assert (await call(client.get_subscription_info(group))).max_retry_count == 9
    await call(client.replay_parked_events(group))
    for name in (group, correlated):
        await call(client.delete_subscription(name))
    async with raises("NotFound"):
        await call(client.get_subscription_info(group))


async def check_cluster(client: Any) -> None:
    if hasattr(client, "read_gossip"):
        [member] = await call(client.read_gossip())
        assert member.state == "NODE_STATE_LEADER", member
        assert f"{member.address}:{member.port}" == client.connection_target
    await call(client.reconnect())
    assert await call(client.get_commit_position()) > 0


async def main() -> None:
    client = getattr(lib, f"Async{NAME}" if kind_of_client == "async" else NAME)(uri)
    if kind_of_client == "async":
        await client.connect()
    for check in (
        check_appends, check_reads, check_streams, check_subscriptions, check_persistent_streams, check_persistent_all,
        check_cluster,
    ):  # fmt: skip
        await check(client)
    await call(client.close())
    gc.collect()  # not at the end of the interpreter: grpc's answers in cycles would wait for its threads, which are gone
    print("done")


asyncio.run(main())
