"""What a program written for EventStoreDB does, with the client library that is named: `tutorial.py LIBRARY URI [CA FILE]`.

Runs in an environment that holds that library alone. Prints `done` at its end.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

library, uri, *ca = sys.argv[1:]
lib: Any = importlib.import_module(library)
faults: Any = importlib.import_module(f"{library}.exceptions")
NewEvent, StreamState = lib.NewEvent, lib.StreamState
Client = getattr(lib, "KurrentDBClient", None) or lib.EventStoreDBClient
CLIENT_OPTIONS = {"root_certificates": Path(ca[0]).read_text()} if ca else {}


@contextmanager
def raises(name: str) -> Iterator[None]:
    """Expect an exception of the library's by its name, which one library ends in Error."""
    kind = getattr(faults, name, None) or getattr(faults, f"{name}Error")
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{name} was not raised")


def order(kind: str, **data: Any) -> Any:
    return NewEvent(type=kind, data=json.dumps(data).encode(), metadata=b'{"by": "tutorial"}')


def check_streams(client: Any) -> None:
    stream = f"Order-{uuid4()}"
    placed, paid, sent = order("OrderPlaced", id=1), order("OrderPaid", id=1), order("OrderSent", id=1)
    with raises("NotFound"):
        client.get_stream(stream)
    first = client.append_to_stream(stream, current_version=StreamState.NO_STREAM, events=placed)
    second = client.append_to_stream(stream, current_version=0, events=[paid, sent])
    assert client.append_to_stream(stream, current_version=0, events=[paid, sent]) == second > first
    for wrong in (StreamState.NO_STREAM, 0, 7):
        with raises("WrongCurrentVersion"):
            client.append_to_stream(stream, current_version=wrong, events=[order("OrderPlaced")])
        with raises("WrongCurrentVersion"):
            client.append_event(stream, current_version=wrong, event=order("OrderPlaced"))
    client.append_to_stream(stream, current_version=StreamState.ANY, events=[order("OrderClosed", id=1)])

    events = client.get_stream(stream)
    assert [event.type for event in events] == ["OrderPlaced", "OrderPaid", "OrderSent", "OrderClosed"]
    assert [event.stream_position for event in events] == [0, 1, 2, 3]
    assert events[0].data == placed.data
    assert events[0].metadata == placed.metadata
    assert (events[0].id, events[0].commit_position) == (placed.id, first)
    assert client.get_current_version(stream) == 3
    assert client.get_commit_position() == events[3].commit_position
    assert [e.stream_position for e in client.get_stream(stream, stream_position=2, backwards=True)] == [2, 1, 0]
    assert [e.stream_position for e in client.get_stream(stream, backwards=True, limit=1)] == [3]
    assert [e.stream_position for e in client.get_stream(stream, stream_position=1, limit=2)] == [1, 2]


def check_bytes_and_names(client: Any) -> None:
    stream = "a name of no category, " + str(uuid4())
    raw = bytes(range(256))
    event = NewEvent(type="Picture taken!", data=raw, metadata=raw, content_type="application/octet-stream")
    client.append_to_stream(stream, current_version=StreamState.ANY, events=[event])
    [found] = client.get_stream(stream)
    assert (found.data, found.metadata, found.content_type, found.type) == (raw, raw, event.content_type, event.type)
    assert found.stream_name == stream
    other = f"Copy-{uuid4()}"  # the same event in another stream
    client.append_to_stream(other, current_version=StreamState.NO_STREAM, events=[event])
    client.append_to_stream(other, current_version=StreamState.NO_STREAM, events=[event])
    assert [each.id for each in client.get_stream(other)] == [event.id]


def check_links(client: Any) -> None:
    kind = f"Kind{uuid4().hex}"
    streams = [f"{kind}-{n}" for n in range(3)]
    events = [order(kind, n=n) for n in range(3)]
    for stream, event in zip(streams, events, strict=True):
        client.append_to_stream(stream, current_version=StreamState.ANY, events=[event])
    for links in (f"$ce-{kind}", f"$et-{kind}"):
        assert [each.type for each in client.get_stream(links)] == ["$>"] * 3
        followed = client.get_stream(links, resolve_links=True)
        assert [(each.id, each.stream_name) for each in followed] == [(e.id, s) for e, s in zip(events, streams, strict=True)]
        assert [each.link.stream_position for each in followed] == [0, 1, 2]
        [last] = client.get_stream(links, resolve_links=True, backwards=True, limit=1)
        assert (last.id, last.link.stream_position) == (events[2].id, 2)


def check_deletion(client: Any) -> None:
    stream = f"Order-{uuid4()}"
    for expected in (StreamState.ANY, StreamState.EXISTS, 3):
        with raises("NotFound"):
            client.delete_stream(stream, current_version=expected)
    client.append_to_stream(stream, current_version=StreamState.ANY, events=[order("OrderPlaced"), order("OrderPaid")])
    with raises("WrongCurrentVersion"):
        client.delete_stream(stream, current_version=0)
    client.delete_stream(stream, current_version=1)
    with raises("NotFound"):
        client.get_stream(stream)
    client.append_to_stream(stream, current_version=StreamState.NO_STREAM, events=[order("OrderPlaced")])
    assert [event.stream_position for event in client.get_stream(stream)] == [2]
    client.tombstone_stream(stream, current_version=2)
    with raises("StreamIsDeleted"):
        client.get_stream(stream)
    with raises("StreamIsDeleted"):
        client.append_to_stream(stream, current_version=StreamState.ANY, events=[order("OrderPlaced")])
    with raises("FailedPrecondition"):  # as the libraries have it where an event is sent alone
        client.append_to_stream(stream, current_version=StreamState.ANY, events=order("OrderPlaced"))
    with raises("StreamIsDeleted"):
        client.tombstone_stream(stream, current_version=StreamState.ANY)


