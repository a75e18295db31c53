"""What a relay publishes: the log of events, or the outbox of messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg

if TYPE_CHECKING:
    from ..schemas.cloudevents import Header
    from ..store.postgres.log import AppendSignal
    from .router import Routed

__all__ = ["Routes", "Source", "Stored"]


class Stored(Protocol):
    """An event or a message as it lies in its source. `stream_id` names what stays in order, and is parked together."""

    @property
    def global_position(self) -> int: ...

    @property
    def event_id(self) -> str: ...

    @property
    def stream_id(self) -> str: ...


class Source(Protocol):
    """A sequence that only grows, at positions 1, 2, 3 … which become visible in order.

    What lies before every shard's cursor and is not parked may be gone. `PostgresLog` and `PostgresOutbox` are such.
    """

    @property
    def pool(self) -> asyncpg.Pool:
        """The database in which the relay keeps its own tables."""

    async def read_following(self, position: int, limit: int, max_bytes: int) -> tuple[str | None, list[Any]]:
        """Return the id at a position (None: the source ends before), and what follows it, of the same moment: at most `limit`
        and `max_bytes`, but one at least if there is one."""

    async def read_stored_at(self, positions: Sequence[int]) -> Sequence[Any]:
        """Return what lies at positions, in order."""

    async def last_position(self) -> int:
        """Return the highest position that there is or was, 0 if none."""

    async def event_id_at(self, position: int) -> str | None:
        """Return the id at a position; None if the source does not reach that far; `TRIMMED` if it did, and it is gone."""

    async def link_before(self, position: int) -> tuple[int, str] | None:
        """Return number and digest of the last link of a hash chain at or before a position, if there is one."""

    async def digest_of_link(self, number: int) -> str | None:
        """Return the digest of a link, None if there is no such link."""

    def listen(self) -> AbstractAsyncContextManager[AppendSignal]:
        """Hold a connection that hears when there is more."""


class Routes(Protocol):
    """Says where what a source holds goes on Kafka."""

    @property
    def positions_in_headers(self) -> bool:
        """Whether records carry their positions as events do."""

    async def prepare(self, events: Sequence[Any], /) -> None:
        """Get ready to route these."""

    @property
    def plan(self) -> Callable[[Any], Routed | None]:
        """What returns the record of what was prepared, None if it is not published. Whatever it raises parks the event's stream.

        Its headers may be `LATER`: then they are those that `headers` returns.
        """

    @property
    def headers(self) -> Callable[[Any], list[Header]]:
        """What returns the headers of the record of an event, when it is published."""

    async def list_subjects(self) -> None:
        """Do what has to be done between routing and publishing."""
