"""Copy an EventStoreDB, or anything that speaks its protocol, into our store: in its order, each event once, and then compared.

Left out are the system's own streams and events (`$…`), and what streams' metadata hide ($maxCount, $maxAge, $tb, deletion): the
log of such a server still shows that, but its streams do not, and a copy must not bring back what somebody deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from ...schemas import OPAQUE, Event, EventspineError, IntegrityError, InvalidEvent, SettingsError, Unavailable
from ...schemas.event import rfc3339
from ...schemas.from_json import data_from_json
from ...schemas.opaque import JSON, Opaque
from ...schemas.postgres import load_sql, translated
from ...schemas.retry import Backoff, wait_or_raise
from ..postgres import PostgresEventStore
from ..postgres.bulk import import_place
from . import events as door
from .asking import all_request, read_seen, stream_request
from .connection import KurrentConnection
from .envelope import Seen, envelope_of
from .faults import Fault
from .matching import matches
from .names import stream_id_of

__all__ = ["Copied", "Verified", "copy_events", "verify_copy"]

_NAME: Final = "kurrent"
_RULES: Final = {"event_type": {"prefix": ["$metadata", "$streamDeleted"]}}
_LAST_VERSIONS = load_sql("eventspine.store.postgres", "sql/last_versions")
_IDS_RECORDED = load_sql("eventspine.store.kurrent", "sql/ids_recorded")
_COPIED_STREAMS = load_sql("eventspine.store.kurrent", "sql/copied_streams")
_STREAMS_AT_ONCE: Final = 16
_COMPARED_AT_ONCE: Final = 1000


class Copied(NamedTuple):
    """How far a copy has come: the place in the source's log, the events that this run copied, and those that it left out
    because their streams hide them."""

    position: int
    events: int
    hidden: int


class Verified(NamedTuple):
    """What a comparison of all streams found. `renumbered`: the streams whose events have other numbers here than there."""

    events: int
    streams: int
    renumbered: int


class _Shown(NamedTuple):
    """A stream's events in the source: how many the log holds, how many the stream shows, and the last one that it shows."""

    in_log: int
    shown: int
    last_id: UUID | None
    last_revision: int


async def copy_events(
    connection: KurrentConnection,
    store: PostgresEventStore,
    *,
    batch_events: int = 2000,
    on_progress: Callable[[Copied], None] = lambda _: None,
) -> Copied:
    """Copy what the source's log holds by now. The place is recorded together with the events: after whatever end, call it again.

    Event ids are kept; one that is in several streams there is kept once, and its copies get ids of their own (a client of our
    door sees the original). Data of registered types is validated. A stream that does not begin at revision 0, or has gaps, is
    numbered from version 1; its events say in `metadata["kurrent"]["revision"]` what they were.

    Raises:
        SettingsError: the store has other events already, or those of another source.
        InvalidEvent: an event is refused; those before its batch are recorded.
        Fenced: another process copies at the same time.
        Unavailable: the source or Postgres is away; call again.
    """
    await store.register([OPAQUE])
    place = await import_place(store.pool, _NAME)
    await _check_target(connection, store, place)
    first_shown = await _first_shown(connection)
    copied = Copied(place, 0, 0)
    batch: list[Seen] = []
    hidden = 0

    async def record() -> Copied:
        events = await _events_of(store, batch)
        await store.import_batch(_NAME, events, copied.position, batch[-1].position)
        done = Copied(batch[-1].position, copied.events + len(batch), hidden)
        batch.clear()
        on_progress(done)
        return done

    async for seen in _log(connection, place):
        if _hides(first_shown, seen):
            hidden += 1
            continue
        batch.append(seen)
        if len(batch) == batch_events:
            copied = await record()
    if batch:
        copied = await record()
    return copied._replace(hidden=hidden)


async def verify_copy(connection: KurrentConnection, store: PostgresEventStore) -> Verified:
    """Read the source's log again, up to where the copy has come, and compare every stream: count, last event, last revision.

    Takes some 300 bytes of memory for each stream.

    Raises:
        IntegrityError: a stream is not as in the source; the first ones are named.
        Unavailable: the source or Postgres is away.
    """
    place = await import_place(store.pool, _NAME)
    first_shown = await _first_shown(connection)
    streams: dict[str, _Shown] = {}
    async for seen in _log(connection, 0):
        if seen.position > place:
            break
        known = streams.get(seen.name) or _Shown(0, 0, None, -1)
        if _hides(first_shown, seen):
            streams[seen.name] = known._replace(in_log=known.in_log + 1)
        else:
            streams[seen.name] = _Shown(known.in_log + 1, known.shown + 1, seen.event_id, seen.revision)
    faults: list[str] = []
    events = renumbered = 0
    names = list(streams)
    for start in range(0, len(names), _COMPARED_AT_ONCE):
        some = names[start : start + _COMPARED_AT_ONCE]
        async with translated():
            rows = await store.pool.fetch(_COPIED_STREAMS, [stream_id_of(name) for name in some])
        found = {row["stream_id"]: row for row in rows}
        for name in some:
            row = found.get(stream_id_of(name))
            faults += _faults(name, streams[name], row)
            if row is not None:
                events += row["events"]
                renumbered += row["revision"] != row["events"] - 1
    if faults:
        raise IntegrityError(f"the copy differs from its source in {len(faults)} streams: {'; '.join(faults[:5])}")
    return Verified(events, sum(each.shown > 0 for each in streams.values()), renumbered)


