"""Folded, set-wise writes against the plain meaning of each change, one after the other, on a real table."""

from __future__ import annotations

import random
from typing import Any

import asyncpg
import pytest

from eventspine import PostgresSink, Projection, ProjectionError, Table, TableWriter
from eventspine.consumers.postgres_table import create_sql, write_statement

_TABLE = Table(
    "things", columns={"id": "text", "part": "integer", "name": "text", "n": "bigint", "m": "bigint"}, key=("id", "part")
)
_COLUMNS = ("name", "n", "m")


def apply(rows: dict[Any, dict[str, Any]], change: str, key: tuple[str, int], columns: dict[str, Any]) -> None:
    """What a change means, alone."""
    if change == "delete":
        rows.pop(key, None)
        return
    if change == "update" and key not in rows:
        return
    row = rows.setdefault(key, dict.fromkeys(_COLUMNS))
    for column, value in columns.items():
        row[column] = (row[column] or 0) + value if change == "increment" else value


@pytest.mark.parametrize("seed", range(40))
async def test_batches_mean_what_their_changes_mean(pool: asyncpg.Pool, seed: int) -> None:
    chance = random.Random(seed)
    await pool.execute(create_sql(_TABLE))
    expected: dict[Any, dict[str, Any]] = {}
    for _ in range(5):
        writer = TableWriter(_TABLE)
        for _ in range(chance.randint(1, 60)):
            change = chance.choice(["upsert", "upsert", "increment", "increment", "update", "delete"])
            key = (chance.choice("abcd"), chance.randint(1, 2))
            numbers = {name: chance.randint(-5, 5) for name in chance.sample(["n", "m"], chance.randint(1, 2))}
            columns: dict[str, Any] = {} if change == "delete" else numbers
            if change in ("upsert", "update") and chance.random() < 0.5:
                columns = columns | {"name": chance.choice(["x", "y", None])}
            getattr(writer, change)(id=key[0], part=key[1], **columns)
            apply(expected, change, key, columns)
        for statement in map(write_statement, writer.flush()):
            await pool.execute(statement.sql, *statement.parameters)
        assert writer.flush() == []
        actual = {
            (row["id"], row["part"]): {name: row[name] for name in _COLUMNS} for row in await pool.fetch("SELECT * FROM things")
        }
        assert actual == expected


async def test_many_changes_to_one_row_are_one_write() -> None:
    writer = TableWriter(_TABLE)
    for _ in range(1000):
        writer.increment(id="a", part=1, n=1)
        writer.upsert(id="a", part=1, name="x")
    (write,) = writer.flush()
    assert write.rows == [("a", 1, "x", 1000)]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda writer: writer.upsert(id="a", name="x"), "lacks the key column 'part'"),
        (lambda writer: writer.upsert(id="a", part=None), "is None"),
        (lambda writer: writer.upsert(id="a", part=1, nam="x"), "has no column nam"),
        (lambda writer: writer.delete(id="a", part=1, name="x"), "takes the key"),
        (lambda writer: writer.get(id="a", part=1, name="x"), "takes the key"),
    ],
)
def test_wrong_use_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ProjectionError, match=said):
        call(TableWriter(_TABLE))


@pytest.mark.parametrize(
    ("name", "columns", "key"),
    [
        ("Things", {"id": "text"}, "id"),
        ("things; DROP TABLE events", {"id": "text"}, "id"),
        ("things", {"id": "text) --"}, "id"),
        ("things", {"id": "text[]"}, "id"),
        ("things", {"id": "text"}, "name"),
        ("things", {"id": "text"}, ()),
    ],
)
def test_wrong_declarations_are_refused(name: str, columns: dict[str, str], key: Any) -> None:
    with pytest.raises(ProjectionError):
        Table(name, columns=columns, key=key)


async def test_table_that_exists_with_other_columns_is_refused(pool: asyncpg.Pool) -> None:
    class Things(Projection):
        table = Table("things", columns={"id": "int", "at": "timestamptz", "price": "numeric(10,2)", "about": "jsonb"}, key="id")

    sink = PostgresSink(pool)
    await sink.prepare(Things())
    await sink.prepare(Things())
    await pool.execute("ALTER TABLE things ADD COLUMN more text")
    with pytest.raises(ProjectionError, match="exists with the columns"):
        await sink.prepare(Things())


async def test_json_columns_hold_json(pool: asyncpg.Pool) -> None:
    table = Table("papers", columns={"id": "text", "about": "jsonb"}, key="id")
    await pool.execute(create_sql(table))
    writer = TableWriter(table)
    writer.upsert(id="a", about={"tags": ["x", "y"]})
    writer.upsert(id="b", about=None)
    for statement in map(write_statement, writer.flush()):
        await pool.execute(statement.sql, *statement.parameters)
    assert await pool.fetchval("SELECT about -> 'tags' ->> 1 FROM papers WHERE id = 'a'") == "y"
    assert await pool.fetchval("SELECT about IS NULL FROM papers WHERE id = 'b'")
