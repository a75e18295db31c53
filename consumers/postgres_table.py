"""Tables as Postgres has them: the statements that make, read and change them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec

from .table import Key, Table, Write

__all__ = ["Statement", "create_sql", "read_statement", "row_of", "write_statement"]


class Statement(NamedTuple):
    """One SQL statement with its parameters: arrays of equal length, one for each column."""

    sql: str
    parameters: list[list[Any]]


def create_sql(table: Table, name: str = "") -> str:
    """Return the statement that creates the table, under its own name or another, where it is missing."""
    name = name or table.name
    lines = [f'    "{column}" {column_type}' for column, column_type in table.columns.items()]
    lines.append(f'    CONSTRAINT "{name}_pkey" PRIMARY KEY ({_names(table.key)})')
    return f'CREATE TABLE IF NOT EXISTS "{name}" (\n' + ",\n".join(lines) + "\n)"


def read_statement(table: Table, keys: Collection[Key]) -> Statement:
    """Return the statement that locks and returns the rows of some keys, in the order of their keys: all columns, as declared."""
    ordered = sorted(keys, key=lambda key: tuple(map(str, key)))
    source = _unnest(table, table.key)
    columns = ", ".join(f'old."{column}"' for column in table.columns)
    order = ", ".join(f'old."{column}"' for column in table.key)
    source = f'"{table.name}" AS old JOIN {source} ON {_same_key(table)}'
    sql = f"SELECT {columns} FROM {source} ORDER BY {order} FOR NO KEY UPDATE OF old"
    return Statement(sql, _by_column(table, table.key, ordered))


def row_of(table: Table, values: tuple[Any, ...]) -> tuple[Key, dict[str, Any]]:
    """Return key and columns of a row that `read_statement` returned."""
    row = dict(zip(table.columns, values, strict=True))
    for column in table.json_columns:
        if row[column] is not None:
            row[column] = msgspec.json.decode(row[column])
    return tuple([row[column] for column in table.key]), row


def write_statement(write: Write, *, first: int = 1, condition: str = "true") -> Statement:
    """Return the statement that carries out a change of rows, under a condition. `first` is the number of its first parameter."""
    table, columns = write.table, write.columns
    parameters = _by_column(table, columns, write.rows)
    source = _unnest(table, columns, first)
    if write.kind == "delete":
        sql = f'DELETE FROM "{table.name}" AS old USING {source} WHERE {_same_key(table)} AND {condition}'
        return Statement(sql, parameters)
    new = "new" if write.kind == "update" else "EXCLUDED"
    changes = [f'"{column}" = {new}."{column}"' for column in write.assigned]
    changes += [f'"{column}" = coalesce(old."{column}", 0) + {new}."{column}"' for column in write.added]
    if write.kind == "update":
        sql = f'UPDATE "{table.name}" AS old SET {", ".join(changes)} FROM {source} WHERE {_same_key(table)} AND {condition}'
        return Statement(sql, parameters)
    names = _names(columns)
    insert = f'INSERT INTO "{table.name}" AS old ({names}) SELECT {names} FROM {source} WHERE {condition}'
    if write.kind == "insert":
        return Statement(insert, parameters)
    action = f"UPDATE SET {', '.join(changes)}" if changes else "NOTHING"
    return Statement(f"{insert} ON CONFLICT ({_names(table.key)}) DO {action}", parameters)


def _by_column(table: Table, columns: Collection[str], rows: Collection[tuple[Any, ...]]) -> list[list[Any]]:
    by_column = [list(values) for values in zip(*rows, strict=True)]
    for number, column in enumerate(columns):
        if column in table.json_columns:
            by_column[number] = [None if value is None else msgspec.json.encode(value).decode() for value in by_column[number]]
    return by_column


def _unnest(table: Table, columns: Collection[str], first: int = 1) -> str:
    arrays = ", ".join(f"${number}::{table.columns[column]}[]" for number, column in enumerate(columns, first))
    return f"unnest({arrays}) AS new ({_names(columns)})"


def _same_key(table: Table) -> str:
    return " AND ".join(f'old."{column}" = new."{column}"' for column in table.key)


def _names(columns: Collection[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