def check_metadata(client: Any) -> None:
    stream = f"Log-{uuid4()}"
    client.append_to_stream(stream, current_version=StreamState.ANY, events=[order("Logged", n=n) for n in range(5)])
    assert client.get_stream_metadata(stream) == ({}, StreamState.NO_STREAM)
    client.set_stream_metadata(stream, metadata={"$maxCount": 2, "of": "logs"}, current_version=StreamState.NO_STREAM)
    assert client.get_stream_metadata(stream) == ({"$maxCount": 2, "of": "logs"}, 0)
    assert [event.stream_position for event in client.get_stream(stream)] == [3, 4]
    assert [event.stream_position for event in client.get_stream(stream, backwards=True)] == [4, 3]
    client.set_stream_metadata(stream, metadata={"$tb": 4}, current_version=0)
    assert [event.stream_position for event in client.get_stream(stream)] == [4]
    with raises("WrongCurrentVersion"):
        client.set_stream_metadata(stream, metadata={}, current_version=0)


def check_subscriptions(client: Any) -> None:
    begin = client.get_commit_position()
    kind = f"Seen{uuid4().hex}"
    stream = f"{kind}-1"
    events = [order(kind, n=n) for n in range(4)]
    client.append_to_stream(stream, current_version=StreamState.ANY, events=events[:2])
    all_events = client.subscribe_to_all(commit_position=begin, filter_include=[kind], timeout=30)
    of_stream = client.subscribe_to_stream(stream, stream_position=0, timeout=30)
    of_links = client.subscribe_to_stream(f"$ce-{kind}", resolve_links=True, timeout=30)
    client.append_to_stream(stream, current_version=1, events=events[2:])
    assert [next(all_events).id for _ in events] == [event.id for event in events]
    assert [next(of_stream).id for _ in events[1:]] == [event.id for event in events[1:]]
    assert [next(of_links).id for _ in events] == [event.id for event in events]
    for subscription in (all_events, of_stream, of_links):
        subscription.stop()
    by_name = client.read_all(commit_position=begin, filter_include=[f"{kind}-.*"], filter_by_stream_name=True)
    assert [event.id for event in by_name] == [event.id for event in events]
    nothing = client.subscribe_to_all(
        commit_position=begin, filter_exclude=".*", include_checkpoints=True, window_size=1,
        checkpoint_interval_multiplier=2, timeout=30,
    )  # fmt: skip
    assert next(nothing).commit_position == begin + 2
    nothing.stop()
    live = client.subscribe_to_all(from_end=True, include_caught_up=True, timeout=30)
    assert type(next(live)).__name__ == "CaughtUp"
    live.stop()


def check_persistent_subscriptions(client: Any) -> None:
    kind = f"Kept{uuid4().hex}"
    stream, group = f"{kind}-1", f"group-{uuid4()}"
    events = [order(kind, n=n) for n in range(5)]
    client.create_subscription_to_stream(group, stream)
    client.create_subscription_to_all(group, filter_include=[kind], from_end=True, consumer_strategy="RoundRobin")
    with raises("AlreadyExists"):
        client.create_subscription_to_stream(group, stream)
    with raises("AlreadyExists"):
        client.create_subscription_to_all(group)
    client.append_to_stream(stream, current_version=StreamState.ANY, events=events)

    of_stream = client.read_subscription_to_stream(group, stream)
    actions = ["ack", "retry", "park", "skip", "ack"]
    seen = []
    for event in of_stream:
        action = actions[event.stream_position] if not event.retry_count else "ack"
        if action == "ack":
            of_stream.ack(event)
        else:
            of_stream.nack(event, action)
        seen.append((event.stream_position, event.retry_count or 0))
        if len(seen) == 6:
            break
    of_stream.stop()
    assert sorted(seen) == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (4, 0)], seen

    client.replay_parked_events(group, stream)
    with client.read_subscription_to_stream(group, stream) as replayed:
        event = next(iter(replayed))
        assert event.stream_position == 2
        replayed.ack(event)

    with client.read_subscription_to_all(group) as of_all:
        for event, expected in zip(of_all, events, strict=False):
            assert event.id == expected.id
            of_all.ack(event)
            if event.id == events[-1].id:
                break
    info = client.get_subscription_info(group)
    assert (info.event_source, info.group_name) == ("$all", group)
    sources = {each.event_source for each in client.list_subscriptions() if each.group_name == group}
    assert sources == {"$all", stream}
    client.update_subscription_to_stream(group, stream, max_retry_count=3)
    assert client.get_subscription_info(group, stream).max_retry_count == 3
    client.delete_subscription(group, stream)
    client.delete_subscription(group)
    with raises("NotFound"):
        client.read_subscription_to_all(group)


def check_refusals(client: Any) -> None:
    stream = f"Order-{uuid4()}"
    for large in ([order("Large", of="x" * 2_000_000)], order("Large", of="x" * 2_000_000)):
        with raises("EventStoreDBClientException" if library == "esdbclient" else "KurrentDBClient"):
            client.append_to_stream(stream, current_version=StreamState.ANY, events=large)
    with raises("NotFound"):
        client.get_stream(stream)


def main() -> None:
    client = Client(uri, **CLIENT_OPTIONS)
    for check in (
        check_streams, check_bytes_and_names, check_links, check_deletion, check_metadata, check_subscriptions,
        check_persistent_subscriptions, check_refusals,
    ):  # fmt: skip
        check(client)
    client.close()
    gc.collect()  # not at the end of the interpreter: grpc's answers in cycles would wait for its threads, which are gone
    print("done")


main()
