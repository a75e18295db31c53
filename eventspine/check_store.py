"""What `eventspine schema check` reads from a store: which versions and categories it holds, and snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import asyncpg

from .schemas import EventType
from .schemas.pins import load_pinned_types
from .schemas.postgres import load_sql, translated
from .store import Aggregate

__all__ = ["Held", "SavedSnapshot", "load_held", "load_snapshots"]

_SQL = "eventspine.store.postgres"
_HELD = load_sql(_SQL, "sql/held_versions")
_SNAPSHOTS = load_sql(_SQL, "sql/snapshots_of")
_SAMPLE = 1_000


class SavedSnapshot(NamedTuple):
    """A snapshot as it stands in the store."""

    stream_id: str
    version: int
    data: str


class Held(NamedTuple):
    """What a store holds. `versions` are those that events were seen in; of a type with so many events that not all were looked
    at, every registered version counts."""

    registered: list[EventType]
    versions: dict[str, set[int]]
    categories: dict[str, set[str]]

    @property
    def unregistered(self) -> list[str]:
        """Event types in the log that have no schema of their own."""
        return sorted(self.versions.keys() - {each.name for each in self.registered})


async def load_held(pool: asyncpg.Pool) -> Held:
    """Look into the log's index: some rows of each event type, never the whole log.

    Raises:
        Unavailable, SettingsError: Postgres is away, or has no tables of ours.
    """
    registered = [pin.event_type for pin in await load_pinned_types(pool)]
    async with translated():
        rows = await pool.fetch(_HELD, _SAMPLE)
    held = Held(registered, {}, {})
    for row in rows:
        name = row["event_type"]
        versions = held.versions.setdefault(name, set())
        versions.add(row["schema_version"])
        if not row["whole"]:
            versions.update(each.schema_version for each in registered if each.name == name)
        held.categories.setdefault(name, set()).add(row["category"])
    return held


async def load_snapshots(pool: asyncpg.Pool, aggregates: Iterable[type[Aggregate]]) -> dict[type[Aggregate], list[SavedSnapshot]]:
    """Return up to a thousand snapshots of each aggregate's category, in the shape that it has now."""
    async with translated():
        return {
            each: [
                SavedSnapshot(row["stream_id"], row["version"], row["snapshot_data"])
                for row in await pool.fetch(_SNAPSHOTS, each.stream_type, each.snapshot_version, _SAMPLE)
            ]
            for each in aggregates
        }
