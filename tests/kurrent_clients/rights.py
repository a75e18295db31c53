"""What users may do where they log in: `rights.py LIBRARY URI CA_FILE`, `{}` in the URI for name and password. Prints `done`."""

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

library, uri, ca = sys.argv[1:]
lib: Any = importlib.import_module(library)
faults: Any = importlib.import_module(f"{library}.exceptions")
NewEvent, StreamState = lib.NewEvent, lib.StreamState
Client = getattr(lib, "KurrentDBClient", None) or lib.EventStoreDBClient


def connected(user: str) -> Any:
    return Client(uri.format(user), root_certificates=Path(ca).read_text())


@contextmanager
def denied() -> Iterator[None]:
    try:
        yield
    except faults.AccessDeniedError:
        return
    except faults.GrpcError as error:  # esdbclient has no class of its own for it, but where it appends lists of events
        if library == "esdbclient" and "PERMISSION_DENIED" in str(error):
            return
        raise
    raise AssertionError("nobody denied it")


def noted() -> Any:
    return NewEvent(type="Noted", data=b"{}")


def append(client: Any, stream: str, count: int = 1) -> None:
    client.append_to_stream(stream, current_version=StreamState.ANY, events=[noted() for _ in range(count)])


def check_streams(admin: Any, ann: Any, bob: Any) -> None:
    stream = f"Order-{uuid4()}"
    append(ann, stream)
    assert len(bob.get_stream(stream)) == 1
    acl = {"$acl": {"$r": "ann", "$w": ["ann", "$admins"], "$mr": ["ann", "bob"], "$mw": "ann", "$d": []}}
    ann.set_stream_metadata(stream, metadata=acl)
    append(ann, stream)
    append(admin, stream)
    assert len(ann.get_stream(stream)) == len(admin.get_stream(stream)) == 3
    assert bob.get_stream_metadata(stream)[0] == acl
    with denied():
        bob.get_stream(stream)
    with denied():
        next(bob.subscribe_to_stream(stream))
    with denied():
        append(bob, stream)
    with denied():
        bob.append_to_stream(stream, current_version=StreamState.ANY, events=noted())
    with denied():
        bob.set_stream_metadata(stream, metadata={})
    for delete in (ann.delete_stream, ann.tombstone_stream):
        with denied():
            delete(stream, current_version=StreamState.ANY)
    assert len(admin.get_stream(stream)) == 3
    admin.set_stream_metadata(stream, metadata={"$acl": {"$d": "$all", "$mr": "ann"}})
    with denied():
        bob.get_stream_metadata(stream)
    assert len(bob.get_stream(stream)) == 3
    bob.delete_stream(stream, current_version=StreamState.ANY)


def check_system_streams(admin: Any, ann: Any) -> None:
    with denied():
        list(ann.read_all(limit=1))
    with denied():
        next(ann.subscribe_to_all())
    with denied():
        ann.get_stream("$ce-Order")
    with denied():
        append(ann, "$settings")
    assert list(admin.read_all(limit=1))
    admin.set_stream_metadata("$all", metadata={"$acl": {"$r": "ann"}})
    assert list(ann.read_all(limit=1))


def check_groups(admin: Any, ann: Any, bob: Any) -> None:
    stream, group = f"Job-{uuid4()}", str(uuid4())
    append(ann, stream)
    with denied():
        ann.create_subscription_to_stream(group, stream)
    admin.create_subscription_to_stream(group, stream)
    admin.set_stream_metadata(stream, metadata={"$acl": {"$r": "ann"}})
    with ann.read_subscription_to_stream(group, stream) as consumer:
        consumer.ack(next(consumer))
    with denied():
        next(bob.read_subscription_to_stream(group, stream))
    for change in (ann.replay_parked_events, ann.delete_subscription):
        with denied():
            change(group, stream)


def check_defaults(admin: Any, ann: Any, bob: Any) -> None:
    settings = {"$userStreamAcl": {"$w": "ann"}, "$systemStreamAcl": {"$r": ["ann", "$admins"]}}
    event = NewEvent(type="update-default-acl", data=json.dumps(settings).encode())
    admin.append_to_stream("$settings", current_version=StreamState.ANY, events=[event])
    stream = f"Order-{uuid4()}"
    append(ann, stream)
    with denied():
        append(bob, stream)
    assert len(bob.get_stream(stream)) == 1
    assert ann.get_stream("$ce-Order")
    with denied():
        bob.get_stream("$ce-Order")
    admin.set_stream_metadata(stream, metadata={"$acl": {"$w": "bob"}})
    append(bob, stream)


def main() -> None:
    admin, ann, bob = connected("admin:changeit"), connected("ann:look"), connected("bob:see")
    check_streams(admin, ann, bob)
    check_system_streams(admin, ann)
    check_groups(admin, ann, bob)
    check_defaults(admin, ann, bob)
    for client in (admin, ann, bob):
        client.close()
    gc.collect()  # not at the end of the interpreter: grpc's answers in cycles would wait for its threads, which are gone
    print("done")


main()
