"""Items of events as the log stores them."""

from __future__ import annotations

from collections.abc import Sequence

from ..schemas import Event, StoredEvent
from ..schemas.cloudevents import HeaderWriter, event_of
from .decoding import Arrival, Decoder, arrived_before
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
        categories, handles = self._projection.categories, self._projection.handles

        def arrived(stored: StoredEvent) -> Arrival:
            event_type = stored.event_type if not categories or stored.stream_type in categories else ""  # passed over
            position = stored.global_position
            return Arrival(partition, position - 1, position, 0, event_type, stored.stream_id, stored)

        return await self._decoder.items(events, arrived=arrived, handles=handles, read=self._event)

    def kept(self, item: Item) -> Kept:
        """Return an event as it is kept when it is set aside: as the relay would publish it."""
        stored: StoredEvent = item.raw
        return Kept(write_headers(dict(self._headers.headers(stored))), stored.stream_id.encode(), stored.payload)

    async def parked_items(self, rows: Sequence[Parked]) -> list[Item]:
        """Make items of events that were set aside."""
        return await self._decoder.items(rows, arrived=arrived_before, handles=self._projection.handles, read=self._kept_event)

    def _event(self, stored: StoredEvent) -> Event:
        return stored.decoded(self._decoder.codec.decode(stored.payload))

    def _kept_event(self, row: Parked) -> Event:
        return event_of(read_headers(row.kept.headers), self._decoder.codec.decode(row.kept.value))
