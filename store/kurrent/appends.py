"""Appends, deletions and tombstones, with the protocol's rules of idempotence on top of the store's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID, uuid4

from ...schemas import ConcurrencyError, Event, EventIdTaken, Opaque
from ...schemas.codec import json_of
from ...schemas.opaque import JSON
from ...schemas.postgres import load_sql, translated
from ..postgres import PostgresEventStore
from ..protocol import ANY, NO_STREAM, STREAM_EXISTS, Expected, ExpectedVersion, StreamAppend
from .events import Proposed, event_of, replacement_id
from .faults import Deleted, TooLarge, WrongVersion, bad_request
from .names import stream_id_of, stream_name_of, type_of
from .rules import (
    METADATA_TYPE,
    SETTINGS,
    TOMBSTONE_TYPE,
    Rules,
    StreamRules,
    Told,
    stream_of_metadata,
    with_deletion,
    without_deletion,
)

__all__ = ["Appended", "Appends"]

_SQL = "eventspine.store.kurrent"
_LAST_VERSION = load_sql(_SQL, "sql/last_version")
_PLACES = load_sql(_SQL, "sql/places_of_ids")
_LOCK = load_sql("eventspine.store.postgres", "sql/lock_log")
_SETTINGS_ID = stream_id_of(SETTINGS)
_LOOK_AGAIN_S = 1.0
_TRIES = 5


class Appended(NamedTuple):
    """Where an append ended: the stream's version (0 = no event), and its last event's position (0 = nothing was written)."""

    version: int
    position: int


class Appends:
    """Writes for all calls of one server."""

    def __init__(self, store: PostgresEventStore, rules: Rules, *, max_append_bytes: int) -> None:
        self._store = store
        self._rules = rules
        self._looked_at = -_LOOK_AGAIN_S
        self.max_append_bytes = max_append_bytes

    async def append(
        self, name: str, expected: ExpectedVersion, proposed: Sequence[Proposed], *, types_known: bool = False
    ) -> Appended:
        """Append to a stream, all or none. A repetition with the same event ids writes nothing, and tells where they are.

        After `know_types`, with `types_known`, appends are handed to the store in the order in which they begin.

        Raises:
            WrongVersion, Deleted, TooLarge: nothing is written.
            InvalidEvent: data of a registered type does not fit it.
            Unavailable: it may or may not be written; the same again finds out.
        """
        stream_id = stream_id_of(name)
        rules = self._rules.of(name)
        if rules.tombstoned and not name.startswith("$$"):
            raise Deleted(name)
        if not proposed:
            return await self._nothing(name, stream_id, expected)
        if any(each.event_type == TOMBSTONE_TYPE for each in proposed):
            raise bad_request(f"{TOMBSTONE_TYPE} is the server's own event type; tombstone the stream instead")
        if sum(each.size for each in proposed) > self.max_append_bytes:
            raise TooLarge(self.max_append_bytes)
        if not types_known:
            await self.know_types(proposed)
        ids = _own_ids(stream_id, proposed)
        try:
            if rules.deleted:
                return await self._revive(name, stream_id, expected, self._events(proposed, ids), rules)
            return await self._write(name, stream_id, expected, self._events(proposed, ids))
        except ConcurrencyError as conflict:
            place = await self._repeated(stream_id, expected, proposed, ids)
            if place is None:
                raise WrongVersion(name, expected, conflict.actual) from None
            return place
        except EventIdTaken:
            return await self._append_taken(name, stream_id, expected, proposed, ids)

    async def append_session(self, parts: Sequence[tuple[str, ExpectedVersion, list[Proposed]]]) -> list[Appended]:
        """Append to several streams, all or none; return where each append ended.

        Raises: as `append`; of WrongVersion and Deleted, for the first stream that is not as expected.
        """
        appends, marks = [], []
        for name, expected, proposed in parts:
            rules = self._rules.of(name)
            if (rules.tombstoned and not name.startswith("$$")) or (rules.deleted and expected is STREAM_EXISTS):
                raise Deleted(name)
            if any(each.size > self.max_append_bytes for each in proposed):
                raise TooLarge(self.max_append_bytes)
            if any(each.event_type == TOMBSTONE_TYPE for each in proposed):
                raise bad_request(f"{TOMBSTONE_TYPE} is the server's own event type; tombstone the stream instead")
            await self.know_types(proposed)
            stream_id = stream_id_of(name)
            if rules.deleted:
                last = await self.last_version(stream_id)
                if not isinstance(expected, Expected) and expected not in (0, last):
                    raise WrongVersion(name, expected, last)
                expected, metadata_id = last, stream_of_metadata(name)
                mark = _marking(METADATA_TYPE, without_deletion(rules, last))
                marks.append(StreamAppend(metadata_id, type_of(metadata_id), [mark], ANY))
            events = self._events(proposed, _own_ids(stream_id, proposed))
            appends.append(StreamAppend(stream_id, type_of(stream_id), events, expected))
        try:
            recorded = await self._store.append_streams([*appends, *marks])
        except ConcurrencyError as conflict:
            place = next(n for n, each in enumerate(appends) if each.stream_id == conflict.stream_id)
            raise WrongVersion(*parts[place][:2], conflict.actual) from None
        except EventIdTaken:
            others = [
                append._replace(events=self._events(proposed, _other_ids(append.stream_id, expected, proposed)))
                for append, (_, expected, proposed) in zip(appends, parts, strict=True)
            ]
            try:
                recorded = await self._store.append_streams([*others, *marks])
            except (ConcurrencyError, EventIdTaken) as conflict:
                place = next(n for n, each in enumerate(appends) if each.stream_id == conflict.stream_id)
                actual = await self.last_version(conflict.stream_id)
                raise WrongVersion(*parts[place][:2], actual) from None
        for events in recorded:
            self._learn(events)
        return [Appended(events[-1].version, events[-1].global_position) for events in recorded[: len(appends)]]

    async def delete(self, name: str, expected: ExpectedVersion) -> int:
        """Delete a stream: its events are not given out any more; it can be written to again. Return the position of the mark.

        Raises:
            WrongVersion, Deleted: nothing is written.
        """
        stream_id = stream_id_of(name)
        rules = self._rules.of(name)
        if rules.tombstoned or (rules.deleted and expected is STREAM_EXISTS):
            raise Deleted(name)
        event = _marking(METADATA_TYPE, with_deletion(rules))
        metadata_id = stream_of_metadata(name)
        async with translated(), self._store.pool.acquire() as connection, connection.transaction(isolation="read_committed"):
            await connection.execute(_LOCK)
            last = await connection.fetchval(_LAST_VERSION, stream_id) or 0
            present = 0 if rules.deleted else last
            if last == 0 or not (_fits(expected, present) or (rules.deleted and _fits(expected, last))):
                raise WrongVersion(name, expected, last)
            [recorded] = await self._store.append(metadata_id, type_of(metadata_id), [event], ANY, connection=connection)
        self._learn([recorded])
        return recorded.global_position

    async def tombstone(self, name: str, expected: ExpectedVersion) -> int:
        """Delete a stream for ever: it can be neither read nor written to any more. Return the position of the mark.

        Raises:
            WrongVersion, Deleted: nothing is written.
        """
        if self._rules.of(name).tombstoned:
            raise Deleted(name)
        event = _marking(TOMBSTONE_TYPE, b"")
        try:
            [recorded] = await self._send(stream_id_of(name), expected, [event])
        except ConcurrencyError as conflict:
            raise WrongVersion(name, expected, conflict.actual) from None
        self._learn([recorded])
        return recorded.global_position

    async def last_version(self, stream_id: str) -> int:
        async with translated():
            return int(await self._store.pool.fetchval(_LAST_VERSION, stream_id) or 0)

    async def _nothing(self, name: str, stream_id: str, expected: ExpectedVersion) -> Appended:
        last = await self.last_version(stream_id)
        if not _fits(expected, last):
            raise WrongVersion(name, expected, last)
        return Appended(last, 0)

    async def know_types(self, proposed: Sequence[Proposed]) -> None:
        """Look whether types that seem unregistered are registered by now: once a second at most."""
        if time.monotonic() - self._looked_at > _LOOK_AGAIN_S and any(
            self._store.event_type(each.event_type) is None for each in proposed
        ):
            self._looked_at = time.monotonic()
            await self._store.refresh_types()

    def _events(self, proposed: Sequence[Proposed], ids: Sequence[UUID]) -> list[Event]:
        return [event_of(self._store, each, stored_id) for each, stored_id in zip(proposed, ids, strict=True)]

    async def _send(self, stream_id: str, expected: ExpectedVersion, events: Sequence[Event]) -> list[Event]:
        return await self._store.append(stream_id, type_of(stream_id), events, expected)

    async def _write(self, name: str, stream_id: str, expected: ExpectedVersion, events: Sequence[Event]) -> Appended:
        recorded = await self._send(stream_id, expected, events)
        if name.startswith("$$") or name == SETTINGS:
            self._learn(recorded)
        return Appended(recorded[-1].version, recorded[-1].global_position)

    async def _revive(
        self, name: str, stream_id: str, expected: ExpectedVersion, events: Sequence[Event], rules: StreamRules
    ) -> Appended:
        """Append to a deleted stream: numbers go on, and what was before stays away. Both are recorded, or neither."""
        if expected is STREAM_EXISTS:
            raise Deleted(name)
        metadata_id = stream_of_metadata(name)
        for left in range(_TRIES - 1, -1, -1):
            last = await self.last_version(stream_id)
            if not isinstance(expected, Expected) and expected not in (0, last):
                raise WrongVersion(name, expected, last)
            mark = _marking(METADATA_TYPE, without_deletion(rules, last))
            appends = [
                StreamAppend(stream_id, type_of(stream_id), events, last),
                StreamAppend(metadata_id, type_of(metadata_id), [mark], ANY),
            ]
            try:
                recorded, marked = await self._store.append_streams(appends)
            except ConcurrencyError:
                if not left:
                    raise
                continue
            self._learn(marked)
            return Appended(recorded[-1].version, recorded[-1].global_position)
        raise AssertionError("the last try returns or raises")

    async def _append_taken(
        self, name: str, stream_id: str, expected: ExpectedVersion, proposed: Sequence[Proposed], ids: Sequence[UUID]
    ) -> Appended:
        """Append events whose ids are recorded already: as a repetition, or, where they are in other streams, under other ids."""
        place = await self._repeated(stream_id, expected, proposed, ids)
        if place is not None:
            return place
        if isinstance(expected, Expected) and await self._places(stream_id, ids[:1]):
            raise WrongVersion(name, expected, await self.last_version(stream_id))  # the first was appended, and not with these
        stored = _other_ids(stream_id, expected, proposed)
        try:
            return await self._write(name, stream_id, expected, self._events(proposed, stored))
        except ConcurrencyError as conflict:
            raise WrongVersion(name, expected, conflict.actual) from None
        except EventIdTaken:
            raise WrongVersion(name, expected, await self.last_version(stream_id)) from None

    async def _repeated(
        self, stream_id: str, expected: ExpectedVersion, proposed: Sequence[Proposed], ids: Sequence[UUID]
    ) -> Appended | None:
        """Return where the same events were recorded by the same append before, None if they were not."""
        candidates = [ids, _other_ids(stream_id, expected, proposed)]
        places = await self._places(stream_id, [each for some in candidates for each in some])
        for some in candidates:
            found = [places.get(each) for each in some]
            first = found[0]
            if first is None or not (isinstance(expected, Expected) or expected == first[0] - 1):
                continue
            if expected is NO_STREAM and first[0] not in (1, self._rules.of(stream_name_of(stream_id)).first_version):
                continue
            if all(place is not None and place[0] == first[0] + n for n, place in enumerate(found)):
                last = found[-1]
                assert last is not None
                return Appended(*last)
        return None

    async def _places(self, stream_id: str, ids: Sequence[UUID]) -> dict[UUID, tuple[int, int]]:
        """Return version and position of those ids that are in a stream."""
        async with translated():
            rows = await self._store.pool.fetch(_PLACES, stream_id, ids)
        return {row["id"]: (row["version"], row["global_position"]) for row in rows}

    def _learn(self, recorded: Sequence[Event]) -> None:
        """Take note of metadata and tombstones that were recorded, before their writer is answered."""
        self._rules.learn(
            Told(event.global_position, stream_name_of(event.stream_id), event.event_type, _content(event))
            for event in recorded
            if event.event_type in (METADATA_TYPE, TOMBSTONE_TYPE) or event.stream_id == _SETTINGS_ID
        )


def _content(event: Event) -> bytes:
    content = event.data.get("content")
    return content if isinstance(content, bytes) else json_of(event.data)


def _marking(event_type: str, content: bytes) -> Event:
    return Event(event_type=event_type, data=Opaque(JSON, content), event_id=uuid4())


def _fits(expected: ExpectedVersion, version: int) -> bool:
    if expected is ANY:
        return True
    if expected is STREAM_EXISTS:
        return version > 0
    return version == (0 if expected is NO_STREAM else expected)


def _own_ids(stream_id: str, proposed: Sequence[Proposed]) -> list[UUID]:
    """Return the ids to store events under: their own, and others for those that come twice in one append."""
    seen: dict[UUID, int] = {}
    ids = []
    for each in proposed:
        count = seen[each.event_id] = seen.get(each.event_id, 0) + 1
        ids.append(each.event_id if count == 1 else replacement_id(stream_id, each.event_id, f"#{count}"))
    return ids


def _other_ids(stream_id: str, expected: ExpectedVersion, proposed: Sequence[Proposed]) -> list[UUID]:
    """Return the ids to store events under whose own are taken: the same for each try of the same append."""
    at = "any" if isinstance(expected, Expected) else str(expected)
    seen: dict[UUID, int] = {}
    ids = []
    for each in proposed:
        count = seen[each.event_id] = seen.get(each.event_id, 0) + 1
        ids.append(replacement_id(stream_id, each.event_id, f"{at}#{count}"))
    return ids
