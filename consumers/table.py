"""Tables of a read model: declared once, written event by event, folded per key in memory, flushed set-wise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from ..schemas import ProjectionError

__all__ = ["Statement", "Table", "TableWriter"]

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_COLUMN_TYPE = re.compile(r"[a-z][a-z0-9_ ]*(\(\d+(,\d+)?\))?")


class Statement(NamedTuple):
    """One SQL statement with its parameters: arrays of equal length, one for each column."""

    sql: str
    parameters: list[list[Any]]


class Table:
    """A table that a projection owns.

    `columns` maps names to Postgres types, like `{"id": "text", "total": "bigint", "status": "text"}` (no array types);
    `key` names the columns of the primary key. Columns outside the key may be NULL.

    Raises:
        ProjectionError: a name or type is not valid, or the key is not among the columns.
    """

    def __init__(self, name: str, *, columns: Mapping[str, str], key: str | Sequence[str]) -> None:
        self.name = name
        self.columns = dict(columns)
        self.key = (key,) if isinstance(key, str) else tuple(key)
        for identifier in (name, *self.columns):
            if not _IDENTIFIER.fullmatch(identifier):
                raise ProjectionError(f"{identifier!r}: tables and columns are named in lower case letters, digits and '_'")
        for column, column_type in self.columns.items():
            if not _COLUMN_TYPE.fullmatch(column_type):
                raise ProjectionError(f"{name}.{column}: {column_type!r} is no type that a projection's column can have")
        if not self.key or not set(self.key) <= set(self.columns):
            raise ProjectionError(f"table {name}: key {self.key} must name at least one of the columns {tuple(self.columns)}")

    def create_sql(self) -> str:
        """Return the statement that creates the table where it is missing."""
        lines = [f'    "{column}" {column_type}' for column, column_type in self.columns.items()]
        key = ", ".join(f'"{column}"' for column in self.key)
        lines.append(f'    CONSTRAINT "{self.name}_pkey" PRIMARY KEY ({key})')
        return f'CREATE TABLE IF NOT EXISTS "{self.name}" (\n' + ",\n".join(lines) + "\n)"


class _Change:
    """What a batch does to one row: a deletion, or assignments and increments.

    An `upsert` creates the row where it is missing, an `update` leaves a missing row missing.
    """

    __slots__ = ("additions", "assignments", "kind")

    def __init__(
        self, kind: Literal["upsert", "update", "delete"], assignments: dict[str, Any], additions: dict[str, Any]
    ) -> None:
        self.kind = kind
        self.assignments = assignments
        self.additions = additions

    def absorb(self, later: _Change) -> bool:
        """Fold a later change into this one; False if both have to be carried out one after the other."""
        if later.kind == "delete":
            self.kind, self.assignments, self.additions = "delete", {}, {}
            return True
        if self.kind == "delete":
            return later.kind == "update"  # there is no row to update
        if self.kind == "update" and later.kind == "upsert":
            return False
        for column, value in later.assignments.items():
            self.assignments[column] = value
            self.additions.pop(column, None)
        for column, value in later.additions.items():
            if column in self.assignments:
                before = self.assignments[column]
                self.assignments[column] = value if before is None else before + value
            else:
                self.additions[column] = self.additions.get(column, 0) + value
        return True


class TableWriter:
    """Collects a batch's changes to one table. Nothing is sent before the whole batch is handled.

    Changes to the same row are folded, so that a row that a thousand events touch is written once. Each method takes the key
    columns and others by name. Handlers see no rows: what they write can depend on the event alone, and on what
    `increment` adds to the row in the database.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        # A change that can't be folded into the one before it goes one layer up; layers are flushed in order.
        self._layers: list[dict[tuple[Any, ...], _Change]] = []
        self._layer_of: dict[tuple[Any, ...], int] = {}

    def upsert(self, **columns: Any) -> None:
        """Set columns of a row, and create the row if it is missing (other columns are NULL then)."""
        self._add("upsert", columns, adding=False)

    def update(self, **columns: Any) -> None:
        """Set columns of a row if it exists."""
        self._add("update", columns, adding=False)

    def increment(self, **columns: Any) -> None:
        """Add to columns of a row (NULL counts as 0), and create the row if it is missing."""
        self._add("upsert", columns, adding=True)

    def delete(self, **key: Any) -> None:
        """Delete a row if it exists."""
        if set(key) != set(self._table.key):
            raise ProjectionError(f"table {self._table.name}: delete takes the key {self._table.key} and nothing else")
        self._add("delete", key, adding=False)

    def flush(self) -> list[Statement]:
        """Return the statements that carry out all changes, in order, and forget them."""
        statements = []
        for layer in self._layers:
            shapes: dict[tuple[Any, ...], list[tuple[tuple[Any, ...], _Change]]] = {}
            # Rows in the order of their keys: two processes that touch the same rows lock them in the same order.
            for key in sorted(layer, key=_sortable):
                change = layer[key]
                shape = (change.kind, tuple(sorted(change.assignments)), tuple(sorted(change.additions)))
                shapes.setdefault(shape, []).append((key, change))
            for (kind, assigned, added), rows in shapes.items():
                statements.append(self._statement(kind, assigned, added, rows))
        self._layers.clear()
        self._layer_of.clear()
        return statements

    def _add(self, kind: Literal["upsert", "update", "delete"], columns: dict[str, Any], *, adding: bool) -> None:
        try:
            key = tuple([columns.pop(column) for column in self._table.key])
        except KeyError as missing:
            raise ProjectionError(f"table {self._table.name}: the key column {missing} is missing") from missing
        if None in key:
            raise ProjectionError(
                f"table {self._table.name}: a key column of {dict(zip(self._table.key, key, strict=True))} is None"
            )
        if not columns.keys() <= self._table.columns.keys():
            unknown = ", ".join(sorted(columns.keys() - self._table.columns.keys()))
            raise ProjectionError(f"table {self._table.name} has no column {unknown}")
        change = _Change(kind, {}, columns) if adding else _Change(kind, columns, {})
        number = self._layer_of.get(key)
        if number is not None:
            if self._layers[number][key].absorb(change):
                return
            number += 1
        else:
            number = 0
        if number == len(self._layers):
            self._layers.append({})
        self._layers[number][key] = change
        self._layer_of[key] = number

    def _statement(
        self, kind: str, assigned: tuple[str, ...], added: tuple[str, ...], rows: list[tuple[tuple[Any, ...], _Change]]
    ) -> Statement:
        table = self._table
        columns = (*table.key, *assigned, *added)
        parameters: list[list[Any]] = [list(values) for values in zip(*(key for key, _ in rows), strict=True)]
        parameters += [[change.assignments[column] for _, change in rows] for column in assigned]
        parameters += [[change.additions[column] for _, change in rows] for column in added]
        for number, column in enumerate(columns):
            if table.columns[column] in ("json", "jsonb"):
                parameters[number] = [
                    None if value is None else msgspec.json.encode(value).decode() for value in parameters[number]
                ]
        names = ", ".join(f'"{column}"' for column in columns)
        source = (
            f"unnest({', '.join(f'${n}::{table.columns[column]}[]' for n, column in enumerate(columns, 1))}) AS new ({names})"
        )
        same_key = " AND ".join(f'old."{column}" = new."{column}"' for column in table.key)
        if kind == "delete":
            return Statement(f'DELETE FROM "{table.name}" AS old USING {source} WHERE {same_key}', parameters)
        new = "EXCLUDED" if kind == "upsert" else "new"
        changes = [f'"{column}" = {new}."{column}"' for column in assigned]
        changes += [f'"{column}" = coalesce(old."{column}", 0) + {new}."{column}"' for column in added]
        if kind == "update":
            return Statement(f'UPDATE "{table.name}" AS old SET {", ".join(changes)} FROM {source} WHERE {same_key}', parameters)
        action = f"UPDATE SET {', '.join(changes)}" if changes else "NOTHING"
        key = ", ".join(f'"{column}"' for column in table.key)
        return Statement(
            f'INSERT INTO "{table.name}" AS old ({names}) SELECT {names} FROM {source} ON CONFLICT ({key}) DO {action}',
            parameters,
        )


def _sortable(key: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(map(str, key))
