"""What differs between two copies of a projection's tables, row by row."""

from __future__ import annotations

from typing import Any, NamedTuple

import asyncpg
import msgspec

from ..schemas import ProjectionError
from ..schemas.postgres import Connection, load_sql, quoted, translated
from .projection import Projection
from .sides import side_name
from .table import Table

__all__ = ["Difference", "TableDifferences", "compare_tables"]

_SCHEMA_OF = load_sql("eventspine.consumers", "sql/schema_of")
_COLUMNS = """
SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""
_REACHED = "SELECT coalesce(max(last_position), 0) FROM projection_offsets WHERE projection = $1"


class Difference(NamedTuple):
    """A row that differs: its key, and the values of the columns that do; all columns of a row that is on one side only."""

    key: dict[str, Any]
    live: dict[str, Any] | None
    built: dict[str, Any] | None


class TableDifferences(NamedTuple):
    """How two copies of a table differ. `columns` counts the rows that differ in each column; columns that only one copy has are
    in `only_columns`. `live_position` and `built_position` say how far the copies were: what events between them changed
    differs rightly."""

    table: str
    live_position: int
    built_position: int
    live_rows: int
    built_rows: int
    only_live: int
    only_built: int
    differing: int
    columns: dict[str, int]
    only_columns: tuple[str, ...]
    examples: list[Difference]


async def compare_tables(pool: asyncpg.Pool, projection: Projection, side: str, *, examples: int = 5) -> list[TableDifferences]:
    """Compare the live tables with those of a side, in one snapshot of the database.

    Raises:
        ProjectionError: there is no such side, or no live table.
    """
    async with (
        translated(),
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        live = await connection.fetchval(_REACHED, projection.name)
        built = await connection.fetchval(_REACHED, side_name(projection.name, side))
        return [await _compare(connection, projection, table, side, (live, built), examples) for table in projection.tables]


async def _compare(
    connection: Connection, projection: Projection, table: Table, side: str, positions: tuple[int, int], examples: int
) -> TableDifferences:
    schema = await connection.fetchval(_SCHEMA_OF, table.name)
    if schema is None:
        raise ProjectionError(f"there is no live table {table.name} to compare with")
    live_name = f"{quoted(schema)}.{quoted(table.name)}"
    built_name = f"{quoted(side_name(projection.name, side))}.{quoted(table.name)}"
    live_columns, built_columns = await _columns(connection, live_name), await _columns(connection, built_name)
    if not built_columns:
        raise ProjectionError(f"there is no table {built_name}: run `projections rebuild` first")
    if not set(table.key) <= set(live_columns):
        raise ProjectionError(f"the live table {table.name} has no key {table.key}: its rows can't be told from each other")
    common = [column for column in built_columns if column in live_columns and column not in table.key]
    # As text: some types (json, point) can't be compared, and a type may have changed.
    same = {column: f"l.{quoted(column)}::text IS NOT DISTINCT FROM b.{quoted(column)}::text" for column in common}
    key = " AND ".join(f"l.{quoted(column)} = b.{quoted(column)}" for column in table.key)
    sides = [f"(SELECT *, true AS is_here FROM {name})" for name in (live_name, built_name)]
    joined = f"FROM {sides[0]} AS l FULL JOIN {sides[1]} AS b ON {key}"
    differs = "NOT (" + (" AND ".join(same.values()) or "true") + ")"
    counts = ", ".join(
        [
            "count(l.is_here), count(b.is_here)",
            "count(*) FILTER (WHERE b.is_here IS NULL), count(*) FILTER (WHERE l.is_here IS NULL)",
            f"count(*) FILTER (WHERE l.is_here AND b.is_here AND {differs})",
            *(f"count(*) FILTER (WHERE l.is_here AND b.is_here AND NOT ({each}))" for each in same.values()),
        ]
    )
    row = await connection.fetchrow(f"SELECT {counts} {joined}")
    assert row is not None
    rows_live, rows_built, only_live, only_built, differing, *by_column = map(int, row.values())
    found = await connection.fetch(
        f"SELECT CASE WHEN l.is_here THEN to_json(l) END AS live, CASE WHEN b.is_here THEN to_json(b) END AS built {joined} "
        f"WHERE l.is_here IS NULL OR b.is_here IS NULL OR {differs} "
        f"ORDER BY {', '.join(f'coalesce(l.{quoted(column)}, b.{quoted(column)})' for column in table.key)} LIMIT $1",
        examples,
    )
    return TableDifferences(
        table.name,
        *positions,
        *(rows_live, rows_built, only_live, only_built, differing),
        {column: count for column, count in zip(common, by_column, strict=True) if count},
        tuple(sorted(set(live_columns) ^ set(built_columns))),
        [_example(table, row["live"], row["built"]) for row in found],
    )


def _example(table: Table, live: str | None, built: str | None) -> Difference:
    sides = [None if text is None else msgspec.json.decode(text, type=dict[str, Any]) for text in (live, built)]
    for row in sides:
        if row is not None:
            del row["is_here"]
    there = next(row for row in sides if row is not None)
    key = {column: there[column] for column in table.key}
    if None not in sides:
        first, second = sides
        assert first is not None
        assert second is not None
        changed = [column for column in second if column in first and first[column] != second[column]]
        sides = [{column: row[column] for column in changed} for row in (first, second)]
    return Difference(key, *sides)


async def _columns(connection: Connection, name: str) -> list[str]:
    rows = await connection.fetch(_COLUMNS, name)
    return [row["attname"] for row in rows]
