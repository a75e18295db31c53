"""The log in DynamoDB as its followers see it: what comes after a position, without a hole.

The index GSI1 is the cheap way, and lags: an event may be there later than one behind it. How far the log goes is read from its
head, consistently; what the index does not have up to there is read from the table itself, by the notes that each transaction
left in the log's partitions. So a hole in the index is never skipped, and never taken for the end.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime
from typing import Final

from ...schemas import EventType, IntegrityError, PinnedType, SettingsError, StoredEvent, Unavailable, Upcaster
from ...schemas.envelope import PinnedEnvelope
from ...schemas.event import category_of
from ...schemas.registry_client import RegistryClient
from .layout import BLOCK_POSITIONS, LOG_HEAD, LogHead, block, event_key, id_key, places_of, sort_key
from .pins import load_pinned_types, register_event_types, register_subjects
from .table import MAX_TRANSACTION_ITEMS, Item, Table
from .writing import head_of

__all__ = ["DynamoDBLog"]

_VISIBLE_WITHIN_S: Final = 10.0
_AT_ONCE: Final = 1000
_FIRST_PAGE: Final = 100  # before it is known how large events are


class _Signal:
    """Wakes a follower at appends of this process; those of others are seen by looking again."""

    def __init__(self, poll_s: float) -> None:
        self._poll_s = poll_s
        self._appended = asyncio.Event()

    def notify(self) -> None:
        self._appended.set()

    async def wait(self, timeout_s: float) -> None:
        """Return at the next append of this process, or after `timeout_s` or the log's `poll_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(timeout_s, self._poll_s)):
                await self._appended.wait()
        self._appended.clear()


