"""The log as its followers see it: what comes after a position, and a wake-up when there is more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import asyncpg

from ...schemas import EventType, PinnedType, StoredEvent, Unavailable, Upcaster
from ...schemas.envelope import PinnedEnvelope, pin_envelopes
from ...schemas.pins import load_pinned_types, register_event_types, register_subjects
from ...schemas.postgres import Connection, load_sql, translated
from ...schemas.registry_client import RegistryClient

__all__ = ["AppendSignal", "PostgresLog", "listening"]

logger = logging.getLogger(__name__)

_SQL = "eventspine.store.postgres"
_READ_STORED = load_sql(_SQL, "sql/read_stored")
_READ_PART = load_sql(_SQL, "sql/read_part")
_LAST_POSITION = load_sql(_SQL, "sql/last_position")
_EVENT_ID_AT = load_sql(_SQL, "sql/event_id_at")
_CATEGORIES_OF_TYPES = load_sql(_SQL, "sql/categories_of_types")
_TOPICS_OF_TYPES = load_sql(_SQL, "sql/topics_of_types")
_APPEND_CHANNEL = load_sql(_SQL, "sql/append_channel")
_READ_FOLLOWING = load_sql(_SQL, "sql/read_following")
_READ_STORED_AT = load_sql(_SQL, "sql/read_stored_at")
_LINK_BEFORE = load_sql(_SQL, "sql/link_before")
_DIGEST_OF_LINK = load_sql(_SQL, "sql/digest_of_link")


class AppendSignal:
    """Wakes a follower when something was appended. A hint only: notifications can be lost, positions can't."""

    def __init__(self) -> None:
        self._appended = asyncio.Event()
        self._lost = False

    def notify(self, *_: object) -> None:
        self._appended.set()

    def lose(self, *_: object) -> None:
        self._lost = True
        self._appended.set()

    async def wait(self, timeout_s: float) -> None:
        """Return at the next append, or after `timeout_s`; at once if there was an append since the last wait.

        Raises:
            Unavailable: the connection that listens is lost: listen anew.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._appended.wait()
        self._appended.clear()
        if self._lost:
            raise Unavailable("the connection that hears of appends was lost")


class PostgresLog:
    """The log for followers that pass bytes on (the relay). Reads need no lock and hold none up.

    With a `registry`, schemas of envelopes that are new are registered there first; see `pin_envelopes`.
    """

    def __init__(self, pool: asyncpg.Pool, *, registry: RegistryClient | None = None) -> None:
        self._pool = pool
        self._registry = registry

    @property
    def pool(self) -> asyncpg.Pool:
        """The connections; the relay keeps tables of its own beside the log."""
        return self._pool

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""
        async with translated():
            return int(await self._pool.fetchval(_LAST_POSITION))

    async def read_stored(self, from_position: int, limit: int, max_bytes: int) -> list[StoredEvent]:
        """Return at most `limit` events with `global_position > from_position`, in order, as stored.

        Ends earlier where the payloads together would exceed `max_bytes`, but never before the first event.
        """
        async with translated():
            rows = await self._pool.fetch(_READ_STORED, from_position, from_position + limit, max_bytes)
        return [StoredEvent(*row) for row in rows]

    async def read_part(
        self,
        from_position: int,
        to_position: int,
        *,
        part: int,
        parts: int,
        categories: Sequence[str],
        event_types: Sequence[str],
        max_bytes: int,
    ) -> tuple[list[StoredEvent], int]:
        """Return the events of one part of all streams, in order, and the position up to which that is all.

        Streams are shared among `parts` by a hash of their ids. Without `categories`, all are meant. Ends behind the event with
        which the payloads together exceed `max_bytes`.
        """
        wanted = list(categories) or None, list(event_types)
        async with translated():
            rows = await self._pool.fetch(_READ_PART, from_position, to_position, part, parts, *wanted, max_bytes)
        events = list(map(StoredEvent._make, rows))
        full = sum(len(event.payload) for event in events) > max_bytes
        return events, events[-1].global_position if full else to_position

    async def read_following(self, position: int, limit: int, max_bytes: int) -> tuple[str | None, list[StoredEvent]]:
        """Return the id of the event at a position (None: the log ends before), and what follows it, as `read_stored` does.

        Both are of one moment, so a reader that knows which event it saw there notices when the log is another one: after a
        fail-over to an older copy, say, which a pool of connections makes without a word.
        """
        async with translated():
            rows = await self._pool.fetch(_READ_FOLLOWING, position, position + limit, max_bytes)
        if rows and rows[0][0] == position:
            return rows[0][1], list(map(StoredEvent._make, rows[1:]))
        return None, list(map(StoredEvent._make, rows))

    async def read_stored_at(self, positions: Sequence[int]) -> list[StoredEvent]:
        """Return the events at positions, in order, as stored."""
        async with translated():
            rows = await self._pool.fetch(_READ_STORED_AT, list(positions))
        return [StoredEvent(*row) for row in rows]

    async def link_before(self, position: int) -> tuple[int, str] | None:
        """Return number and digest (hex) of the last link of the hash chain at or before a position, if there is one."""
        async with translated():
            row = await self._pool.fetchrow(_LINK_BEFORE, position)
        return None if row is None else (row["number"], row["digest"])

    async def digest_of_link(self, number: int) -> str | None:
        """Return the digest (hex) of a link of the hash chain, None if there is no such link."""
        async with translated():
            digest: str | None = await self._pool.fetchval(_DIGEST_OF_LINK, number)
        return digest

    async def event_id_at(self, position: int) -> str | None:
        """Return the id of the event at a position, None if the log does not reach that far."""
        async with translated():
            event_id: str | None = await self._pool.fetchval(_EVENT_ID_AT, position)
        return event_id

    async def pinned_types(self) -> list[PinnedType]:
        """Return every registered event type with its schema id."""
        return await load_pinned_types(self._pool)

    async def register_event_types(self, event_types: Sequence[EventType], upcasters: Sequence[Upcaster]) -> None:
        """Register event types; see `eventspine.schemas.pins.register_event_types`."""
        await register_event_types(self._pool, event_types, upcasters, registry=self._registry)

    async def register_subjects(self, subjects: set[tuple[str, int]]) -> None:
        """List schemas under the subjects by which registries know them: (subject, schema id)."""
        await register_subjects(self._pool, subjects)

    async def categories_of_types(self, topic_prefix: str) -> dict[str, list[str]]:
        """Return, by category, the registered types whose events are there, without reading the log.

        Where subjects name no topic (RecordNameStrategy), only the categories of each type's first and last event are known.
        """
        async with translated():
            rows = await self._pool.fetch(_CATEGORIES_OF_TYPES, topic_prefix)
        categories: dict[str, list[str]] = {}
        for row in rows:
            categories.setdefault(row["category"], []).append(row["event_type"])
        return categories

    async def topics_of_types(self, topic_prefix: str) -> dict[str, list[str]]:
        """Return, by topic (without the prefix), the registered types that the relay has published there.

        Nothing where subjects name no topic (RecordNameStrategy).
        """
        async with translated():
            rows = await self._pool.fetch(_TOPICS_OF_TYPES, topic_prefix)
        topics: dict[str, list[str]] = {}
        for row in rows:
            topics.setdefault(row["topic"], []).append(row["event_type"])
        return topics

    async def pin_envelopes(self, data_schema_ids: set[int]) -> dict[int, PinnedEnvelope]:
        """Return the envelopes around schemas of data, by those schemas' ids; those that have none yet are registered."""
        return await pin_envelopes(self._pool, data_schema_ids, registry=self._registry)

    def listen(self) -> AbstractAsyncContextManager[AppendSignal]:
        """Hold a connection that hears of appends. When it is lost, the signal's `wait()` says so."""
        return listening(self._pool, _APPEND_CHANNEL)


@asynccontextmanager
async def listening(pool: asyncpg.Pool, channel_statement: str) -> AsyncIterator[AppendSignal]:
    """Hold a connection that hears of what is told on the channel that a statement names."""
    signal = AppendSignal()
    async with _borrowed(pool) as connection:
        async with translated():
            channel = await connection.fetchval(channel_statement)
            connection.add_termination_listener(signal.lose)
            await connection.add_listener(channel, signal.notify)
        try:
            yield signal
        finally:
            if not _is_gone(connection):
                connection.remove_termination_listener(signal.lose)
                async with translated():
                    await connection.remove_listener(channel, signal.notify)


@asynccontextmanager
async def _borrowed(pool: asyncpg.Pool) -> AsyncIterator[Connection]:
    """Borrow a connection. Only Postgres's own errors are translated, not those of the borrower."""
    async with translated():
        connection = await pool.acquire()
    try:
        yield connection
    finally:
        async with translated():
            await pool.release(connection)


def _is_gone(connection: Connection) -> bool:
    """Whether a borrowed connection was cut. The pool then takes it back by itself, and any call on it is refused."""
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True
