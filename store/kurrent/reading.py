"""Reads, a page at a time: of streams under their rules, of the log, and of the streams that are only links to others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid5

import asyncpg

from ...schemas.postgres import load_sql, translated
from ..postgres import PostgresEventStore
from .events import NAMESPACE, Recorded, recorded_of
from .faults import Deleted, Fault, bad_request
from .names import category_query, stream_id_of
from .rules import Rules

__all__ = ["ALL_FILTER", "Filter", "Item", "Page", "Reader", "StreamNotFound"]

_SQL = "eventspine.store.kurrent"
_STREAM = load_sql(_SQL, "sql/stream_forwards")
_STREAM_BACKWARDS = load_sql(_SQL, "sql/stream_backwards")
_ALL = load_sql(_SQL, "sql/all_forwards")
_ALL_BACKWARDS = load_sql(_SQL, "sql/all_backwards")
_FILTERED = load_sql(_SQL, "sql/filtered_forwards")
_FILTERED_BACKWARDS = load_sql(_SQL, "sql/filtered_backwards")
_CATEGORY_LINKS = load_sql(_SQL, "sql/category_links")
_TYPE_LINKS = load_sql(_SQL, "sql/type_links")
_COUNT_CATEGORY = load_sql(_SQL, "sql/count_category")
_COUNT_TYPE = load_sql(_SQL, "sql/count_type")
_EVENTS_AT = load_sql(_SQL, "sql/events_at")
_LAST_VERSION = load_sql(_SQL, "sql/last_version")
_MATCHES = load_sql(_SQL, "sql/matches")

_PAGE_EVENTS = 500
_PAGE_BYTES = 4_000_000
_PAGE_LINKS = 64  # what they lead to may be large
_SCAN_EVENTS = 10_000  # a filter looks at so many events in one statement
_LINK_TYPE = "$>"


class StreamNotFound(Exception):
    """The stream has no events, or is deleted."""


class Item(NamedTuple):
    """What a read gives out. `event` is None where a link leads to what is no more; `link` is what was followed."""

    event: Recorded | None
    link: Recorded | None = None

    @property
    def place(self) -> Recorded:
        """What stands in the stream that is read: the link, if there is one."""
        place = self.link or self.event
        assert place is not None
        return place


class Page(NamedTuple):
    """Items in order, and up to which place (position or version) that is all there is."""

    items: Sequence[Item]
    end: int


class Filter(NamedTuple):
    """Which events of the log are wanted: by regular expression or prefixes, of their type or of their stream's name."""

    type_regex: str | None = None
    type_prefixes: list[str] | None = None
    stream_regex: str | None = None
    stream_prefixes: list[str] | None = None


ALL_FILTER = Filter()

# A server of EventStoreDB's has written events of its own before any client comes, and clients rely on it: this one is before
# the log, at position 0, for those who read from the start.
_FIRST = Recorded(
    uuid5(NAMESPACE, "$all"), "$$$all", 1, 0, "$metadata", "application/json", b"{}", b"", datetime(1970, 1, 1, tzinfo=UTC)
)


