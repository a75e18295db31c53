"""A read model in memory: for tests of projections without servers, and for read models that live and die with a process."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..schemas import Event, ProjectionError
from .folding import fold
from .projection import Projection
from .table import Key, Table, Write

__all__ = ["MemoryReadModel"]


class MemoryReadModel:
    """A projection's tables as dicts.

        model = MemoryReadModel(OrderSummary())
        model.given("Order-1", Event(event_type="OrderPlaced", data={...}))
        assert model.rows("order_summaries") == [{"id": "1", "status": "placed"}]

    Changes mean what they mean in Postgres, but values are not held to the columns' types, and there is no SQL of one's own.
    """

    def __init__(self, projection: Projection) -> None:
        self._projection = projection
        self._rows: dict[str, dict[Key, dict[str, Any]]] = {table.name: {} for table in projection.tables}
        self._versions: dict[str, int] = {}
        self._position = 0

    def given(self, stream_id: str, *events: Event) -> None:
        """Record events in a stream, as an append would, and apply them."""
        recorded = []
        for event in events:
            self._position += 1
            version = self._versions[stream_id] = self._versions.get(stream_id, 0) + 1
            places = {"stream_id": stream_id, "version": version, "global_position": self._position}
            recorded.append(msgspec.structs.replace(event, **places, created_at=datetime.now(UTC)))
        self.apply(*recorded)

    def apply(self, *events: Event) -> None:
        """Apply events that are recorded, as one batch.

        Raises:
            ProjectionError: a handler failed, or a row that is inserted is there; nothing was applied.
        """
        rows: dict[str, dict[Key, Mapping[str, Any] | None]] = {}
        folded = fold(self._projection, events, rows)
        while folded.missing:
            for name, keys in folded.missing.items():
                rows.setdefault(name, {}).update({key: self._rows[name].get(key) for key in keys})
            folded = fold(self._projection, events, rows)
        if folded.statements:
            raise ProjectionError(f"projection {self._projection.name} runs SQL of its own: there is none in memory")
        changed = {name: dict(rows) for name, rows in self._rows.items()}
        for write in folded.writes:
            _apply(write, changed[write.table.name])
        self._rows = changed

    def rows(self, table: Table | str) -> list[dict[str, Any]]:
        """Return all rows of a table, in the order of their keys."""
        found = self._rows[table if isinstance(table, str) else table.name]
        return [dict(found[key]) for key in sorted(found, key=lambda key: tuple(map(str, key)))]

    def row(self, table: Table | str, *key: Any) -> dict[str, Any] | None:
        """Return the row with a key, None if there is none."""
        found = self._rows[table if isinstance(table, str) else table.name].get(key)
        return None if found is None else dict(found)


def _apply(write: Write, rows: dict[Key, dict[str, Any]]) -> None:
    keys = len(write.table.key)
    assigned_to = keys + len(write.assigned)
    for values in write.rows:
        key = values[:keys]
        row = rows.get(key)
        if write.kind == "delete":
            rows.pop(key, None)
            continue
        if write.kind == "insert" and row is not None:
            raise ProjectionError(f"table {write.table.name} has a row {key}, which is inserted")
        if row is None:
            if write.kind == "update":
                continue
            row = dict.fromkeys(write.table.columns) | dict(zip(write.table.key, key, strict=True))
        changed = row | dict(zip(write.assigned, values[keys:assigned_to], strict=True))
        for column, value in zip(write.added, values[assigned_to:], strict=True):
            changed[column] = value if changed[column] is None else changed[column] + value
        rows[key] = changed
