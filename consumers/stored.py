"""Items of events as the log stores them."""

from __future__ import annotations

from collections.abc import Sequence

from ..schemas import Event, StoredEvent
from ..schemas.cloudevents import HeaderWriter, event_of
from ..schemas.event import recorded
from .decoding import Arrival, Decoder
from .parked import Kept, Parked, read_headers, write_headers
from .places import Item, Partition
from .projection import Projection

__all__ = ["StoredReader"]


class StoredReader:
    """Makes items of stored events: their offset is their position, less one."""

    def __init__(self, projection: Projection, decoder: Decoder) -> None:
        self._projection = projection
        self._decoder = decoder
        self._headers = HeaderWriter("/eventspine")

    async def items(self, partition: Partition, events: Sequence[StoredEvent]) -> list[Item]:
        """Return an item for each event, in order; what is of other categories is passed over."""
        categories = self._projection.categories
        arrivals = [
            Arrival(
                partition,
                stored.global_position - 1,
                stored.global_position,
                0,
                stored.event_type if not categories or stored.stream_type in categories else "",
                stored.stream_id,
                stored,
            )
            for stored in events
        ]
        return await self._decoder.items(arrivals, handles=self._projection.handles, read=self._event)

    def kept(self, item: Item) -> Kept:
        """Return an event as it is kept when it is set aside: as the relay would publish it."""
        stored: StoredEvent = item.raw
        return Kept(write_headers(dict(self._headers.headers(stored))), stored.stream_id.encode(), stored.payload)

    async def parked_items(self, rows: Sequence[Parked]) -> list[Item]:
        """Make items of events that were set aside."""
        arrivals = [Arrival(row.partition, 0, row.position, row.late, row.event_type, row.stream_id, row) for row in rows]
        return await self._decoder.items(arrivals, handles=self._projection.handles, read=self._kept_event)

    def _event(self, stored: StoredEvent) -> Event:
        return recorded(stored, self._decoder.codec.decode(stored.payload))

    def _kept_event(self, row: Parked) -> Event:
        return event_of(read_headers(row.kept.headers), self._decoder.codec.decode(row.kept.value))
