"""What people ask of projections whose rows are in OpenSearch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from ..schemas import SettingsError
from .admin import ParkedEvent, ProjectionPlace
from .opensearch_client import SearchServer
from .opensearch_control import Control, parked_of
from .opensearch_sink import prepare_tables
from .opensearch_table import Columns
from .places import Partition, Place
from .projection import Projection

__all__ = ["OpenSearchProjectionAdmin"]


class OpenSearchProjectionAdmin:
    """Looks after the projections of one OpenSearch cluster."""

    def __init__(self, server: SearchServer) -> None:
        self._server = server
        self._control = Control(server)

    async def prepare(self) -> None:
        """Make the index that holds what is known of projections, where it is missing."""
        await self._control.prepare()

    async def places(self, projection: str = "") -> list[ProjectionPlace]:
        """Return how far a projection is, or all of them, by partition."""
        told = {each["projection"]: each for each in await self._control.projections()}
        places = []
        for name in [projection] if projection else list(told):
            facts = told.get(name, {"generation": 1, "paused": False})
            parked = Counter[Partition]()
            for hit in await self._control.parked(name, facts["generation"]):
                source = hit["_source"]
                parked[Partition(source["topic"], source["partition"])] += source["state"] != "skipped"
            for source in await self._control.places(name, facts["generation"]):
                partition, place = Partition(source["topic"], source["partition"]), Place(**source["place"])
                idle_s = (datetime.now(UTC) - datetime.fromisoformat(source["updated_at"])).total_seconds()
                places.append(
                    ProjectionPlace(
                        name,
                        partition,
                        place.epoch,
                        place.next_offset,
                        place.last_position,
                        place.events,
                        parked[partition],
                        facts["paused"],
                        max(0.0, idle_s),
                    )
                )
        return places

    async def parked(self, projection: str, stream_id: str = "", *, limit: int = 1000) -> list[ParkedEvent]:
        """Return what is set aside, by stream, in order."""
        generation = (await self._control.projection(projection))["generation"]
        fields = {"stream_id": stream_id} if stream_id else {}
        hits = await self._control.parked(projection, generation, fields, limit=limit, whole=True)
        return [_event(hit["_source"]) for hit in hits]

    async def pause(self, projection: str, paused: bool) -> None:
        """Let a projection stand still, wherever it runs, or go on."""
        await self._control.change_projection(projection, paused=paused)

    async def ask(self, projection: str, what: str, stream_id: str = "") -> Sequence[str]:
        """Ask to `retry` what is parked, to `discard` a stream's first parked event, or `discard-all`; return the streams.

        Raises:
            SettingsError: nothing is parked there.
        """
        generation = (await self._control.projection(projection))["generation"]
        fields = {"stream_id": stream_id} if stream_id else {}
        hits = [hit for hit in await self._control.parked(projection, generation, fields) if hit["_source"]["state"] != "skipped"]
        if not hits:
            where = f" of stream {stream_id!r}" if stream_id else ""
            raise SettingsError(
                f"projection {projection} has no parked events{where}: see `projections parked list {projection}`"
            )
        await self._control.ask((hit["_id"] for hit in hits), what)
        return sorted({hit["_source"]["stream_id"] for hit in hits})

    async def reset(self, projection: Projection) -> int:
        """Give a projection new indices and forget how far it was; return in how many partitions. It begins anew at once.

        Whoever still writes for the one before writes into indices and places that nobody looks at any more.
        """
        columns = {table.name: Columns(table) for table in projection.tables}
        before, generation = await self._control.begin_anew(projection.name)
        await prepare_tables(self._server, projection, columns, generation)
        return await self._control.forget(projection.name, before)


def _event(source: dict[str, object]) -> ParkedEvent:
    row = parked_of(source)
    return ParkedEvent(
        row.partition,
        row.stream_id,
        row.position,
        row.event_type,
        row.state,
        row.reason,
        row.tries,
        str(source["asked"]) if source.get("asked") else None,
        datetime.fromisoformat(str(source["parked_at"])),
        row.kept.headers,
        row.kept.value,
    )
