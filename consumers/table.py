"""Tables of a read model: declared once, written event by event, folded per key in memory, flushed set-wise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import msgspec

from ..schemas import ProjectionError

__all__ = ["Key", "NotLoaded", "Rows", "Table", "TableWriter", "Write"]

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_COLUMN_TYPE = re.compile(r"[a-z][a-z0-9_ ]*(\(\d+(,\d+)?\))?")

Key = tuple[Any, ...]
Rows = Mapping[Key, Mapping[str, Any] | None]
"""Rows as they lie in the database before a batch, by key; None where there is no such row."""

Kind = Literal["insert", "upsert", "update", "delete"]


class Write(NamedTuple):
    """What is done alike to some rows of one table, in the order of their keys.

    Each of `rows` has the values of the key's columns, then those that are `assigned`, then those that are `added`.
    """

    table: Table
    kind: Kind
    assigned: tuple[str, ...]
    added: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.table.key, *self.assigned, *self.added)


_Values = Callable[[Mapping[str, Any]], tuple[Any, ...]]


class NotLoaded(Exception):
    """A handler asks for a row that has to be fetched first: it runs again then. No error, and not to be caught."""


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
        self.json_columns = [column for column, column_type in self.columns.items() if column_type in ("json", "jsonb")]
        if not self.key or not set(self.key) <= set(self.columns):
            raise ProjectionError(f"table {name}: key {self.key} must name at least one of the columns {tuple(self.columns)}")

    def writer(self, rows: Rows | None = None) -> TableWriter:
        """Return what collects a batch's changes."""
        return TableWriter(self, rows)


