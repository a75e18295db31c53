"""A log in DynamoDB as one end of a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

from ...schemas import EventspineError, Fenced, SchemaError
from ...schemas.codec import PinnedType
from ...schemas.registry_rules import fingerprint
from ..copying import CopiedEvent, CopiedSchema
from .layout import LogHead, head_key, id_key, part_text
from .log import DynamoDBLog, stored
from .pins import load_schemas, pin
from .table import MAX_TRANSACTION_ITEMS, Cancelled, Item, Table, put
from .writing import event_item, log_operations

__all__ = ["DynamoDBCopy"]

_NEW = "attribute_not_exists(PK)"
_MAX_BYTES = 3_000_000
_MAX_EVENT_BYTES = 380_000


class DynamoDBCopy:
    """See `CopyEnd`."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._log = DynamoDBLog(table)

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""
        return await self._log.last_position()

    async def read_copied(self, from_position: int, limit: int) -> list[CopiedEvent]:
        """Return at most `limit` events behind a position, in order."""
        end = min(await self._log.last_position(), from_position + limit)
        return [_copied(item) for item in await self._log.read_items(from_position, end)]

    async def write_copied(self, events: Sequence[CopiedEvent]) -> None:
        """Append events as they are, by transactions of as many as fit.

        Raises:
            Fenced: the log does not end where they begin: somebody else appends.
            EventspineError: an event is larger than an item of DynamoDB.
        """
        for chunk in _chunks(events):
            try:
                await self._table.transact(list(_operations(chunk)))
            except Cancelled as error:
                if error.reasons[0].code == "ConditionalCheckFailed":
                    end = chunk[0].global_position - 1
                    raise Fenced(f"the log does not end at position {end}: somebody else appends; copy into it alone") from error
                raise EventspineError(f"DynamoDB refused a part of the copy: {error}; run it again") from error

    async def schemas(self) -> tuple[list[CopiedSchema], list[PinnedType]]:
        """Return all schemas of data, and the event types that have them."""
        known = await load_schemas(self._table)
        return [
            CopiedSchema(number, fingerprint(text, ()), text, "[]") for number, text in known.definitions.items()
        ], known.event_types

    async def pin_schemas(self, schemas: Sequence[CopiedSchema], event_types: Sequence[PinnedType]) -> None:
        """Give schemas and event types the ids that they have elsewhere.

        Raises:
            SchemaError: an id is another schema's here, a type has another schema, or a schema refers to others.
        """
        used = {each.schema_id for each in event_types}
        refer = sorted(each.schema_id for each in schemas if each.schema_id in used and each.references != "[]")
        if refer:
            raise SchemaError(f"the schemas {refer} refer to others, which a log in DynamoDB can't hold")
        definitions = {each.schema_id: each.definition for each in schemas if each.references == "[]"}
        await pin(self._table, definitions, event_types)


def _chunks(events: Sequence[CopiedEvent]) -> Iterator[list[CopiedEvent]]:
    """Cut events into runs that a transaction holds."""
    chunk: list[CopiedEvent] = []
    streams: set[str] = set()
    size = 0
    for event in events:
        bytes_ = len(event.payload) + len(event.metadata.encode())
        if bytes_ > _MAX_EVENT_BYTES:
            raise EventspineError(
                f"the event at position {event.global_position} has {bytes_:,} bytes; an item of DynamoDB holds "
                f"{_MAX_EVENT_BYTES:,}"
            )
        items = 2 + 2 * (len(chunk) + 1) + len(streams | {event.stream_id})
        if chunk and (items > MAX_TRANSACTION_ITEMS or size + bytes_ > _MAX_BYTES):
            yield chunk
            chunk, streams, size = [], set(), 0
        chunk.append(event)
        streams.add(event.stream_id)
        size += bytes_
    if chunk:
        yield chunk


def _operations(events: Sequence[CopiedEvent]) -> Iterator[dict[str, Any]]:
    first, last = events[0], events[-1]
    parts = []
    for stream_id, run in groupby(events, key=lambda event: event.stream_id):
        together = list(run)
        parts.append(part_text(together[0].version, len(together), stream_id))
    yield from log_operations(first.global_position - 1, LogHead(last.global_position, last.created_at), parts)
    versions = {event.stream_id: event.version for event in events}
    for stream_id, version in versions.items():
        yield put(head_key(stream_id) | {"version": version})
    for event in events:
        item = event_item(
            event.stream_id, event.version, event.global_position, event_id=event.event_id, event_type=event.event_type,
            schema_version=event.schema_version, metadata=event.metadata, payload=event.payload, tags=event.tags,
            created_at=event.created_at,
        )  # fmt: skip
        yield put(item, _NEW)
        yield put(id_key(event.event_id) | {"stream_id": event.stream_id, "version": event.version}, _NEW)


def _copied(item: Item) -> CopiedEvent:
    event = stored(item)
    return CopiedEvent(
        event.global_position, UUID(event.event_id), event.stream_id, event.stream_type, event.version, event.event_type,
        event.schema_version, event.metadata, tuple(item.get("tags", ())), event.payload, event.created_at,
    )  # fmt: skip
