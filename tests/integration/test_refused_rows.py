"""Rows that Postgres refuses are found at once, and what comes of a batch is what halving would have found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventspine import Event, PostgresSink, Projection, Table, TableWriter, on
from eventspine.consumers.engine import Engine
from eventspine.consumers.folding import Folded
from eventspine.consumers.parked import Kept
from eventspine.consumers.places import Item, Partition
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from eventspine.consumers.sink import Work
from eventspine.consumers.table import Key, Write

P0 = Partition("events.Order", 0)


class Goods(Projection):
    """`price` holds four digits, `n` is not negative, `label` is of five letters and never empty, `code` is unique."""

    goods = Table(
        "goods",
        columns={"id": "text", "part": "bigint", "n": "integer", "price": "numeric(6,2)", "label": "varchar(5)", "code": "text",
                 "about": "jsonb"},
        key=("id", "part"),
    )  # fmt: skip

    @on("Changed")
    def changed(self, event: Event, goods: TableWriter) -> None:
        getattr(goods, event.data["how"])(id=event.data["id"], part=1, **event.data["columns"])


class Halving(PostgresSink):
    """Never tells which rows it refuses."""

    async def refused_rows(self, projection: Projection, writes: Sequence[Write]) -> dict[tuple[str, Key], str]:
        return {}


class Counting(PostgresSink):
    writes = 0

    async def write(self, projection: Projection, work: Work) -> Folded:
        self.writes += 1
        return await super().write(projection, work)


def item(position: int, stream: str, data: Mapping[str, Any]) -> Item:
    event = Event(event_type="Changed", data=data, stream_id=stream, version=1, global_position=position)
    return Item(P0, position - 1, position, 0, "Changed", stream, event, raw=event)


async def outcome(pool: asyncpg.Pool, sink: PostgresSink, batches: Sequence[Sequence[Item]]) -> tuple[list[Any], list[Any]]:
    """Apply batches to an empty table; return the rows, and what is parked."""
    await pool.execute("DROP TABLE IF EXISTS goods")
    await PostgresProjectionAdmin(pool).prepare()
    await pool.execute("TRUNCATE projection_offsets, projection_parked")
    projection = Goods()
    await sink.prepare(projection)
    await pool.execute("ALTER TABLE goods ADD CHECK (n >= 0), ADD CHECK (label <> ''), ADD UNIQUE (code)")
    engine = Engine(projection, sink, keep=lambda item: Kept(b"{}", b"", b""), read=_none)
    await engine.claim({P0: ""})
    for batch in batches:
        staged = engine.stage(batch)
        if staged is not None:
            await engine.write(staged)
    rows = await pool.fetch("SELECT * FROM goods ORDER BY id")
    parked = await pool.fetch("SELECT global_position, state FROM projection_parked ORDER BY 1")
    return [tuple(row) for row in rows], [tuple(row) for row in parked]


async def _none(rows: Sequence[Any]) -> list[Item]:
    return []


values: dict[str, st.SearchStrategy[Any]] = {
    "n": st.sampled_from([0, 1, 5, -1, -3, 2**31, "no number"]),
    "price": st.sampled_from([1, 9999, 10_000]),
    "label": st.sampled_from(["a", "äöüßé", "abcdef", "", "\0", "\ud800", 7]),
    "code": st.sampled_from(["x", "y", "z", None]),
    "about": st.sampled_from([{"a": 1}, {"a": "\0"}, None]),
}
good: dict[str, st.SearchStrategy[Any]] = {"n": st.integers(0, 9), "price": st.integers(0, 9), "label": st.sampled_from("abc")}


def changes(of: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    upserts = st.fixed_dictionaries(
        {
            "how": st.sampled_from(["upsert", "upsert", "update", "insert"]),
            "id": st.sampled_from("abcdefghijkl"),
            "columns": st.fixed_dictionaries({}, optional=dict(of)).filter(bool),
        }
    )
    increments = st.fixed_dictionaries(
        {"how": st.just("increment"), "id": st.sampled_from("abcdef"), "columns": st.fixed_dictionaries({"n": of["n"]})}
    )
    return st.one_of(upserts, increments)


# Of several changes of a row, what is refused depends on which are folded: so one of each.
batch = st.lists(
    st.one_of(changes(good), changes(good), changes(values)), min_size=1, max_size=12, unique_by=lambda each: each["id"]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(batch, min_size=1, max_size=3))
async def test_what_halving_would_find(pool: asyncpg.Pool, batches: list[list[dict[str, Any]]]) -> None:
    positions = itertools.count(1)
    items = [[item(next(positions), f"Order-{data['id']}", data) for data in each] for each in batches]
    assert await outcome(pool, PostgresSink(pool), items) == await outcome(pool, Halving(pool), items)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"price": 10_000}, "numeric field overflow\nDETAIL"),
        ({"label": ""}, 'violates check constraint "goods_label_check"\nDETAIL'),
        ({"n": -1}, "violates check constraint"),
        ({"n": 2**40}, "a value does not fit its column: n is integer: 1099511627776"),
        ({"label": "\0"}, "a value does not fit its column: label"),
    ],
)
async def test_many_are_found_at_once(pool: asyncpg.Pool, columns: dict[str, Any], said: str) -> None:
    batch = [
        item(n + 1, f"Order-{n}", {"how": "upsert", "id": f"{n}", "columns": columns if n % 10 == 3 else {"n": n}})
        for n in range(500)
    ]
    sink = Counting(pool)
    rows, parked = await outcome(pool, sink, [batch])
    assert len(rows) == 450
    assert [position for position, *_ in parked] == list(range(4, 501, 10))
    assert sink.writes == 2  # what is refused, and what is left
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(await pool.fetchval("SELECT min(reason) FROM projection_parked"))


async def test_a_role_that_can_not_make_temporary_functions(pool: asyncpg.Pool, database: str) -> None:
    batch = [
        item(n + 1, f"Order-{n}", {"how": "upsert", "id": f"{n}", "columns": {"price": 10_000 if n == 3 else 1}})
        for n in range(8)
    ]
    name = await pool.fetchval("SELECT current_database()")
    await outcome(pool, PostgresSink(pool), [])
    await pool.execute(f'REVOKE TEMPORARY ON DATABASE "{name}" FROM PUBLIC')
    await pool.execute("CREATE ROLE refused_rows_reader; GRANT ALL ON ALL TABLES IN SCHEMA public TO refused_rows_reader")

    async def as_reader(connection: Any) -> None:
        await connection.execute("SET SESSION AUTHORIZATION refused_rows_reader")

    try:
        async with asyncpg.create_pool(database, min_size=1, max_size=1, setup=as_reader) as poor:
            sink = PostgresSink(poor)
            engine = Engine(Goods(), sink, keep=lambda item: Kept(b"{}", b"", b""), read=_none)
            await engine.claim({P0: ""})
            staged = engine.stage(batch)
            assert staged is not None
            await engine.write(staged)
    finally:
        await pool.execute("DROP OWNED BY refused_rows_reader; DROP ROLE refused_rows_reader")
    assert await pool.fetchval("SELECT count(*) FROM goods") == 7
    assert await pool.fetchval("SELECT array_agg(global_position) FROM projection_parked") == [4]