class DynamoDBLog:
    """The log for followers. `poll_s` is how often it is looked for appends of other processes: each look reads one item.

    With a `registry`, schemas get their subjects there.
    """

    def __init__(self, table: Table, *, poll_s: float = 0.2, registry: RegistryClient | None = None) -> None:
        self._table = table
        self._poll_s = poll_s
        self._registry = registry
        self._signals: set[_Signal] = set()

    @property
    def table(self) -> Table:
        """The table; a relay keeps items of its own in it."""
        return self._table

    async def head(self) -> LogHead:
        """Return where the log ends."""
        return head_of(await self._table.get(LOG_HEAD))

    async def last_position(self) -> int:
        """Return the global position of the last event, 0 for an empty log."""
        return (await self.head()).position

    async def read_items(self, from_position: int, to_position: int) -> list[Item]:
        """Return the items of the events with `from_position < position <= to_position`, in order, all of them.

        Raises:
            IntegrityError: an event is missing from the table.
        """
        if to_position <= from_position:
            return []
        wanted = range(from_position + 1, to_position + 1)
        found: dict[int, Item] = {}
        for name, first, last in _blocks(from_position + 1, to_position):
            async for item in self._table.query_index(name, first, last):
                found[item["GSI1SK"]] = item
        missing = [position for position in wanted if position not in found]
        if missing:
            found |= await self.read_items_at(missing)
        return [found[position] for position in wanted]

    async def read_items_at(self, positions: Sequence[int]) -> dict[int, Item]:
        """Return the items of the events at positions up to the log's end, by position; read from the table itself.

        A transaction's items become visible one by one, so what is not there yet is waited for.

        Raises:
            IntegrityError: an event is still missing after ten seconds.
        """
        found: dict[int, Item] = {}
        began = time.monotonic()
        while True:
            missing = [position for position in positions if position not in found]
            if not missing:
                return found
            places = await self._places(missing)
            items = await self._table.get_many([event_key(*places[position]) for position in missing if position in places])
            found |= {item["GSI1SK"]: item for item in items}
            if len(found) < len(positions):
                if time.monotonic() - began > _VISIBLE_WITHIN_S:
                    lost = next(position for position in positions if position not in found)
                    raise IntegrityError(
                        f"the log goes beyond position {lost}, and there is no event: an item of the table was deleted; restore "
                        "the table from a backup (point-in-time recovery)"
                    )
                await asyncio.sleep(0.05)

    async def read_stored(self, from_position: int, limit: int, max_bytes: int) -> list[StoredEvent]:
        """Return at most `limit` events with `global_position > from_position`, in order, as stored.

        Ends earlier where the payloads together would exceed `max_bytes`, but never before the first event.
        """
        end = await self.last_position()
        events: list[StoredEvent] = []
        size, page = 0, _FIRST_PAGE
        while from_position < end and len(events) < limit:
            to = min(end, from_position + min(limit - len(events), page))
            for item in await self.read_items(from_position, to):
                event = stored(item)
                size += len(event.payload)
                if events and size > max_bytes:
                    return events
                events.append(event)
            from_position = to
            page = max(1, min(_AT_ONCE, (max_bytes - size) * len(events) // max(size, 1)))  # no more than will be taken, or about
        return events

    async def read_following(self, position: int, limit: int, max_bytes: int) -> tuple[str | None, list[StoredEvent]]:
        """Return the id of the event at a position (None: the log ends before), and what follows it, as `read_stored` does."""
        if position == 0:
            return None, await self.read_stored(0, limit, max_bytes)
        events = await self.read_stored(position - 1, limit + 1, max_bytes)
        return (events[0].event_id, events[1:]) if events else (None, [])

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

        Streams are shared among `parts` by a hash of their ids. Without `categories`, all are meant.
        """
        to = min(to_position, from_position + _AT_ONCE)
        events = [
            event
            for event in map(stored, await self.read_items(from_position, to))
            if zlib.crc32(event.stream_id.encode()) % parts == part
            and event.event_type in event_types
            and (not categories or event.stream_type in categories)
        ]
        return events, to

    async def read_stored_at(self, positions: Sequence[int]) -> list[StoredEvent]:
        """Return the events at positions, in order, as stored."""
        end = await self.last_position()
        items = await self.read_items_at([position for position in positions if position <= end])
        return [stored(items[position]) for position in sorted(items)]

    async def event_id_at(self, position: int) -> str | None:
        """Return the id of the event at a position, None if the log does not reach that far."""
        events = await self.read_stored_at([position]) if position > 0 else []
        return events[0].event_id if events else None

    async def link_before(self, position: int) -> tuple[int, str] | None:
        """Return None: there is no hash chain."""
        return None

    async def digest_of_link(self, number: int) -> str | None:
        """Return None: there is no hash chain."""
        return None

    async def pinned_types(self) -> list[PinnedType]:
        """Return every registered event type with its schema id."""
        return await load_pinned_types(self._table)

    async def register_event_types(self, event_types: Sequence[EventType], upcasters: Sequence[Upcaster]) -> None:
        """Register event types; see `eventspine.store.dynamodb.pins.register_event_types`."""
        await register_event_types(self._table, event_types, upcasters, registry=self._registry)

    async def register_subjects(self, subjects: set[tuple[str, int]]) -> None:
        """Note schemas under the subjects by which registries know them, and register them there.

        Raises:
            SettingsError: the registry gives a schema another id than the one that payloads begin with.
        """
        if self._registry is not None:
            definitions = {pin.schema_id: pin.event_type.definition for pin in await self.pinned_types()}
            for subject, schema_id in sorted(subjects):
                given = (await self._registry.register(subject, definitions[schema_id])).schema_id
                if given != schema_id:
                    raise SettingsError(
                        f"the registry gives {subject} the id {given}, and the log has {schema_id}: give the store the same "
                        "registry when it registers event types"
                    )
        await register_subjects(self._table, subjects)

    async def categories_of_types(self, topic_prefix: str) -> dict[str, list[str]]:
        """Return, by category, the registered types that a relay published, after the subjects that it listed."""
        names = {pin.event_type.full_name: pin.event_type.name for pin in await self.pinned_types()}
        categories: dict[str, list[str]] = {}
        async for item in self._table.query("SCHEMAS", first=f"SUBJECT#{topic_prefix}", last=f"SUBJECT#{topic_prefix}~"):
            topic, _, full_name = item["SK"].split("#")[1].removeprefix(topic_prefix).partition("-")
            if full_name in names:
                categories.setdefault(topic, []).append(names[full_name])
        return categories

    async def pin_envelopes(self, data_schema_ids: set[int]) -> dict[int, PinnedEnvelope]:
        """Refuse: a log in DynamoDB is published with its envelope in headers.

        Raises:
            SettingsError: always, if there are any.
        """
        if data_schema_ids:
            raise SettingsError('value_format "envelope" is offered by logs in Postgres only; leave it at "data"')
        return {}

    def listen(self) -> AbstractAsyncContextManager[_Signal]:
        """Hear of appends of this process at once, of others' within `poll_s`."""
        return self._listening()

    def notify(self) -> None:
        """Wake who listens in this process."""
        for signal in self._signals:
            signal.notify()

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[_Signal]:
        signal = _Signal(self._poll_s)
        self._signals.add(signal)
        try:
            yield signal
        finally:
            self._signals.discard(signal)

    async def find_event(self, event_id: object) -> Item | None:
        """Return the item of the event with an id, None if there is none."""
        place = await self._table.get(id_key(event_id))
        if place is None:
            return None
        item = await self._table.get(event_key(place["stream_id"], place["version"]))
        if item is None:
            raise Unavailable(f"event {event_id} is being recorded: look again")
        return item

    async def _places(self, positions: Sequence[int]) -> Mapping[int, tuple[str, int]]:
        """Return stream and version of the events at positions, as far as the log's notes tell yet."""
        wanted = set(positions)
        found: dict[int, tuple[str, int]] = {}
        first = max(1, min(wanted) - MAX_TRANSACTION_ITEMS)  # a transaction that begins before it may reach it
        for name, low, high in _blocks(first, max(wanted)):
            async for item in self._table.query(name, first=sort_key(low), last=sort_key(high)):
                for position, stream_id, version in places_of(int(item["SK"]), item["parts"]):
                    if position in wanted:
                        found[position] = stream_id, version
        return found


def stored(item: Item) -> StoredEvent:
    """Return an event's item as followers take it."""
    stream_id = item["PK"].partition("#")[2]
    return StoredEvent(
        global_position=item["GSI1SK"],
        event_id=item["event_id"],
        stream_id=stream_id,
        stream_type=category_of(stream_id),
        event_type=item["event_type"],
        version=int(item["SK"].partition("#")[2]),
        schema_version=item["schema_version"],
        payload=item["payload"],
        created_at=datetime.fromisoformat(item["created_at"]),
        metadata=item["metadata"],
    )


def _blocks(first: int, last: int) -> Iterator[tuple[str, int, int]]:
    """Yield the partitions of a range of positions, each with the part of the range that lies in it."""
    while first <= last:
        end = min(last, ((first - 1) // BLOCK_POSITIONS + 1) * BLOCK_POSITIONS)
        yield block(first), first, end
        first = end + 1