class _Change(msgspec.Struct, gc=False):  # made for each event, so in C; part of no cycle
    """What a batch does to one row: a deletion, or assignments and increments.

    An `insert` creates the row, which must be missing; an `upsert` creates it where it is; an `update` leaves a missing row
    missing.
    """

    kind: Kind
    assignments: dict[str, Any]
    additions: dict[str, Any]

    def absorb(self, later: _Change) -> bool:
        """Fold a later change into this one; False if both have to be carried out one after the other."""
        if later.kind == "insert" or (self.kind == "insert" and later.kind == "delete"):
            return False
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

    def applied_to(self, row: Mapping[str, Any] | None, empty: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what a row becomes."""
        if self.kind == "delete" or (self.kind == "update" and row is None):
            return None
        changed = {**empty, **(row or {}), **self.assignments}
        for column, value in self.additions.items():
            before = changed[column]
            changed[column] = value if before is None else before + value
        return changed


class TableWriter:
    """Collects a batch's changes to one table. Nothing is sent before the whole batch is handled.

    Changes to the same row are folded, so that a row that a thousand events touch is written once. Each method takes the key
    columns and others by name. `get` returns a row as it is after all that was handled before.

    Rows are read in the transaction that writes them, and locked. Still, where events of several partitions change the same row,
    each consumer sees it as the others left it, in no order of events: prefer `increment` there.
    """

    def __init__(self, table: Table, rows: Rows | None = None) -> None:
        self.missing: set[Key] = set()
        self.was_read = False
        self.written = 0  # counts changes
        self.note: Callable[[Key], None] | None = None  # told of each row that is changed
        self.name = table.name
        self._table = table
        self._rows = rows or {}
        self._columns = table.columns.keys()
        self._key = table.key
        # A change that can't be folded into the one before it goes one layer up; layers are flushed in order.
        self._layers: list[dict[Key, _Change]] = [{}]
        self._layer_of: dict[Key, int] = {}  # of keys that are beyond the first

    def get(self, **key: Any) -> dict[str, Any] | None:
        """Return a row, all its columns by name, or None if there is none. A change to the dict changes nothing."""
        self.was_read = True
        named = self._key_of("get", key)
        if key:
            raise ProjectionError(f"table {self._table.name}: get takes the key {self._table.key} and nothing else")
        changes = [layer[named] for layer in self._layers if named in layer]
        if named not in self._rows and not (changes and changes[0].kind in ("insert", "delete")):
            self.missing.add(named)
            raise NotLoaded
        row = self._rows.get(named)
        if changes:
            empty = dict.fromkeys(self._columns) | dict(zip(self._key, named, strict=True))
            for change in changes:
                row = change.applied_to(row, empty)
        return None if row is None else dict(row)

    def insert(self, **columns: Any) -> None:
        """Create a row. If there is one with its key, the event is refused, like any other that the database refuses."""
        self._add("insert", columns, adding=False)

    def upsert(self, **columns: Any) -> None:
        """Set columns of a row, and create the row if it is missing (other columns are NULL then)."""
        self._add("upsert", columns, adding=False)

    def update(self, **columns: Any) -> None:
        """Set columns of a row if it exists."""
        if len(columns) > len(self._key):
            self._add("update", columns, adding=False)

    def increment(self, **columns: Any) -> None:
        """Add to columns of a row (NULL counts as 0), and create the row if it is missing."""
        self._add("upsert", columns, adding=True)

    def delete(self, **key: Any) -> None:
        """Delete a row if it exists."""
        if key.keys() != set(self._key):
            raise ProjectionError(f"table {self._table.name}: delete takes the key {self._key} and nothing else")
        self._add("delete", key, adding=False)

    def flush(self) -> list[Write]:
        """Return all changes, in order, and forget them."""
        writes = []
        for layer in self._layers:
            shapes: dict[Any, tuple[_Values, _Values, list[tuple[Any, ...]]]] = {}  # by how the columns were named
            by_shape: dict[tuple[Kind, tuple[str, ...], tuple[str, ...]], list[tuple[Any, ...]]] = {}
            for key, change in layer.items():
                named = (change.kind, *change.assignments, None, *change.additions)
                shape = shapes.get(named)
                if shape is None:
                    assigned, added = tuple(sorted(change.assignments)), tuple(sorted(change.additions))
                    rows = by_shape.setdefault((change.kind, assigned, added), [])
                    shape = shapes[named] = _values_of(assigned), _values_of(added), rows
                values_of, additions_of, rows = shape
                rows.append(key + values_of(change.assignments) + additions_of(change.additions))
            writes += [Write(self._table, *shape, self._in_order(by_shape[shape])) for shape in sorted(by_shape)]
        self._layers = [{}]
        self._layer_of = {}
        return writes

    def _in_order(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Sort rows by their keys: two processes that touch the same rows lock them in the same order."""
        width = len(self._key)
        try:
            rows.sort(key=itemgetter(0 if width == 1 else slice(width)))
        except TypeError:  # values that are not to be compared, of which the database will refuse some
            rows.sort(key=lambda row: tuple(map(str, row[:width])))
        return rows

    def _key_of(self, doing: str, columns: dict[str, Any]) -> Key:
        """Take the key from columns."""
        try:
            key = tuple(map(columns.pop, self._key))
        except KeyError as missing:
            raise ProjectionError(f"table {self._table.name}: {doing} lacks the key column {missing}") from missing
        if None in key:
            raise ProjectionError(f"table {self._table.name}: a key column of {dict(zip(self._key, key, strict=True))} is None")
        return key

    def _add(self, kind: Kind, columns: dict[str, Any], *, adding: bool) -> None:
        key = self._key_of(kind, columns)
        if not columns.keys() <= self._columns:
            unknown = ", ".join(sorted(columns.keys() - self._columns))
            raise ProjectionError(f"table {self._table.name} has no column {unknown}")
        self.written += 1
        if self.note is not None:
            self.note(key)
        change = _Change(kind, {}, columns) if adding else _Change(kind, columns, {})
        number = self._layer_of.get(key, 0) if self._layer_of else 0
        before = self._layers[number].get(key)
        if before is None:
            self._layers[number][key] = change
        elif not before.absorb(change):
            number += 1
            if number == len(self._layers):
                self._layers.append({})
            self._layers[number][key] = change
            self._layer_of[key] = number


def _values_of(columns: tuple[str, ...]) -> _Values:
    """Return what takes these columns' values out of a dict."""
    if not columns:
        return lambda _: ()
    if len(columns) == 1:
        (column,) = columns
        return lambda values: (values[column],)
    return itemgetter(*columns)
