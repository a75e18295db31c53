"""One suite over all sinks and what looks after them: claims, fences, batches, parking, reset."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventspine import Event, Fenced, IntegrityError, MemoryReadModel, Projection, ProjectionError, Table, TableWriter, on
from eventspine.consumers.folding import Folded, Refused
from eventspine.consumers.log_consumer import LOG
from eventspine.consumers.places import Place
from eventspine.consumers.sink import Work
from eventspine.schemas import SettingsError
from tests.contract.sinks import P0, P1, ReadModel, Run, opensearch_model, postgres_model, redis_model

__all__ = ["opensearch_model", "postgres_model", "redis_model"]


class Things(Projection):
    """Does what events say."""

    things = Table(
        "things",
        columns={
            "id": "text", "part": "integer", "name": "text", "n": "bigint", "small": "smallint", "x": "double precision",
            "about": "jsonb",
        },
        key=("id", "part"),
    )  # fmt: skip

    @on("Changed")
    def changed(self, event: Event, things: TableWriter) -> None:
        getattr(things, event.data["do"])(**{"part": 1, **event.data["row"]})


class LenientThings(Things):
    name = "things"
    poison = "skip"


def change(do: str, **row: Any) -> dict[str, Any]:
    return {"do": do, "row": row}


def thing(id_: str, **columns: Any) -> dict[str, Any]:
    return {"id": id_, "part": 1, "name": None, "n": None, "small": None, "x": None, "about": None, **columns}


@pytest.fixture(params=["postgres", "redis", "opensearch"])
def model(request: pytest.FixtureRequest) -> ReadModel:
    found: ReadModel = request.getfixturevalue(f"{request.param}_model")
    return found


def need(model: ReadModel, what: str) -> None:
    if what not in model.can:
        pytest.skip(f"{type(model).__name__} can't {what}")


async def run(model: ReadModel, projection: Projection | None = None) -> Run:
    return await Run(projection or Things(), await model.sink()).start()


async def rows(model: ReadModel) -> list[dict[str, Any]]:
    return await model.rows(Things(), Things.things)


# Claims and fences


async def test_places_are_where_the_last_batch_ended(model: ReadModel) -> None:
    first = await run(model)
    assert first.place == Place(1, 0, 0, 0)
    await first.apply(change("upsert", id="a", name="x"), change("upsert", id="b", name="y"))
    await first.apply(change("update", id="a", name="z"))
    assert first.place == Place(1, 3, 3, 3)
    second = await run(model)
    assert second.place == Place(2, 3, 3, 3)
    assert await rows(model) == [thing("a", name="z"), thing("b", name="y")]


async def test_an_older_owner_is_fenced(model: ReadModel) -> None:
    older = await run(model)
    await older.apply(change("upsert", id="a", name="x"))
    newer = await run(model)
    with pytest.raises(Fenced):
        await older.apply(change("upsert", id="a", name="zombie"))
    with pytest.raises(Fenced):
        await older.engine.look_at_parked()
    assert await newer.engine.look_at_parked() is False
    await newer.apply(change("upsert", id="b", name="y"))
    assert await rows(model) == [thing("a", name="x"), thing("b", name="y")]


async def test_an_older_life_of_the_same_process_is_fenced(model: ReadModel) -> None:
    sink = await model.sink()
    older = await Run(Things(), sink).start()
    newer = await Run(Things(), sink).start()
    with pytest.raises(Fenced):
        await older.apply(change("upsert", id="zombie"))
    with pytest.raises(Fenced):
        await older.engine.look_at_parked()
    await newer.apply(change("upsert", id="a"))
    assert await rows(model) == [thing("a")]


async def test_a_batch_of_two_partitions_is_fenced_if_one_is_lost(model: ReadModel) -> None:
    both = await Run(Things(), await model.sink()).start(P0, P1)
    await Run(Things(), await model.sink()).start(P1)
    with pytest.raises(Fenced):
        await both.apply_items([both.item(change("upsert", id="a")), both.item(change("upsert", id="b"), P1)])
    assert not await rows(model)
    assert [place.next_offset for place in await model.admin.places("things")] == [0, 0]
    again = await Run(Things(), await model.sink()).start()
    await again.apply(change("upsert", id="a"))
    assert await rows(model) == [thing("a")]


async def test_a_batch_from_another_offset_is_fenced(model: ReadModel) -> None:
    """A batch whose outcome was unknown is sent again."""
    owner = await run(model)
    items = [owner.item(change("upsert", id="a", name="x"))]
    staged = owner.engine.stage(items)
    assert staged is not None
    await owner.engine.write(staged)
    with pytest.raises(Fenced):
        await owner.engine.write(staged)
    assert await rows(model) == [thing("a", name="x")]


async def test_late_numbers_and_positions_are_kept(model: ReadModel) -> None:
    owner = await run(model)
    item = owner.item(change("upsert", id="a"))
    await owner.apply_items([item, item._replace(offset=7, position=2**60), item._replace(offset=8, position=5, late=9)])
    assert (await run(model)).place == Place(2, 9, 2**60, 3, 9, 0)


async def test_a_topic_that_was_made_anew_halts(model: ReadModel) -> None:
    await Run(Things(), await model.sink()).start(topic_id="one")
    await Run(Things(), await model.sink()).start(topic_id="one")
    with pytest.raises(IntegrityError, match=r"its id was one, and is two.*projections reset things"):
        await Run(Things(), await model.sink()).start(topic_id="two")


async def test_kafka_goes_on_where_the_log_was_read_to(model: ReadModel) -> None:
    log = await Run(Things(), await model.sink()).start(LOG)
    await log.apply(change("upsert", id="a"), change("upsert", id="b"), partition=LOG)
    assert log.engine.places[LOG] == Place(1, 2, 2, 2)
    consumer = await run(model)
    assert consumer.place == Place(1, 0, 0, 0, 0, 2)
    with pytest.raises(Fenced):
        await log.apply(change("upsert", id="c"), partition=LOG)
    await Run(Things(), await model.sink()).start(LOG)  # nothing was taken from Kafka yet
    consumer = await run(model)
    await consumer.apply(change("upsert", id="a", name="again"), change("upsert", id="b"), change("upsert", id="c"))
    assert consumer.place == Place(2, 3, 3, 1, 0, 2)
    assert await rows(model) == [thing("a"), thing("b"), thing("c")]
    with pytest.raises(ProjectionError, match="has gone on from Kafka"):
        await Run(Things(), await model.sink()).start(LOG)
    await consumer.apply(change("upsert", id="d"))  # what was refused has fenced nobody


async def test_parked_events_of_the_log_come_before_kafka(model: ReadModel) -> None:
    log = await Run(Things(), await model.sink()).start(LOG)
    await log.apply(change("upsert", id="a", nonsense=1), partition=LOG)
    with pytest.raises(ProjectionError, match="parked events from there"):
        await run(model)
    await log.ask("discard-all", model.admin)
    await run(model)


# Rows


async def test_a_table_with_other_columns_is_refused(model: ReadModel) -> None:
    class Other(Projection):
        name = "things"
        things = Table("things", columns={"id": "text", "part": "integer", "name": "text"}, key=("id", "part"))

    sink = await model.sink()
    await sink.prepare(Things())
    await sink.prepare(Things())
    with pytest.raises(ProjectionError, match=r"table things exists .*`eventspine projections re"):
        await sink.prepare(Other())


async def test_what_changes_mean(model: ReadModel) -> None:
    owner = await run(model)
    await owner.apply(
        change("upsert", id="a", name="x", n=1), change("upsert", id="b", about={"tags": ["ä", 1, None]}),
        change("update", id="missing", name="x"), change("delete", id="missing"),
    )  # fmt: skip
    await owner.apply(change("update", id="a", n=2), change("upsert", id="b", name="y"), change("upsert", id="c"))
    assert await rows(model) == [
        thing("a", name="x", n=2), thing("b", name="y", about={"tags": ["ä", 1, None]}), thing("c"),
    ]  # fmt: skip
    await owner.apply(change("update", id="a", name=None), change("delete", id="b"), change("upsert", id="c", n=-(2**63)))
    assert await rows(model) == [thing("a", n=2), thing("c", n=-(2**63))]
    await owner.apply(change("delete", id="a"), change("upsert", id="a", name="new"), change("update", id="a", n=5))
    await owner.apply(change("update", id="z", n=1), change("upsert", id="z", name="z"), change("delete", id="c"))
    assert await rows(model) == [thing("a", name="new", n=5), thing("z", name="z")]


async def test_keys_of_several_columns_are_told_apart(model: ReadModel) -> None:
    class Pairs(Projection):
        pairs = Table("pairs", columns={"a": "text", "b": "text", "n": "bigint"}, key=("a", "b"))

        @on("Changed")
        def changed(self, event: Event, pairs: TableWriter) -> None:
            pairs.upsert(**event.data["row"])

    owner = await run(model, Pairs())
    keys = sorted([("x:y", "z"), ("x", "y:z"), ("x%3Ay", "z"), ("x%", "3Ay:z"), ("", ":"), (":", ""), ("", "")])
    await owner.apply(*(change("", a=a, b=b, n=n) for n, (a, b) in enumerate(keys)))
    assert await model.rows(Pairs(), Pairs.pairs) == [{"a": a, "b": b, "n": n} for n, (a, b) in enumerate(keys)]


async def test_a_batch_of_ten_thousand(model: ReadModel) -> None:
    owner = await run(model)
    await owner.apply(*(change("upsert", id=f"{n:05}", name=f"name {n}") for n in range(10_000)))
    await owner.apply(
        *(change("delete" if n % 2 else "update", id=f"{n:05}", **({} if n % 2 else {"n": n})) for n in range(10_000))
    )
    assert await rows(model) == [thing(f"{n:05}", name=f"name {n}", n=n) for n in range(0, 10_000, 2)]


async def test_a_row_that_is_inserted_must_be_missing(model: ReadModel) -> None:
    need(model, "insert")
    owner = await run(model)
    await owner.apply(
        change("insert", id="a", name="x"), change("insert", id="b"), change("delete", id="b"), change("insert", id="b")
    )
    staged = owner.engine.stage([owner.item(change("upsert", id="c")), owner.item(change("insert", id="a"))])
    assert staged is not None
    assert isinstance(staged.folded, Folded)
    work = Work(
        staged.before,
        staged.after,
        staged.folded,
        lambda rows: pytest.fail("nothing is read"),
        lambda folded: [],
        (),
        staged.items,
    )
    with pytest.raises(Refused):
        await owner.sink.write(Things(), work)
    assert await rows(model) == [thing("a", name="x"), thing("b")]
    assert (await model.admin.places("things"))[0].next_offset == 4


async def test_increments(model: ReadModel) -> None:
    need(model, "increment")
    owner = await run(model)
    await owner.apply(change("increment", id="a", n=1), change("upsert", id="b", n=2**53), change("increment", id="b", n=1))
    await owner.apply(
        change("increment", id="a", n=2, small=-3), change("increment", id="b", n=2**62), change("increment", id="c", x=0.1),
    )  # fmt: skip
    await owner.apply(
        change("increment", id="c", x=0.2), change("increment", id="b", n=2**62 - 2**53 - 2), change("increment", id="a", n=-4),
        change("delete", id="d"), change("increment", id="d", n=-(2**63)),
    )  # fmt: skip
    assert await rows(model) == [
        thing("a", n=-1, small=-3), thing("b", n=2**63 - 1), thing("c", x=0.1 + 0.2), thing("d", n=-(2**63)),
    ]  # fmt: skip


@pytest.mark.parametrize("column", ["n", "small"])
async def test_a_sum_that_is_out_of_range_is_refused(model: ReadModel, column: str) -> None:
    need(model, "increment")
    most = {"n": 2**63 - 1, "small": 2**15 - 1}[column]
    owner = await run(model)
    await owner.apply(change("upsert", id="a", **{column: most - 1}), change("increment", id="b", **{column: -most}))
    await owner.apply(
        change("upsert", id="c"), change("increment", id="a", **{column: 1}), change("increment", id="b", **{column: -1}),
    )  # fmt: skip
    await owner.apply(
        change("increment", id="c", n=1), change("increment", id="a", **{column: 1}), change("increment", id="b", **{column: -1}),
        change("upsert", id="c", **{column: most + 1}),
    )  # fmt: skip
    parked = await model.admin.parked("things")
    assert [(each.stream_id, each.position, each.state) for each in parked] == [
        ("Order-a", 7, "parked"), ("Order-b", 8, "parked"), ("Order-c", 9, "parked"),
    ]  # fmt: skip
    assert await rows(model) == [thing("a", **{column: most}), thing("b", **{column: -most - 1}), thing("c", n=1)]


# Rows that handlers read


class Largest(Projection):
    """Reads what it has written."""

    largest = Table("largest", columns={"id": "text", "n": "bigint", "times": "bigint", "note": "text"}, key="id")

    @on("Changed")
    def changed(self, event: Event, largest: TableWriter) -> None:
        id_, n = event.data["row"]["id"], event.data["row"]["n"]
        row = largest.get(id=id_) or {"n": 0, "times": 0}
        largest.upsert(id=id_, n=max(row["n"], n), times=row["times"] + 1)


async def test_rows_are_read_as_they_are(model: ReadModel) -> None:
    need(model, "get")
    owner = await run(model, Largest())
    await owner.apply(change("", id="a", n=3), change("", id="b", n=1), change("", id="a", n=2))
    await owner.apply(change("", id="b", n=5), change("", id="a", n=1), change("", id="c", n=1))
    assert await model.rows(Largest(), Largest.largest) == [
        {"id": "a", "n": 3, "times": 3, "note": None},
        {"id": "b", "n": 5, "times": 2, "note": None},
        {"id": "c", "n": 1, "times": 1, "note": None},
    ]


async def test_owners_that_read_one_row_at_once_lose_nothing(model: ReadModel) -> None:
    need(model, "get")
    first = await Run(Largest(), await model.sink()).start(P0)
    second = await Run(Largest(), await model.sink()).start(P1)
    await first.apply(change("", id="a", n=0))

    async def work(owner: Run, partition: Any) -> None:
        for n in range(40):
            await owner.apply(change("", id="a", n=n), partition=partition)

    async with asyncio.timeout(30):
        await asyncio.gather(work(first, P0), work(second, P1))
    assert await model.rows(Largest(), Largest.largest) == [{"id": "a", "n": 39, "times": 81, "note": None}]


CASES: list[tuple[str, Any, Any]] = [
    ("text", "ä\n", "ä\n"),
    ("text", "", ""),
    ("varchar(3)", "abc", "abc"),
    ("smallint", -5, -5),
    ("int", 2**31 - 1, 2**31 - 1),
    ("bigint", -(2**63), -(2**63)),
    ("boolean", True, True),
    ("boolean", False, False),
    ("double precision", 0.1, 0.1),
    ("double precision", 5, 5.0),
    ("double precision", float("inf"), float("inf")),
    ("double precision", 5e-324, 5e-324),
    ("real", 0.1, 0.10000000149011612),
    ("numeric", Decimal("1.50"), Decimal("1.50")),
    ("numeric", Decimal("1E+3"), Decimal(1000)),
    ("numeric", 7, Decimal(7)),
    ("numeric(10,2)", Decimal("1.005"), Decimal("1.01")),
    ("numeric(10,2)", Decimal("-99999999.994"), Decimal("-99999999.99")),
    ("timestamptz", datetime(2026, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=2))), datetime(2026, 1, 2, 1, 4, 5, 6, UTC)),
    ("timestamp", datetime(2026, 1, 2, 3, 4), datetime(2026, 1, 2, 3, 4)),  # noqa: DTZ001
    ("date", date(2026, 1, 2), date(2026, 1, 2)),
    ("uuid", UUID(int=5), UUID(int=5)),
    ("uuid", str(UUID(int=5)).upper(), UUID(int=5)),
    ("bytea", b"\0\xff", b"\0\xff"),
    ("bytea", b"", b""),
    ("jsonb", {"a": [1, 2.5, None, "ü"]}, {"a": [1, 2.5, None, "ü"]}),
    ("json", "text", "text"),
    ("jsonb", 0, 0),
]


@pytest.mark.parametrize(("column_type", "given_", "expected"), CASES)
async def test_values_come_back_as_postgres_gives_them(model: ReadModel, column_type: str, given_: Any, expected: Any) -> None:
    need(model, "get")
    seen: list[Any] = []

    class Values(Projection):
        values = Table("kept", columns={"id": "text", "value": column_type}, key="id")

        @on("Changed")
        def changed(self, event: Event, kept: TableWriter) -> None:
            if event.data["do"] == "write":
                kept.upsert(id="a", value=given_)
            else:
                row = kept.get(id="a")
                assert row is not None
                seen.append(row["value"])

    owner = await run(model, Values())
    await owner.apply(change("write"))
    await owner.apply(change("read"))
    assert not await model.admin.parked("values")
    assert seen[-1] == expected
    assert isinstance(seen[-1], type(expected))
    assert await model.rows(Values(), Values.values) == [{"id": "a", "value": expected}]


@pytest.mark.parametrize(
    ("column_type", "value"),
    [
        ("text", 5), ("text", "\ud800"), ("smallint", 2**15), ("int", "5"), ("bigint", 2**63), ("boolean", 1), ("real", 1e300),
        ("double precision", "x"), ("numeric", "x"), ("numeric(4,2)", Decimal("99.995")), ("timestamptz", "2026-01-01"),
        ("timestamp", datetime(2026, 1, 1, tzinfo=UTC)), ("date", "2026-01-01"), ("uuid", "x"), ("bytea", "x"),
        ("jsonb", object()),
    ],
)  # fmt: skip
async def test_values_that_do_not_fit_are_refused(model: ReadModel, column_type: str, value: Any) -> None:
    class Values(Projection):
        values = Table("kept", columns={"id": "text", "value": column_type}, key="id")

        @on("Changed")
        def changed(self, event: Event, kept: TableWriter) -> None:
            kept.upsert(id=event.stream_id, value=value if event.data["do"] == "wrong" else None)

    owner = await run(model, Values())
    await owner.apply(change("right", id="a"), change("wrong", id="b"), change("right", id="c"))
    assert [each.stream_id for each in await model.admin.parked("values")] == ["Order-b"]
    assert [row["id"] for row in await model.rows(Values(), Values.values)] == ["Order-a", "Order-c"]


# Events that are set aside


POISON = {"do": "upsert", "row": {"id": "x", "nonsense": 1}}


async def facts(model: ReadModel, stream: str = "") -> list[tuple[str, int, str, int]]:
    return [(each.stream_id, each.position, each.state, each.tries) for each in await model.admin.parked("things", stream)]


async def test_a_poison_event_and_those_behind_it(model: ReadModel) -> None:
    owner = await run(model)
    await owner.apply(change("upsert", id="a"), POISON, change("upsert", id="x", name="behind"), change("upsert", id="b"))
    assert await rows(model) == [thing("a"), thing("b")]
    assert await facts(model) == [("Order-x", 2, "parked", 1), ("Order-x", 3, "waiting", 0)]
    parked, waiting = await owner.sink.parked_events(Things(), P0, "Order-x")
    assert (parked.position, parked.state, parked.partition, parked.event_type) == (2, "parked", P0, "Changed")
    assert parked.kept == owner._keep(owner.item(POISON))
    assert "nonsense" in parked.reason
    assert waiting.position == 3
    assert await owner.sink.parked_events(Things(), P1, "Order-x") == []
    heir = await run(model)
    assert heir.place == Place(2, 4, 4, 4)
    await heir.apply(change("upsert", id="x", name="still behind"), change("upsert", id="a", n=1))
    assert (await facts(model))[-1] == ("Order-x", 5, "waiting", 0)
    assert await rows(model) == [thing("a", n=1), thing("b")]
    (place,) = await model.admin.places("things")
    assert (place.partition, place.epoch, place.next_offset, place.events, place.parked) == (P0, 2, 6, 6, 3)
    shown = (await model.admin.parked("things", "Order-x"))[0]
    assert (shown.headers, shown.value, shown.asked) == (b"{}", parked.kept.value, None)
    assert abs(datetime.now(UTC) - shown.parked_at) < timedelta(minutes=1)
    assert len(await model.admin.parked("things", limit=2)) == 2
    assert await facts(model, "Order-a") == []


async def test_a_retry_in_vain_and_one_that_mends(model: ReadModel) -> None:
    owner = await run(model)
    await owner.apply(POISON, change("upsert", id="x", n=1), change("upsert", id="x", name="last"), change("upsert", id="y"))
    owner.mended = {1: POISON, 2: change("upsert", id="x", n=1), 3: change("upsert", id="x", name="last")}
    await owner.ask("retry", model.admin)
    assert await facts(model) == [("Order-x", 1, "parked", 2), ("Order-x", 2, "waiting", 0), ("Order-x", 3, "waiting", 0)]
    assert not any(each.asked for each in await model.admin.parked("things"))
    assert await rows(model) == [thing("y")]
    owner.mended[1] = change("upsert", id="x", name="mended")
    owner.mended[3] = POISON
    await owner.ask("retry", model.admin, "Order-x")
    assert await facts(model) == [("Order-x", 3, "parked", 1)]
    assert await rows(model) == [thing("x", name="mended", n=1), thing("y")]
    owner.mended[3] = change("upsert", id="x", name="last")
    await owner.ask("retry", model.admin)
    assert await facts(model) == []
    await owner.apply(change("upsert", id="x", n=2))
    assert await rows(model) == [thing("x", name="last", n=2), thing("y")]
    assert owner.place.next_offset == 5


async def test_one_is_discarded_or_all_are(model: ReadModel) -> None:
    owner = await run(model)
    for stream in "xyz":
        poison, behind = {**POISON, "stream": f"Order-{stream}"}, change("upsert", id=stream, name="behind")
        await owner.apply(poison, behind)
    owner.mended = {2: change("upsert", id="x", name="behind")}
    await owner.ask("discard", model.admin, "Order-x")
    await owner.ask("discard-all", model.admin, "Order-y")
    assert [each[0] for each in await facts(model)] == ["Order-z", "Order-z"]
    assert await rows(model) == [thing("x", name="behind")]
    with pytest.raises(SettingsError, match="no parked events of stream 'Order-x'"):
        await model.admin.ask("things", "retry", "Order-x")
    await owner.apply(change("upsert", id="y", n=1))
    assert await rows(model) == [thing("x", name="behind"), thing("y", n=1)]


async def test_what_is_asked_is_there_until_it_is_done(model: ReadModel) -> None:
    """Somebody asks while nobody runs; the next owner sees it."""
    owner = await run(model)
    await owner.apply(POISON, {**POISON, "stream": "Order-y"})
    assert await model.admin.ask("things", "retry") == ["Order-x", "Order-y"]
    assert {each.asked for each in await model.admin.parked("things")} == {"retry"}
    heir = await run(model)
    looked = await heir.sink.look(Things(), heir.engine.places)
    assert sorted((each.stream_id, each.what) for each in looked.asked) == [("Order-x", "retry"), ("Order-y", "retry")]
    heir.mended = {1: change("upsert", id="x"), 2: change("upsert", id="y")}
    await heir.engine.look_at_parked()
    assert (await heir.sink.look(Things(), heir.engine.places)).asked == []
    assert await rows(model) == [thing("x"), thing("y")]


async def test_what_is_skipped_is_kept_for_people(model: ReadModel) -> None:
    owner = await run(model, LenientThings())
    await owner.apply(POISON, change("upsert", id="x"))
    assert await facts(model) == [("Order-x", 1, "skipped", 1)]
    assert await rows(model) == [thing("x")]
    assert await owner.sink.parked_events(Things(), P0, "Order-x") == []
    assert (await model.admin.places("things"))[0].parked == 0
    with pytest.raises(SettingsError, match="no parked events"):
        await model.admin.ask("things", "retry")


async def test_an_older_owner_settles_nothing(model: ReadModel) -> None:
    older = await run(model)
    await older.apply(POISON)
    older.mended = {1: change("upsert", id="x")}
    await model.admin.ask("things", "retry")
    looked = await older.sink.look(Things(), older.engine.places)
    await run(model)
    with pytest.raises(Fenced):
        await older.engine._settle(looked.asked[0])
    assert await facts(model) == [("Order-x", 1, "parked", 1)]
    assert not await rows(model)


# What people ask


async def test_pause_and_resume(model: ReadModel) -> None:
    await model.admin.pause("things", True)
    owner = await run(model)
    assert await owner.engine.look_at_parked() is True
    assert (await model.admin.places("things"))[0].paused
    await model.admin.pause("things", False)
    assert await owner.engine.look_at_parked() is False


async def test_all_projections_are_listed(model: ReadModel) -> None:
    await Run(Things(), await model.sink()).start(P1, P0)
    await run(model, Largest())
    places = await model.admin.places()
    assert [(each.projection, each.partition) for each in places] == [("largest", P0), ("things", P0), ("things", P1)]
    assert all(0 <= each.idle_s < 60 for each in places)
    assert await model.admin.places("nobody") == []


class Others(Projection):
    others = Table("others", columns={"id": "text", "n": "bigint"}, key="id")

    @on("Changed")
    def changed(self, event: Event, others: TableWriter) -> None:
        others.upsert(id=event.data["row"]["id"], n=event.data["row"]["n"])


async def test_reset(model: ReadModel) -> None:
    owner = await Run(Things(), await model.sink()).start(P0, P1, topic_id="one")
    await owner.apply(*(change("upsert", id=f"{n}", name="x") for n in range(50)), POISON)
    other = await run(model, Others())
    await other.apply(change("", id="a", n=1))
    await model.admin.pause("things", True)
    assert await model.admin.reset(Things()) == 2
    assert not await rows(model)
    assert await facts(model) == []
    with pytest.raises(Fenced):
        await owner.apply(change("upsert", id="zombie"))
    with pytest.raises(Fenced):
        await owner.engine.look_at_parked()
    anew = await Run(Things(), await model.sink()).start(P0, P1, topic_id="two")
    assert anew.place == Place(3, 0, 0, 0)
    assert await anew.engine.look_at_parked() is True
    await anew.apply(change("upsert", id="x", name="again"))
    assert await rows(model) == [thing("x", name="again")]
    assert len(await model.rows(Others(), Others.others)) == 1
    await other.apply(change("", id="a", n=2))


# Any sequence of changes


_ROWS = st.fixed_dictionaries({"id": st.sampled_from(["a", "b", "c"]), "part": st.integers(1, 2)})
_NUMBERS = st.dictionaries(st.sampled_from(["n", "small"]), st.integers(-5, 5), min_size=1)
_VALUES: Any = st.fixed_dictionaries(
    {}, optional={"name": st.sampled_from(["x", "", None]), "n": st.sampled_from([2**62, 0, None]), "small": st.none(),
                  "about": st.sampled_from([{"k": 1}, [], None])}
)  # fmt: skip
_CHANGES: Any = st.one_of(
    st.tuples(st.sampled_from(["upsert", "upsert", "update", "insert"]), _ROWS, _VALUES),
    st.tuples(st.just("increment"), _ROWS, _NUMBERS),
    st.tuples(st.just("delete"), _ROWS, st.just({})),
    st.tuples(st.just("get"), _ROWS, st.just({})),
)
_BATCHES = st.lists(st.lists(_CHANGES, min_size=1, max_size=12), min_size=1, max_size=4)


def _histories(number: int) -> list[list[list[tuple[str, dict[str, Any], dict[str, Any]]]]]:
    drawn: list[Any] = []

    @settings(max_examples=number, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(_BATCHES)
    def draw(batches: Any) -> None:
        drawn.append(batches)

    draw()
    return drawn


async def test_any_sequence_of_changes_ends_in_the_rows_of_the_memory_read_model(model: ReadModel) -> None:
    """An insert of a row that is there is refused by both; what was before it in the batch is applied, and nothing behind."""
    for what in ("get", "increment", "insert"):
        need(model, what)
    for number, batches in enumerate(_histories(40)):

        class History(Things):
            name = f"history_{number}"
            poison = "halt"
            things = Table(f"things_{number}", columns=Things.things.columns, key=Things.things.key)

        memory, owner = MemoryReadModel(History()), await run(model, History())
        for batch in batches:
            items = [owner.item({"do": do, "row": {**key, **values}}) for do, key, values in batch]
            events = [item.event for item in items if item.event]
            try:
                memory.apply(*events)
            except ProjectionError:
                with suppress(ProjectionError):
                    for event in events:
                        memory.apply(event)
                with pytest.raises(ProjectionError):
                    await owner.apply_items(items)
                owner = await run(model, History())
            else:
                await owner.apply_items(items)
        assert await model.rows(History(), History.things) == memory.rows(History.things), batches
