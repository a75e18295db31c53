"""Records to events: decoded, revealed, and in today's shape, a batch at a time. What can't be read is a fault of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from ..schemas import Codec, DecodeError, Event, EventType, PinnedType
from ..schemas.codec import UnknownSchemaId
from ..schemas.privacy import KeyRing, reveal_events
from ..schemas.upcasting import Upcaster
from .places import Item, Partition

__all__ = ["Arrival", "Decoder"]


class Arrival(NamedTuple):
    """A record before it is decoded. `where` says for people which it is, `stream_id` what is known of that without decoding."""

    partition: Partition
    offset: int
    position: int
    late: int
    event_type: str
    stream_id: str
    raw: Any


class Decoder:
    """What a program knows of event types, as it is asked for by events that come.

    `load_event_types` returns the registered event types; called at the start and when an unknown schema id turns up.
    `event_types` and `upcasters` say in which version handlers see events. With `keys`, they see personal fields as they were
    given.
    """

    def __init__(
        self,
        load_event_types: Callable[[], Awaitable[Sequence[PinnedType]]],
        *,
        event_types: Sequence[EventType] = (),
        upcasters: Sequence[Upcaster] = (),
        keys: KeyRing | None = None,
    ) -> None:
        self.codec = Codec()
        self._load_event_types = load_event_types
        self._event_types = event_types
        self._upcasters = upcasters
        self._keys = keys

    async def load(self) -> None:
        """Learn all event types that are registered.

        Raises:
            SchemaError: events of some version can't be read in the version that handlers are to see.
        """
        self.codec.add(await self._load_event_types(), declared=self._event_types, upcasters=self._upcasters)

    async def items(
        self, arrivals: Sequence[Arrival], *, handles: Callable[[str], bool], read: Callable[[Any], Event]
    ) -> list[Item]:
        """Return an item for each arrival, in order; `read` makes an event of what is `raw` in it.

        Raises:
            SchemaError: a newer program wrote an event in a version that this one can't read: deploy the newer one.
        """
        try:
            events = [read(arrival.raw) if handles(arrival.event_type) else None for arrival in arrivals]
        except UnknownSchemaId:  # registered since we loaded
            self.codec.add(await self._load_event_types())
            return await self._one_by_one(arrivals, handles, read)
        except DecodeError:
            return await self._one_by_one(arrivals, handles, read)
        chosen = [event for event in events if event is not None]
        try:
            finished = await self._finish(chosen)
        except DecodeError:
            return await self._one_by_one(arrivals, handles, read)
        if finished is chosen:
            return [_item(arrival, event) for arrival, event in zip(arrivals, events, strict=True)]
        left = iter(finished)
        return [_item(arrival, event and next(left)) for arrival, event in zip(arrivals, events, strict=True)]

    async def _one_by_one(
        self, arrivals: Sequence[Arrival], handles: Callable[[str], bool], read: Callable[[Any], Event]
    ) -> list[Item]:
        items = []
        for arrival in arrivals:
            event, fault = None, ""
            if handles(arrival.event_type):
                try:
                    [event] = await self._finish([read(arrival.raw)])
                except DecodeError as error:
                    fault = str(error)
            items.append(_item(arrival, event, fault))
        return items

    async def _finish(self, events: list[Event]) -> list[Event]:
        if self._keys is not None and self.codec.holds_personal:
            events = await reveal_events(self.codec, self._keys, events)
        return self.codec.upcast(events)


def _item(arrival: Arrival, event: Event | None, fault: str = "") -> Item:
    partition, offset, position, late, event_type, stream_id, raw = arrival
    return Item(partition, offset, position, late, event_type, event.stream_id if event else stream_id, event, fault, raw)
