"""PostgresEventStore: appends that share round trips, reads, and a live subscription."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from ...schemas import Codec, Event, EventType, Unavailable, UnknownEventType
from ...schemas.codec import UnknownSchemaId
from ...schemas.event import rfc3339
from ...schemas.pins import load_pinned_types, register_event_types
from ...schemas.postgres import load_sql, translated
from ...schemas.retry import Backoff
from ..protocol import ExpectedVersion
from .batch import AppendRequest, Outcome, arguments, cut_batch, prepare, recorded
from .log import PostgresLog

__all__ = ["PostgresEventStore"]

logger = logging.getLogger(__name__)

_SQL = "eventspine.store.postgres"
_APPEND = load_sql(_SQL, "sql/append_batch")
_READ_STREAM = load_sql(_SQL, "sql/read_stream")
_READ_ALL = load_sql(_SQL, "sql/read_all")
_LOAD_CHECKPOINT = load_sql(_SQL, "sql/load_checkpoint")
_SAVE_CHECKPOINT = load_sql(_SQL, "sql/save_checkpoint")

_read_json = msgspec.json.Decoder()


class PostgresEventStore:
    """The event store on Postgres; see `EventStore` for the contract.

    `pool` must lead to a migrated database (`eventspine.migrate`) and stays the caller's: closing it is not our business.
    One store per process is best: appends that are called at the same time share round trips only within one.

    Options: `max_event_bytes` bounds encoded data plus metadata of one event. `max_batch_events` and `max_batch_bytes`
    bound what goes in one round trip. `retry_s` is how long an append or read tries again while Postgres is away.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        *,
        max_event_bytes: int = 1_000_000,
        max_batch_events: int = 512,
        max_batch_bytes: int = 8_000_000,
        retry_s: float = 30.0,
    ) -> None:
        self.log = PostgresLog(pool)
        self._pool = pool
        self._codec = Codec()
        self._max_event_bytes = max_event_bytes
        self._max_batch_events = max_batch_events
        self._max_batch_bytes = max_batch_bytes
        self._retry_s = retry_s
        self._waiting: deque[AppendRequest] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def register(self, event_types: Sequence[EventType]) -> None:
        """Register event types, all or none; each keeps its schema id for ever. Doing it again changes nothing.

        Raises:
            SchemaError: a type is registered under that version with another schema.
        """
        self._codec.add(await register_event_types(self._pool, event_types))

    async def append(
        self, stream_id: str, stream_type: str, events: Sequence[Event], expected_version: ExpectedVersion
    ) -> list[Event]:
        """Append events to one stream; see `EventStore.append`.

        Calls made while a round trip is under way go together in the next one. A lost connection is retried for `retry_s`
        seconds; the event ids make that safe. Cancelling leaves the append undone if it was still waiting, else unknown.
        """
        request = await self._prepare(stream_id, stream_type, events, expected_version)
        request.done = asyncio.get_running_loop().create_future()
        self._waiting.append(request)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_waiting(), name="eventspine-append")
        outcome = await request.done
        if outcome.outcome == "duplicate":
            assert outcome.version is not None
            return await self.read_stream(stream_id, outcome.version, len(request.encoded))
        return recorded(request, outcome)

    async def read_stream(self, stream_id: str, from_version: int = 0, limit: int | None = None) -> list[Event]:
        """Return a stream's events with `version >= from_version`, in order."""
        return await self._read(_READ_STREAM, stream_id, from_version, limit)

    async def read_all(self, from_position: int = 0, limit: int = 1000) -> list[Event]:
        """Return at most `limit` events of the log with `global_position > from_position`, in order."""
        return await self._read(_READ_ALL, from_position, min(from_position + limit, 2**63 - 1))

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""
        return await self.log.last_position()

    async def subscribe(self, *, from_position: int = 0, batch_size: int = 1000, poll_s: float = 1.0) -> AsyncIterator[Event]:
        """Yield the log after `from_position`, then new events as they come; see `EventStore.subscribe`.

        `poll_s` bounds the delay when a notification is lost. While Postgres is away the subscription waits; it raises
        `Unavailable` only after `retry_s` seconds without success.
        """
        backoff = Backoff(give_up_after_s=self._retry_s)
        from_position = max(from_position, 0)
        while True:
            try:
                async with self.log.listen() as signal:
                    while True:
                        events = await self._read_once(_READ_ALL, from_position, from_position + batch_size)
                        if backoff.failing:
                            logger.info("subscription goes on", extra={"from_position": from_position})
                            backoff.reset()
                        for event in events:
                            yield event
                            from_position = event.global_position
                        if not events:
                            await signal.wait(poll_s)
            except Unavailable as error:
                if not backoff.failing:
                    logger.warning("subscription waits for Postgres: %s", error, extra={"from_position": from_position})
                await _wait(backoff, error)

    async def load_checkpoint(self, subscription_id: str) -> int:
        """Return the position saved under this name, 0 if none was."""
        async with translated():
            return await self._pool.fetchval(_LOAD_CHECKPOINT, subscription_id) or 0

    async def save_checkpoint(self, subscription_id: str, last_position: int) -> None:
        """Save how far a subscription has come; a lower position than the saved one is ignored."""
        async with translated():
            await self._pool.execute(_SAVE_CHECKPOINT, subscription_id, last_position)

    async def _prepare(
        self, stream_id: str, stream_type: str, events: Sequence[Event], expected: ExpectedVersion
    ) -> AppendRequest:
        now = rfc3339(datetime.now(UTC))
        try:
            return prepare(self._codec, stream_id, stream_type, events, expected, now=now, max_event_bytes=self._max_event_bytes)
        except UnknownEventType:  # somebody else may have registered it since we looked
            self._codec.add(await load_pinned_types(self._pool))
            return prepare(self._codec, stream_id, stream_type, events, expected, now=now, max_event_bytes=self._max_event_bytes)

    async def _send_waiting(self) -> None:
        """Send batch after batch until nobody waits. Every request taken gets an outcome or an error."""
        try:
            while batch := cut_batch(self._waiting, max_events=self._max_batch_events, max_bytes=self._max_batch_bytes):
                await self._send(batch)
        except asyncio.CancelledError:  # the loop is closing
            for request in self._waiting:
                _pending(request).cancel()
            raise
        finally:
            self._sender = None

    async def _send(self, batch: list[AppendRequest]) -> None:
        try:
            outcomes = await self._append_with_retry(batch)
        except asyncio.CancelledError:
            for request in batch:
                _pending(request).cancel()
            raise
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, Unavailable):
                # Postgres refuses something in this batch; send each alone, so that the others pass.
                for number, request in enumerate(batch):
                    try:
                        await self._send([request])
                    except asyncio.CancelledError:
                        for waiting in batch[number:]:
                            _pending(waiting).cancel()
                        raise
                return
            for request in batch:
                if not _pending(request).done():
                    _pending(request).set_exception(error)
        else:
            for request, outcome in zip(batch, outcomes, strict=True):
                if not _pending(request).done():
                    _pending(request).set_result(outcome)

    async def _append_with_retry(self, batch: list[AppendRequest]) -> list[Outcome]:
        backoff = Backoff(give_up_after_s=self._retry_s)
        parameters = arguments(batch)
        while True:
            try:
                async with translated():
                    rows = await self._pool.fetch(_APPEND, *parameters)
                return [Outcome(*row) for row in rows]
            except Unavailable as error:
                if not backoff.failing:
                    logger.warning("append waits for Postgres: %s", error, extra={"appends": len(batch)})
                await _wait(backoff, error)

    async def _read(self, statement: str, *parameters: Any) -> list[Event]:
        backoff = Backoff(give_up_after_s=self._retry_s)
        while True:
            try:
                return await self._read_once(statement, *parameters)
            except Unavailable as error:
                await _wait(backoff, error)

    async def _read_once(self, statement: str, *parameters: Any) -> list[Event]:
        async with translated():
            rows = await self._pool.fetch(statement, *parameters)
        try:
            return [self._event(*row) for row in rows]
        except UnknownSchemaId:
            self._codec.add(await load_pinned_types(self._pool))
            return [self._event(*row) for row in rows]

    def _event(
        self,
        global_position: int,
        event_id: Any,
        stream_id: str,
        event_type: str,
        version: int,
        schema_version: int,
        metadata: str,
        payload: bytes,
        created_at: datetime,
    ) -> Event:
        return Event(
            event_type=event_type,
            data=self._codec.decode(payload),
            metadata=_read_json.decode(metadata),
            event_id=event_id,
            stream_id=stream_id,
            schema_version=schema_version,
            version=version,
            global_position=global_position,
            created_at=created_at,
        )


def _pending(request: AppendRequest) -> asyncio.Future[Outcome]:
    assert request.done is not None
    return request.done


async def _wait(backoff: Backoff, error: Unavailable) -> None:
    delay_s = backoff.next_delay_s()
    if delay_s is None:
        raise error
    await asyncio.sleep(delay_s)
