"""Commands by functions alone: a decider says what happens, `handle_command` makes it happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..schemas import ConcurrencyError, Event
from ..schemas.retry import wait_or_raise
from .aggregates import conflict_backoff, with_metadata
from .protocol import EventStore

__all__ = ["Decider", "handle_command"]

State = TypeVar("State")
Command = TypeVar("Command")


@dataclass(frozen=True)
class Decider(Generic[State, Command]):
    """The rules of one kind of stream, as functions without I/O.

    `evolve(state, event)` returns the state after an event, and the state it is given stays as it is; `initial` is the state of a
    stream without events. `decide(state, command)` returns the events that happen, [] for none, or raises what forbids it.
    """

    stream_type: str
    initial: State
    decide: Callable[[State, Command], Sequence[Event]]
    evolve: Callable[[State, Event], State]


async def handle_command(
    store: EventStore,
    decider: Decider[State, Command],
    id: str,
    command: Command,
    *,
    metadata: Mapping[str, Any] | None = None,
    tries: int = 5,
) -> list[Event]:
    """Read the stream, decide, append at the version that was read, and return the recorded copies; on a conflict, do it over.

    The stream is `{stream_type}-{id}`. `metadata` goes to each event that does not say otherwise itself.

    Raises:
        ConcurrencyError: others were faster `tries` times in a row.
        And what `decide` and `EventStore.append` raise.
    """
    stream_id, backoff = f"{decider.stream_type}-{id}", conflict_backoff()
    for left in range(tries - 1, -1, -1):
        state, version = decider.initial, 0
        async for event in store.iterate_stream(stream_id, 1):
            state, version = decider.evolve(state, event), event.version
        decided = [with_metadata(event, metadata) for event in decider.decide(state, command)]
        if not decided:
            return []
        try:
            return await store.append(stream_id, decider.stream_type, decided, version)
        except ConcurrencyError as conflict:
            if not left:
                raise
            await wait_or_raise(backoff, conflict)
    raise ValueError(f"tries={tries}: give 1 or more")
