"""Catch-up subscriptions: what is recorded already, then what comes, with the marks that the protocol puts between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from .reading import ALL_FILTER, Filter, Item, Reader
from .tail import Tail

__all__ = ["Mark", "follow_all", "follow_stream"]


class Mark(NamedTuple):
    """`kind`: caught_up, fell_behind, or checkpoint. `place`: a version of the stream, or a position of the log."""

    kind: str
    place: int


async def follow_stream(reader: Reader, tail: Tail, name: str, after: int, *, resolve: bool) -> AsyncIterator[Item | Mark]:
    """Yield a stream's events behind a version, without end; a negative one means the end. The stream need not exist.

    Raises:
        Deleted: the stream is tombstoned, or was meanwhile.
    """
    last = await reader.last_version(name)
    place = last if after < 0 else after
    live = False
    while True:
        seen = tail.position
        last = await reader.last_version(name)
        pages = 0
        while place < last:
            first = max(place + 1, reader.first_readable(name, last))
            if first > last:
                place = last
                break
            page = await reader.stream_page(name, first, last, resolve=resolve)
            pages += 1
            if live and pages > 1:
                live = False
                yield Mark("fell_behind", place)
            for item in page.items:
                yield item
            place = page.end
            if place >= last:
                last = await reader.last_version(name)
        if not live:
            live = True
            yield Mark("caught_up", place)
        await tail.beyond(seen)


async def follow_all(
    reader: Reader, tail: Tail, after: int | None, *, resolve: bool, wanted: Filter = ALL_FILTER, checkpoint_every: int = 0
) -> AsyncIterator[Item | Mark]:
    """Yield the log's events behind a position, without end: None is the start, a negative one the end.

    With `checkpoint_every`, a mark follows each time that so many events were looked at; what is wanted before it was given out.
    """
    if after is None:
        for item in await reader.first(wanted):
            yield item
    end = await reader.end()
    await tail.beyond(end - 1)  # what is recorded already comes before the mark that says so
    place = 0 if after is None else after if after >= 0 else end
    begun, live = place, False
    while True:
        end = tail.position
        pages = 0
        while place < end:
            page = await reader.all_page(place, end, resolve=resolve, wanted=wanted)
            pages += 1
            if live and pages > 1:
                live = False
                yield Mark("fell_behind", place)
            for item in page.items:
                for checkpoint in _checkpoints(begun, place, item.place.position - 1, checkpoint_every):
                    yield checkpoint
                place = max(place, item.place.position - 1)
                yield item
            for checkpoint in _checkpoints(begun, place, page.end, checkpoint_every):
                yield checkpoint
            place = page.end
            end = tail.position
        if not live:
            live = True
            yield Mark("caught_up", place)
        await tail.beyond(place)


def _checkpoints(begun: int, place: int, reached: int, every: int) -> list[Mark]:
    """Return the checkpoints that are due between two positions."""
    if not every or reached <= place:
        return []
    first = begun + ((place - begun) // every + 1) * every
    return [Mark("checkpoint", position) for position in range(first, reached + 1, every)]
