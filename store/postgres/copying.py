"""A log in Postgres as one end of a copy."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from ...schemas import Codec, Fenced, SchemaError
from ...schemas.codec import PinnedType, json_of
from ...schemas.pins import load_pinned_types
from ...schemas.postgres import load_sql, translated
from ..copying import CopiedEvent, CopiedSchema

__all__ = ["PostgresCopy"]

_SQL = "eventspine.store.postgres"
_READ_AUDITED = load_sql(_SQL, "sql/read_audited")
_ALL_SCHEMAS = load_sql(_SQL, "sql/all_schemas")
_PIN_SCHEMA = load_sql(_SQL, "sql/pin_schema")
_PIN_EVENT_TYPE = load_sql("eventspine.schemas", "sql/register_event_type")
_LAST_POSITION = load_sql(_SQL, "sql/last_position")
_LOCK = load_sql(_SQL, "sql/lock_log")
_END_OF_LOG = load_sql(_SQL, "sql/end_of_log")
_END_IMPORT = load_sql(_SQL, "sql/end_import")

_COLUMNS = [
    "global_position", "id", "stream_id", "stream_type", "version", "event_type", "schema_version", "metadata", "tags", "payload",
    "created_at", "event_data",
]  # fmt: skip


class PostgresCopy:
    """See `CopyEnd`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._codec = Codec()

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""
        async with translated():
            return int(await self._pool.fetchval(_LAST_POSITION))

    async def read_copied(self, from_position: int, limit: int) -> list[CopiedEvent]:
        """Return at most `limit` events behind a position, in order."""
        async with translated():
            rows = await self._pool.fetch(_READ_AUDITED, from_position, from_position + limit)
        return [CopiedEvent._make((*tuple(row)[:8], tuple(row["tags"] or ()), row["payload"], row["created_at"])) for row in rows]

    async def write_copied(self, events: Sequence[CopiedEvent]) -> None:
        """Append events as they are, all or none.

        Raises:
            Fenced: the log does not end where they begin: somebody else appends.
            SchemaError: a payload does not fit its schema.
        """
        rows = [
            (*event[:8], list(event.tags) or None, event.payload, event.created_at,
             json_of(self._codec.decode(event.payload)).decode())
            for event in events
        ]  # fmt: skip
        tags = [(tag, event.global_position, event.event_type) for event in events for tag in event.tags]
        first, last = events[0].global_position, events[-1].global_position
        async with translated(), self._pool.acquire() as connection, connection.transaction(isolation="read_committed"):
            await connection.execute(_LOCK)
            end, _ = await connection.fetchrow(_END_OF_LOG)  # type: ignore[misc]
            if end != first - 1:
                raise Fenced(f"the log ends at position {end}, not at {first - 1}: somebody else appends; copy into it alone")
            await connection.copy_records_to_table("events", records=rows, columns=_COLUMNS)
            if tags:
                await connection.copy_records_to_table(
                    "event_tags", records=tags, columns=["tag", "global_position", "event_type"]
                )
            await connection.execute(_END_IMPORT, last, len(events))

    async def schemas(self) -> tuple[list[CopiedSchema], list[PinnedType]]:
        """Return all schemas of data, and the event types that have them."""
        async with translated():
            rows = await self._pool.fetch(_ALL_SCHEMAS)
        found = [CopiedSchema(*tuple(row)[:4]) for row in rows if row["data_schema_id"] is None]
        return found, await load_pinned_types(self._pool)

    async def pin_schemas(self, schemas: Sequence[CopiedSchema], event_types: Sequence[PinnedType]) -> None:
        """Give schemas and event types the ids that they have elsewhere.

        Raises:
            SchemaError: an id is another schema's here, or a type has another schema.
        """
        async with translated(), self._pool.acquire() as connection, connection.transaction():
            for each in schemas:
                await connection.execute(_PIN_SCHEMA, *each)
            known = {row["schema_id"]: row["fingerprint"] for row in await connection.fetch(_ALL_SCHEMAS)}
            taken = sorted(each.schema_id for each in schemas if known.get(each.schema_id) != each.fingerprint)
            if not taken:
                for pin in event_types:
                    await connection.execute(_PIN_EVENT_TYPE, pin.event_type.name, pin.event_type.schema_version, pin.schema_id)
                taken = sorted({pin.schema_id for pin in set(event_types) - set(await load_pinned_types(connection))})
            if taken:
                raise SchemaError(f"the target has other schemas under the ids {taken}: copy into an empty store")
        self._codec.add(await load_pinned_types(self._pool))
