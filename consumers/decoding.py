"""Records to events: decoded, revealed, and in today's shape, a batch at a time. What can't be read is a fault of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from ..schemas import Codec, DecodeError, Event, EventType, PinnedType
from ..schemas.codec import UnknownSchemaId
from ..schemas.privacy import KeyRing, reveal_events
from ..schemas.upcasting import Upcaster
from .parked import Parked
from .places import Item, Partition

__all__ = ["Arrival", "Decoder", "arrived_before"]

Record = TypeVar("Record")


class Arrival(NamedTuple):
    """A record before it is decoded; the fields are those of `Item`. `stream_id` is what is known of it without decoding."""

    partition: Partition
    offset: int
    position: int
    late: int
    event_type: str
    stream_id: str
    raw: Any
    follows: int = 0


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
        self,
        records: Sequence[Record],
        *,
        arrived: Callable[[Record], Arrival],
        handles: Callable[[str], bool],
        read: Callable[[Any], Event],
    ) -> list[Item]:
        """Return an item for each record, in order; `read` makes an event of what is `raw` in an arrival.

        Raises:
            DecodeError: `arrived` says that a record is none of ours.
            SchemaError: a newer program wrote an event in a version that this one can't read: deploy the newer one.
        """
        items: list[Item] = []
        try:
            for record in records:  # each to its end before the next is begun: what it is made of is in the processor's cache
                arrival = arrived(record)
                items.append(_item(arrival, read(arrival.raw) if handles(arrival.event_type) else None))
            chosen = [item.event for item in items if item.event is not None]
            finished = await self._finish(chosen)
        except UnknownSchemaId:  # registered since we loaded
            self.codec.add(await self._load_event_types())
            return await self._one_by_one(map(arrived, records), handles, read)
        except DecodeError:
            return await self._one_by_one(map(arrived, records), handles, read)
        if finished is chosen:
            return items
        left = iter(finished)
        return [item if item.event is None else item._replace(event=next(left)) for item in items]

    async def _one_by_one(
        self, arrivals: Iterable[Arrival], handles: Callable[[str], bool], read: Callable[[Any], Event]
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


def arrived_before(row: Parked) -> Arrival:
    """Return an event that was set aside as it arrived once."""
    return Arrival(row.partition, 0, row.position, row.late, row.event_type, row.stream_id, row)


def _item(arrival: Arrival, event: Event | None, fault: str = "") -> Item:
    partition, offset, position, late, event_type, stream_id, raw, follows = arrival
    stream_id = event.stream_id if event is not None else stream_id
    # Not by its name: that takes twice the time, for each event.
    return tuple.__new__(Item, (partition, offset, position, late, event_type, stream_id, event, fault, raw, follows))
