"""Appends to several streams with kurrentdbclient: `several_streams.py LIBRARY URI`. Prints `done` at its end."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any
from uuid import uuid4

library, uri = sys.argv[1:]
lib: Any = importlib.import_module(library)
events: Any = importlib.import_module(f"{library}.events")
faults: Any = importlib.import_module(f"{library}.exceptions")
NewEvent, NewEvents, StreamState = lib.NewEvent, events.NewEvents, lib.StreamState


def appended(client: Any, *parts: tuple[str, Any, int]) -> int:
    def moved() -> Any:
        return NewEvent(type="Moved", data=b"{}", metadata=b'{"by": "m"}')

    position: int = client.multi_append_to_stream(
        [NewEvents(name, [moved() for _ in range(count)], state) for name, state, count in parts]
    )
    return position


def main() -> None:
    client = lib.KurrentDBClient(uri)
    first, second = f"Account-{uuid4()}", f"Account-{uuid4()}"
    position = appended(client, (first, StreamState.NO_STREAM, 2), (second, StreamState.ANY, 1))
    assert position == client.get_commit_position()
    assert [event.stream_position for event in client.get_stream(first)] == [0, 1]
    assert client.get_stream(second)[0].metadata == b'{"by":"m"}'
    try:
        appended(client, (second, StreamState.ANY, 1), (first, 0, 1))
    except faults.WrongCurrentVersionError:
        pass
    else:
        raise AssertionError("no conflict")
    assert len(client.get_stream(second)) == 1
    client.delete_stream(first, current_version=1)
    appended(client, (first, StreamState.ANY, 1), (second, 0, 1))
    assert [event.stream_position for event in client.get_stream(first)] == [2]
    client.close()
    gc.collect()  # not at the end of the interpreter: grpc's answers in cycles would wait for its threads, which are gone
    print("done")


main()