def _faults(name: str, there: _Shown, row: Any) -> list[str]:
    """Return what is wrong with a stream's copy. What the source has hidden since it was copied may be here."""
    count = 0 if row is None else row["events"]
    if not there.shown <= count <= there.in_log:
        return [f"{name} has {count} events here, {there.shown} there"]
    if there.shown and (row["id"], row["revision"]) != (str(there.last_id), there.last_revision):
        return [f"{name} ends with event {row['id']} here, with {there.last_id} (revision {there.last_revision}) there"]
    return []


async def _check_target(connection: KurrentConnection, store: PostgresEventStore, place: int) -> None:
    if not place:
        if await store.last_position():
            raise SettingsError("the store has events already: copy into an empty one, so that order and numbers can be kept")
        return
    async for seen in read_seen(connection, all_request(place, limit=1)):
        ids = [seen.event_id, _other_id(seen, stream_id_of(seen.name))]
        async with translated():
            if seen.position == place and await store.pool.fetch(_IDS_RECORDED, ids):
                return
        break
    raise SettingsError(f"this source has no event at position {place} that is recorded here: the copy began with another source")


async def _first_shown(connection: KurrentConnection) -> dict[str, int | None]:
    """Return the first revision that is shown of each stream that has metadata or a tombstone; None: it shows nothing."""
    names: set[str] = set()
    async for seen in read_seen(connection, all_request(0, wanted=_RULES)):
        name = seen.name.removeprefix("$$")
        if not name.startswith("$"):
            names.add(name)
    room = asyncio.Semaphore(_STREAMS_AT_ONCE)

    async def look(name: str) -> tuple[str, int | None]:
        async with room:
            async for seen in read_seen(connection, stream_request(name, 0, backwards=False, limit=1)):
                return name, seen.revision
        return name, None

    async with asyncio.TaskGroup() as looking:
        tasks = [looking.create_task(look(name)) for name in names]
    return dict(task.result() for task in tasks)


def _hides(first_shown: dict[str, int | None], seen: Seen) -> bool:
    if seen.name not in first_shown:
        return False
    first = first_shown[seen.name]
    return first is None or seen.revision < first


async def _log(connection: KurrentConnection, after: int) -> AsyncIterator[Seen]:
    """Yield the source's own events behind a position, as far as there are any now; survives a source that goes and comes."""
    backoff = Backoff(give_up_after_s=30.0)
    while True:
        try:
            async for seen in read_seen(connection, all_request(after)):
                backoff.reset()
                if seen.position > after:
                    after = seen.position
                    if matches(None, seen, envelope_of(seen)):
                        yield seen
            return
        except Unavailable as error:
            await wait_or_raise(backoff, error)


async def _events_of(store: PostgresEventStore, batch: Sequence[Seen]) -> list[Event]:
    """Return the events to record for a batch, with ids that are not recorded yet."""
    async with translated():
        taken = {row["id"] for row in await store.pool.fetch(_IDS_RECORDED, [seen.event_id for seen in batch])}
        stream_ids = list({_stream_id(seen) for seen in batch})
        versions = {row["stream_id"]: row["version"] for row in await store.pool.fetch(_LAST_VERSIONS, stream_ids)}
    events = []
    for seen in batch:
        stream_id = _stream_id(seen)
        versions[stream_id] = version = versions.get(stream_id, 0) + 1
        stored_id = _other_id(seen, stream_id) if seen.event_id in taken else seen.event_id
        taken.add(stored_id)
        note: dict[str, Any] = {} if version == seen.revision + 1 else {"revision": seen.revision}
        if stored_id != seen.event_id:
            note["id"] = str(seen.event_id)
        events.append(_event_of(store, seen, stream_id, stored_id, note))
    return events


def _stream_id(seen: Seen) -> str:
    try:
        return stream_id_of(seen.name)
    except Fault as fault:
        raise InvalidEvent(fault.text, stream_id=seen.name) from fault


def _other_id(seen: Seen, stream_id: str) -> UUID:
    return door.replacement_id(stream_id, seen.event_id, f"copy#{seen.revision}")


def _event_of(store: PostgresEventStore, seen: Seen, stream_id: str, stored_id: UUID, note: dict[str, Any]) -> Event:
    """Return an event as the store takes it: one that our client wrote with its own envelope, others as through the door."""
    envelope = envelope_of(seen)
    try:
        if envelope.schema_version is None:
            proposed = door.Proposed(seen.event_id, seen.event_type, seen.content_type, seen.data, seen.metadata)
            event = door.event_of(store, proposed, seen.event_id)
            metadata = {"timestamp": rfc3339(seen.created_at), **event.metadata}
        else:
            event = Event(
                event_type=seen.event_type, data=_data(store, seen, envelope.schema_version), tags=envelope.tags,
                schema_version=envelope.schema_version,
            )  # fmt: skip
            metadata = envelope.metadata
    except (Fault, EventspineError, msgspec.MsgspecError, ValueError) as error:
        raise InvalidEvent(
            f"{error} (revision {seen.revision} there)", stream_id=seen.name, event_type=seen.event_type
        ) from error
    if note:
        metadata = {**metadata, "kurrent": {**metadata.get("kurrent", {}), **note}}
    return msgspec.structs.replace(event, event_id=stored_id, stream_id=stream_id, metadata=metadata)


def _data(store: PostgresEventStore, seen: Seen, schema_version: int) -> Any:
    event_type = store.event_type(seen.event_type, schema_version)
    if event_type is None or seen.content_type != JSON:
        return Opaque(seen.content_type, seen.data)
    return data_from_json(event_type, msgspec.json.decode(seen.data, type=dict[str, Any]))
