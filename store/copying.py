"""A log copied event by event into another store, at the same positions, and compared with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, NamedTuple, Protocol
from uuid import UUID

import msgspec

from ..schemas import Fenced, IntegrityError, SchemaError
from ..schemas.codec import PinnedType

__all__ = ["CopiedEvent", "CopiedSchema", "Copy", "CopyEnd", "copy_log", "first_difference"]

_BATCH_EVENTS: Final = 1000


class CopiedEvent(NamedTuple):
    """An event with all that is kept of it. `metadata` is JSON, `created_at` is exact to the microsecond."""

    global_position: int
    event_id: UUID
    stream_id: str
    stream_type: str
    version: int
    event_type: str
    schema_version: int
    metadata: str
    tags: tuple[str, ...]
    payload: bytes
    created_at: datetime


class CopiedSchema(NamedTuple):
    """A schema under the id that payloads begin with. `references` is JSON, as the registry has it."""

    schema_id: int
    fingerprint: bytes
    definition: str
    references: str


class CopyEnd(Protocol):
    """A store as one end of a copy."""

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""

    async def read_copied(self, from_position: int, limit: int) -> list[CopiedEvent]:
        """Return at most `limit` events behind a position, in order, without a gap; [] at the end."""

    async def write_copied(self, events: Sequence[CopiedEvent]) -> None:
        """Append events as they are, all or a beginning of them.

        Raises:
            Fenced: the log does not end where they begin: somebody else appends.
        """

    async def schemas(self) -> tuple[list[CopiedSchema], list[PinnedType]]:
        """Return all schemas of data, and the event types that have them."""

    async def pin_schemas(self, schemas: Sequence[CopiedSchema], event_types: Sequence[PinnedType]) -> None:
        """Give schemas and event types the ids that they have elsewhere.

        Raises:
            SchemaError: an id is another schema's here, or a type has another schema.
        """


class Copy(NamedTuple):
    """How far a copy is: what earlier runs copied, what this one did, and of how many."""

    before: int
    now: int
    end: int


async def copy_log(
    source: CopyEnd,
    target: CopyEnd,
    *,
    verify: bool = True,
    batch_events: int = _BATCH_EVENTS,
    on_progress: Callable[[Copy], None] = lambda _: None,
) -> Copy:
    """Copy what a log holds into another store: ids, streams, versions, positions, times, schema ids and bytes as they are.

    The target is empty, or holds the beginning of the source: then the copy goes on, so one that was stopped at any moment is
    run again. What is appended to the source meanwhile is copied by the next run. At the end both are compared, event by event.
    Snapshots, checkpoints and what projections keep are no part of it; personal fields neither, whose keys stay where they are.

    Raises:
        IntegrityError: the target holds something else, or differs at the end; it says where.
        SchemaError: the source has personal fields, or the target other schemas under the same ids.
        Fenced: somebody else appends to the target.
        Unavailable: one of them is away; call again.
    """
    schemas, event_types = await source.schemas()
    personal = sorted({pin.event_type.name for pin in event_types if pin.event_type.personal})
    if personal:
        raise SchemaError(
            f"{', '.join(personal)} have personal fields, which are encrypted with keys that are no part of a copy: nobody could "
            "read them there"
        )
    await target.pin_schemas(schemas, event_types)
    before, end = await target.last_position(), await source.last_position()
    if before > end:
        raise IntegrityError(f"the target has {before:,} events, and the source {end:,}: it is not the beginning of this log")
    if before:
        await _compare(source, target, before - 1, before, batch_events)
    done = before
    on_progress(Copy(before, 0, end))
    while done < end:
        events = await source.read_copied(done, min(batch_events, end - done))
        if [event.global_position for event in events] != list(range(done + 1, done + 1 + len(events))) or not events:
            raise IntegrityError(f"the source has no event at position {done + 1}, though it has {end:,}: run its `audit verify`")
        await target.write_copied(events)
        done = events[-1].global_position
        on_progress(Copy(before, done - before, end))
    if verify:
        await _compare(source, target, 0, end, batch_events)
        if await target.last_position() != end:
            raise Fenced(f"the target has more than the {end:,} events that were copied: somebody else appends to it")
    return Copy(before, done - before, end)


async def _compare(source: CopyEnd, target: CopyEnd, after: int, end: int, batch_events: int) -> None:
    while after < end:
        limit = min(batch_events, end - after)
        mine, theirs = await source.read_copied(after, limit), await target.read_copied(after, limit)
        different = first_difference(mine, theirs)
        if different is not None:
            raise IntegrityError(
                f"the copy differs from the log at position {after + 1 + different[0]} in {different[1]}: copy into an empty "
                "store"
            )
        after += len(mine)


def first_difference(these: Sequence[CopiedEvent], those: Sequence[CopiedEvent]) -> tuple[int, str] | None:
    """Return where two runs of events first differ: an index, and the name of the field; None if they are the same."""
    for index, (this, other) in enumerate(zip(these, those, strict=False)):
        if this != other:
            for name in CopiedEvent._fields:
                mine, theirs = getattr(this, name), getattr(other, name)
                if name == "metadata":
                    mine, theirs = msgspec.json.decode(mine), msgspec.json.decode(theirs)
                if mine != theirs:
                    return index, name
    if len(these) != len(those):
        return min(len(these), len(those)), "number of events"
    return None