class Reader:
    """Reads for all calls of one server. At most a page of each read is in memory: 500 events and 4 MB, or 64 links."""

    def __init__(self, store: PostgresEventStore, rules: Rules) -> None:
        self._store = store
        self._rules = rules

    async def last_version(self, name: str) -> int:
        """Return the version of a stream's last event; of a stream of links, how many there are.

        Raises:
            Deleted: the stream was tombstoned.
        """
        links = _links_of(name)
        if links is not None:
            count, parameters = (_COUNT_CATEGORY, links[1]) if links[0] == _CATEGORY_LINKS else (_COUNT_TYPE, links[1])
            return int(await self._value(count, *parameters, 2**63 - 1))
        if self._rules.of(name).tombstoned:
            raise Deleted(name)
        return int(await self._value(_LAST_VERSION, stream_id_of(name)) or 0)

    def first_readable(self, name: str, last_version: int) -> int:
        """Return the first version that is given out of a stream at a version."""
        rules = self._rules.of(name)
        return last_version + 1 if rules.deleted else rules.first_readable(last_version)

    async def stream(self, name: str, version: int, *, backwards: bool, limit: int, resolve: bool) -> AsyncIterator[Item]:
        """Yield a stream's events from a version on; a negative one means the end.

        Raises:
            StreamNotFound, Deleted: before anything is given out.
        """
        last = await self.last_version(name)
        rules = self._rules.of(name)
        if last == 0 or rules.deleted:
            raise StreamNotFound(name)
        first = rules.first_readable(last)
        if backwards:
            place = last if version < 0 else min(version, last)
            while limit > 0 and place >= first:
                page = await self.stream_page(name, first, place, limit=limit, resolve=resolve, backwards=True)
                for item in page.items:
                    yield item
                limit -= len(page.items)
                place = page.end - 1
            return
        place = last + 1 if version < 0 else max(version, first)
        while limit > 0 and place <= last:
            page = await self.stream_page(name, place, last, limit=limit, resolve=resolve)
            for item in page.items:
                yield item
            limit -= len(page.items)
            place = page.end + 1

    async def stream_page(
        self, name: str, first: int, last: int, *, limit: int = _PAGE_EVENTS, resolve: bool, backwards: bool = False
    ) -> Page:
        """Return the next events of a stream between two versions, and the version up to which that is all."""
        limit = min(limit, _PAGE_EVENTS)
        links = _links_of(name)
        if links is not None:
            return await self._link_page(name, links, first, last, limit, resolve=resolve, backwards=backwards)
        statement = _STREAM_BACKWARDS if backwards else _STREAM
        rows = await self._rows(statement, stream_id_of(name), first, last, limit, _PAGE_BYTES)
        rules, now = self._rules.of(name), datetime.now(UTC)
        recorded = await recorded_of(self._store, rows)
        kept = [each for each in recorded if not rules.expired(each.created_at, now)]
        end = rows[-1]["version"] if rows else (first if backwards else last)
        return Page(await self._resolved(kept) if resolve else [Item(each) for each in kept], end)

    async def all(
        self, position: int, *, backwards: bool, limit: int, resolve: bool, wanted: Filter = ALL_FILTER
    ) -> AsyncIterator[Item]:
        """Yield the log from a position on, that event included, or backwards from before it; a negative one means the end."""
        end = await self._store.last_position()
        first = await self.first(wanted) if backwards or position == 0 else []
        if not backwards:
            for item in first[:limit]:
                yield item
                limit -= 1
        place = (
            (end if position < 0 else min(position - 1, end)) if backwards else (end if position < 0 else max(position - 1, 0))
        )
        while limit > 0 and (place > 0 if backwards else place < end):
            page = await self.all_page(place, end, limit=limit, resolve=resolve, wanted=wanted, backwards=backwards)
            for item in page.items:
                yield item
            limit -= len(page.items)
            place = page.end
        if backwards and position != 0 and limit > 0:
            for item in first:
                yield item

    async def first(self, wanted: Filter) -> list[Item]:
        """Return what stands before the log, if it is wanted.

        Raises:
            Fault: a regular expression is not one.
        """
        matches = wanted == ALL_FILTER or (await self._rows(_MATCHES, _FIRST.event_type, _FIRST.name, *wanted))[0][0]
        return [Item(_FIRST)] if matches else []

    async def end(self) -> int:
        """Return the position of the last event."""
        return await self._store.last_position()

    async def all_page(
        self, place: int, end: int, *, limit: int = _PAGE_EVENTS, resolve: bool, wanted: Filter, backwards: bool = False
    ) -> Page:
        """Return the next events that are wanted behind a place of the log (before it and including it, backwards).

        Raises:
            Fault: a regular expression is not one.
        """
        limit = min(limit, _PAGE_EVENTS)
        scanned = limit if wanted == ALL_FILTER else _SCAN_EVENTS
        after, until = (max(place - scanned, 0), place) if backwards else (max(place, 0), min(max(place, 0) + scanned, end))
        if wanted == ALL_FILTER:
            rows: Sequence[Any] = await self._rows(_ALL_BACKWARDS if backwards else _ALL, after, until, _PAGE_BYTES)
            cut = bool(rows)
        else:
            statement = _FILTERED_BACKWARDS if backwards else _FILTERED
            found = await self._rows(statement, after, until, *wanted, limit, _PAGE_BYTES)
            cut = bool(found) and (len(found) == limit or len(found) < found[0]["total"])
            rows = [row[:10] for row in found]
        recorded = await recorded_of(self._store, rows)
        reached = recorded[-1].position if cut else until
        if backwards:
            reached = reached - 1 if cut else after
        return Page(await self._resolved(recorded) if resolve else [Item(each) for each in recorded], reached)

    async def event_at(self, name: str, version: int) -> Recorded | None:
        """Return an event of a stream, None if there is none, or none any more."""
        rules = self._rules.of(name)
        if rules.deleted or rules.tombstoned or version < rules.first_version:
            return None
        rows = await self._rows(_STREAM, stream_id_of(name), version, version, 1, _PAGE_BYTES)
        recorded = await recorded_of(self._store, rows)
        return recorded[0] if recorded else None

    async def _link_page(
        self, name: str, links: tuple[str, tuple[str, ...]], first: int, last: int, limit: int, *, resolve: bool, backwards: bool
    ) -> Page:
        statement, parameters = links
        limit = min(limit, _PAGE_LINKS)
        skip = max(last - limit, first - 1) if backwards else first - 1
        wanted = min(limit, last - skip)
        rows = await self._rows(statement, *parameters, 0, 2**63 - 1, wanted, skip)
        positions = [row["global_position"] for row in rows]
        events = {each.position: each for each in await recorded_of(self._store, await self._rows(_EVENTS_AT, positions))}
        items = []
        for n, position in enumerate(positions):
            event = events[position]
            link = _link(name, skip + n + 1, event)
            items.append(Item(self._present(event), link) if resolve else Item(link))
        if backwards:
            items.reverse()
            return Page(items, skip + 1)
        return Page(items, skip + len(positions) if positions else last)

    def _present(self, event: Recorded) -> Recorded | None:
        """Return an event unless its stream is deleted or truncated behind it."""
        rules = self._rules.of(event.name)
        return None if rules.deleted or rules.tombstoned or event.version < rules.first_version else event

    async def _resolved(self, recorded: Sequence[Recorded]) -> list[Item]:
        return [await self._follow(each) if each.event_type == _LINK_TYPE else Item(each) for each in recorded]

    async def _follow(self, link: Recorded) -> Item:
        revision, at, name = link.data.decode(errors="replace").partition("@")
        if not at or not revision.isdecimal() or len(revision) > 18:
            return Item(link)
        try:
            return Item(await self.event_at(name, int(revision) + 1), link)
        except Fault:
            return Item(None, link)

    async def _rows(self, statement: str, *parameters: Any) -> list[asyncpg.Record]:
        try:
            async with translated():
                rows: list[asyncpg.Record] = await self._store.pool.fetch(statement, *parameters)
        except Exception as error:
            if isinstance(error.__cause__, asyncpg.InvalidRegularExpressionError):
                raise bad_request(f"the filter is no regular expression: {error.__cause__}") from None
            raise
        return rows

    async def _value(self, statement: str, *parameters: Any) -> Any:
        async with translated():
            return await self._store.pool.fetchval(statement, *parameters)


def _links_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the statement that lists what a stream of links leads to, and its first parameters; None for other streams."""
    if name.startswith("$ce-") and len(name) > 4:
        return _CATEGORY_LINKS, category_query(name[4:])
    if name.startswith("$et-") and len(name) > 4:
        return _TYPE_LINKS, (name[4:],)
    return None


def is_links(name: str) -> bool:
    """Tell whether a stream is one of links, which nobody can append to."""
    return _links_of(name) is not None


def _link(name: str, version: int, event: Recorded) -> Recorded:
    return Recorded(
        uuid5(NAMESPACE, f"{name}\0{event.position}"), name, version, event.position, _LINK_TYPE, "application/octet-stream",
        f"{event.version - 1}@{event.name}".encode(), b"", event.created_at,
    )  # fmt: skip
