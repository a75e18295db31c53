"""What people ask of projections whose rows are in Redis."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from redis.asyncio import Redis

from ..schemas import SettingsError
from .admin import ParkedEvent, ProjectionPlace
from .places import Partition
from .projection import Projection
from .redis_client import PROJECTIONS, Keys, Record, StoredPlace, load_script, partition_of, translated
from .redis_sink import sweep

__all__ = ["RedisProjectionAdmin"]

_read_place: Final = msgspec.json.Decoder(StoredPlace, strict=False).decode
_read_record: Final = msgspec.json.Decoder(Record).decode


class RedisProjectionAdmin:
    """Looks after the projections of one Redis server."""

    def __init__(self, client: Redis) -> None:
        self._client: Any = client  # its annotations don't know that it answers in bytes
        self._ask = load_script(client, "ask")
        self._reset = load_script(client, "reset")

    async def prepare(self) -> None:
        """Do nothing: Redis needs nothing made."""

    async def places(self, projection: str = "") -> list[ProjectionPlace]:
        """Return how far a projection is, or all of them, by partition."""
        found = []
        async with translated(self._client):
            names = [projection] if projection else sorted(name.decode() for name in await self._client.smembers(PROJECTIONS))
            for name in names:
                keys = Keys.of(name)
                async with self._client.pipeline() as pipeline:
                    pipeline.hgetall(keys.places)
                    pipeline.exists(keys.paused)
                    pipeline.time()
                    stored, paused, (seconds, microseconds) = await pipeline.execute()
                for id_, text in sorted(stored.items()):
                    place = _read_place(text)
                    parked = await self._client.zlexcount(keys.parked, b"[%s\0" % id_, b"(%s\1" % id_)
                    numbers = (place.epoch, place.next_offset, place.last_position, place.events, parked)
                    idle_s = seconds + microseconds / 1e6 - place.updated_at
                    found.append(ProjectionPlace(name, partition_of(id_), *numbers, bool(paused), idle_s))
        return sorted(found, key=lambda place: place[:2])

    async def parked(self, projection: str, stream_id: str = "", *, limit: int = 1000) -> list[ParkedEvent]:
        """Return what is set aside, by stream, in order."""
        keys = Keys.of(projection)
        found: list[tuple[Record, str | None]] = []
        async with translated(self._client):
            asked = await self._client.hgetall(keys.asked)
            async for id_, packed in self._client.hscan_iter(keys.records, count=200):
                record = _read_record(packed)
                if stream_id in ("", record.stream_id):
                    found.append((record, asked[id_].decode() if id_ in asked else None))
                if len(found) > 4 * limit:
                    found = _first(found, limit)
        return [
            ParkedEvent(
                Partition(record.topic, record.partition), record.stream_id, record.position, record.event_type, record.state,
                record.reason, record.tries, what, datetime.fromtimestamp(record.parked_at, UTC), record.headers, record.value,
            )
            for record, what in _first(found, limit)
        ]  # fmt: skip

    async def pause(self, projection: str, paused: bool) -> None:
        """Let a projection stand still, wherever it runs, or go on."""
        keys = Keys.of(projection)
        async with translated(self._client):
            if paused:
                await self._client.set(keys.paused, "1")
            else:
                await self._client.delete(keys.paused)

    async def ask(self, projection: str, what: str, stream_id: str = "") -> Sequence[str]:
        """Ask to `retry` what is parked, to `discard` a stream's first parked event, or `discard-all`; return the streams.

        Raises:
            SettingsError: nothing is parked there.
        """
        keys = Keys.of(projection)
        async with translated(self._client):
            streams = await self._ask([keys.parked, keys.asked], [stream_id, what])
        if not streams:
            where = f" of stream {stream_id!r}" if stream_id else ""
            raise SettingsError(
                f"projection {projection} has no parked events{where}: see `projections parked list {projection}`"
            )
        return sorted({stream.decode() for stream in streams})

    async def reset(self, projection: Projection) -> int:
        """Remove a projection's rows and forget how far it was; return in how many partitions. It begins anew at once."""
        keys, token = Keys.of(projection.name), secrets.token_hex(8)
        async with translated(self._client):
            control = [keys.places, keys.parked, keys.records, keys.asked, keys.tables, keys.sweeping, keys.begun]
            partitions = int(await self._reset(control, [token]))
        await sweep(self._client, projection.name, token.encode())
        return partitions


def _first(found: list[tuple[Record, str | None]], limit: int) -> list[tuple[Record, str | None]]:
    return sorted(found, key=lambda each: (each[0].stream_id, each[0].position))[:limit]
