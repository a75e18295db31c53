"""The read model's database: rows and offsets in one transaction, fenced by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg

from ..schemas import Fenced, ProjectionError
from ..schemas.postgres import load_sql, translated
from .places import Partition, Place
from .projection import Projection
from .table import Statement

__all__ = ["PostgresSink"]

_SQL = "eventspine.consumers"
_PROJECTION_OFFSETS = load_sql(_SQL, "sql/projection_offsets")
_CLAIM = load_sql(_SQL, "sql/claim")
_ADVANCE = load_sql(_SQL, "sql/advance")
_ADD_LAST_LATE = load_sql(_SQL, "sql/add_last_late")
_TABLE_COLUMNS = load_sql(_SQL, "sql/table_columns")
_LOCK = "SELECT pg_advisory_xact_lock(1702261358, 1)"


class PostgresSink:
    """Where a projection keeps its rows: any Postgres database, the store's own or another."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def prepare(self, projection: Projection) -> None:
        """Create the projection's tables where they are missing.

        Raises:
            ProjectionError: a table exists with other columns.
        """
        async with translated(), self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_LOCK)  # CREATE … IF NOT EXISTS alone is not safe against itself
            await connection.execute(_PROJECTION_OFFSETS)
            # Asked first: the ALTER would wait for every transaction that writes offsets, even where it has nothing to do.
            if "last_late" not in {row["column"] for row in await connection.fetch(_TABLE_COLUMNS, "projection_offsets")}:
                await connection.execute(_ADD_LAST_LATE)
            for table in projection.tables:
                await connection.execute(table.create_sql())
                found = {row["column"]: row["type"] for row in await connection.fetch(_TABLE_COLUMNS, table.name)}
                # Ask Postgres for its own names of the declared types: `int` is `integer`, `timestamptz` has a long one.
                names = list(table.columns)
                canonical = await connection.fetch(
                    "SELECT format_type(t::regtype, NULL) AS type FROM unnest($1::text[]) AS t",
                    [column_type.partition("(")[0] for column_type in table.columns.values()],
                )
                declared = {name: row["type"] for name, row in zip(names, canonical, strict=True)}
                if {column: column_type.partition("(")[0] for column, column_type in found.items()} != declared:
                    raise ProjectionError(
                        f"table {table.name} exists with the columns {found}, but projection {projection.name} declares "
                        f"{table.columns}: give the changed projection a new name and table, or drop the table and the "
                        f"projection's rows in projection_offsets to build it again"
                    )

    async def claim(self, projection: Projection, partitions: Sequence[Partition]) -> dict[Partition, Place]:
        """Become the owner of partitions and learn how far each has come. Older owners can't commit after this."""
        async with translated():
            rows = await self._pool.fetch(
                _CLAIM, projection.name, [each.topic for each in partitions], [each.number for each in partitions]
            )
        return {
            Partition(row["topic"], row["partition"]): Place(
                row["epoch"], row["next_offset"], row["last_position"], row["events"], row["last_late"]
            )
            for row in rows
        }

    async def write(
        self,
        projection: Projection,
        statements: Sequence[Statement],
        before: Mapping[Partition, Place],
        after: Mapping[Partition, Place],
    ) -> None:
        """Write a batch's rows and move its offsets, both or neither.

        The commit does not wait for the disk: if the server crashes, rows and offsets fall back together, and the records
        are read from Kafka again.

        Raises:
            Fenced: somebody else owns one of the partitions now. Nothing was written.
        """
        partitions = sorted(after)
        async with translated(), self._pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL synchronous_commit = off")
            moved = await connection.fetch(
                _ADVANCE,
                projection.name,
                [partition.topic for partition in partitions],
                [partition.number for partition in partitions],
                [before[partition].epoch for partition in partitions],
                [before[partition].next_offset for partition in partitions],
                [after[partition].next_offset for partition in partitions],
                [after[partition].last_position for partition in partitions],
                [after[partition].events for partition in partitions],
                [after[partition].last_late for partition in partitions],
            )
            if len(moved) != len(partitions):
                raise Fenced(f"projection {projection.name}: another consumer owns a partition of this batch now")
            for statement in statements:
                await connection.execute(statement.sql, *statement.parameters)
