"""A projection's rows as documents of a real OpenSearch node: what is parked, retried, shared, deleted, begun anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from eventspine import Event, Fenced, IntegrityError, Projection, ProjectionError, SettingsError, Sql, Table, TableWriter, on
from eventspine.consumers.engine import Engine
from eventspine.consumers.log_consumer import LOG
from eventspine.consumers.opensearch_admin import OpenSearchProjectionAdmin
from eventspine.consumers.opensearch_client import SearchServer, open_opensearch
from eventspine.consumers.opensearch_sink import OpenSearchSink
from eventspine.consumers.parked import Kept, Parked
from eventspine.consumers.places import Item, Partition
from tests.opensearch import OpenSearchService, rows_of, wipe

P0, P1 = Partition("events.Order", 0), Partition("events.Order", 1)
HUGE = 10**6


class Sums(Projection):
    """Its column takes small numbers only."""

    name = "sums"
    table = Table("sums", columns={"id": "text", "n": "smallint"}, key="id")
    rows = Table("sum_rows", columns={"position": "bigint", "n": "bigint"}, key="position")

    @on("Added")
    def added(self, event: Event, sums: TableWriter, rows: TableWriter) -> None:
        sums.increment(id=event.data.get("to", event.stream_id), n=event.data["n"])
        rows.insert(position=event.data.get("row", event.global_position), n=1)

    @on("Removed")
    def removed(self, event: Event, sums: TableWriter, rows: TableWriter) -> None:
        sums.delete(id=event.stream_id)


class LenientSums(Sums):
    name = "sums"
    poison = "skip"


class HaltingSums(Sums):
    name = "sums"
    poison = "halt"


def item(position: int, stream: str, n: object, *, partition: Partition = P0, event_type: str = "Added", **data: object) -> Item:
    event = Event(event_type=event_type, data={"n": n, **data}, stream_id=stream, version=1, global_position=position)
    return Item(partition, position - 1, position, 0, event_type, stream, event, raw=event)


class Bench:
    """An engine on some partitions, whose records are kept in memory."""

    def __init__(self, server: SearchServer, projection: Projection) -> None:
        self.mended: dict[int, object] = {}
        self.server = server
        self.sink = OpenSearchSink(server)
        self.admin = OpenSearchProjectionAdmin(server)
        self.projection = projection
        self.engine = Engine(
            projection, self.sink, keep=lambda item: Kept(b"{}", b"key", str(item.event).encode()), read=self.read
        )
        self.seen: dict[int, Item] = {}

    async def start(self, *partitions: Partition) -> Bench:
        await self.sink.prepare(self.projection)
        await self.engine.claim(dict.fromkeys(partitions or (P0,), ""))
        return self

    async def read(self, rows: Sequence[Parked]) -> list[Item]:
        items = [self.seen[row.position]._replace(raw=row, offset=0) for row in rows]
        mended = [
            (each, {**each.event.data, "n": self.mended.get(each.position, each.event.data["n"])}) for each in items if each.event
        ]
        return [each._replace(event=Event(**_facts(each.event), data=data)) for each, data in mended]

    async def apply(self, *items: Item) -> None:
        self.seen |= {each.position: each for each in items}
        staged = self.engine.stage(items)
        if staged is not None:
            await self.engine.write(staged)

    async def sums(self) -> dict[str, int]:
        return {row["id"]: row["n"] for row in await rows_of(self.server, "sums")}

    async def parked(self) -> list[tuple[int, str, int]]:
        events = await self.admin.parked(self.projection.name)
        return sorted((event.position, event.state, event.tries) for event in events)

    async def ask(self, stream: str, what: str) -> None:
        await self.admin.ask(self.projection.name, what, stream)
        await self.engine.look_at_parked()


def _facts(event: Event | None) -> dict[str, Any]:
    assert event is not None
    return {
        "event_type": event.event_type,
        "stream_id": event.stream_id,
        "version": event.version,
        "global_position": event.global_position,
    }


@pytest.fixture
async def server(opensearch: OpenSearchService) -> AsyncIterator[SearchServer]:
    """Calls to an empty node."""
    async with open_opensearch(opensearch.dsn) as server:
        await wipe(server)
        yield server


async def test_what_does_not_fit_is_found_and_its_stream_parked(server: SearchServer) -> None:
    bench = await Bench(server, Sums()).start()
    clean = [item(position, f"Order-{position % 7}", 1) for position in range(1, 40)]
    clean[10], clean[20] = item(11, "Order-x", HUGE), item(21, "Order-x", 1)
    clean[30] = item(31, "Order-y", "a text")
    await bench.apply(*clean)
    assert await bench.parked() == [(11, "parked", 1), (21, "waiting", 0), (31, "parked", 1)]
    assert sum((await bench.sums()).values()) == 36
    assert len(await rows_of(server, "sum_rows")) == 36
    await bench.apply(item(40, "Order-x", 1), item(41, "Order-1", 1))
    assert (await bench.parked())[-1] == (40, "waiting", 0)
    place = bench.engine.places[P0]
    assert (place.next_offset, place.last_position, place.events) == (41, 41, 41)
    (told,) = await bench.admin.places("sums")
    assert (told.partition, told.next_offset, told.events, told.parked, told.paused) == (P0, 41, 41, 4, False)


async def test_retry_in_vain_and_retry_that_mends(server: SearchServer) -> None:
    bench = await Bench(server, Sums()).start()
    await bench.apply(item(1, "Order-x", 1), item(2, "Order-x", HUGE), item(3, "Order-x", 2), item(4, "Order-x", 3))
    await bench.ask("Order-x", "retry")
    assert await bench.parked() == [(2, "parked", 2), (3, "waiting", 0), (4, "waiting", 0)]
    assert await bench.sums() == {"Order-x": 1}
    bench.mended[2] = 5
    bench.mended[4] = HUGE
    await bench.ask("Order-x", "retry")
    assert await bench.parked() == [(4, "parked", 1)]
    assert await bench.sums() == {"Order-x": 8}
    bench.mended.clear()
    await bench.ask("Order-x", "retry")
    assert await bench.parked() == []
    await bench.apply(item(5, "Order-x", 1))
    assert await bench.sums() == {"Order-x": 12}


async def test_retry_reaches_a_row_that_later_events_have_changed(server: SearchServer) -> None:
    bench = await Bench(server, Sums()).start()
    await bench.apply(item(1, "Order-x", HUGE, to="all"), item(2, "Order-y", 10, to="all"))
    await bench.apply(item(3, "Order-z", 100, to="all"))
    bench.mended[1] = 1
    await bench.ask("Order-x", "retry")
    assert await bench.sums() == {"all": 111}
    assert await bench.parked() == []


async def test_discard_one_or_all(server: SearchServer) -> None:
    bench = await Bench(server, Sums()).start()
    for stream in ("Order-x", "Order-y"):
        start = 1 if stream == "Order-x" else 4
        await bench.apply(item(start, stream, HUGE), item(start + 1, stream, 2), item(start + 2, stream, 3))
    await bench.ask("Order-x", "discard")
    await bench.ask("Order-y", "discard-all")
    assert await bench.parked() == []
    assert await bench.sums() == {"Order-x": 5}
    await bench.apply(item(7, "Order-y", 1))
    assert await bench.sums() == {"Order-x": 5, "Order-y": 1}
    with pytest.raises(SettingsError, match="no parked events"):
        await bench.admin.ask("sums", "retry")


async def test_another_owner_knows_what_is_parked(server: SearchServer) -> None:
    first = await Bench(server, Sums()).start()
    await first.apply(item(1, "Order-x", HUGE))
    second = await Bench(server, Sums()).start()
    await second.apply(item(2, "Order-x", 1))
    assert await second.parked() == [(1, "parked", 1), (2, "waiting", 0)]
    with pytest.raises(Fenced):
        await first.apply(item(2, "Order-x", 1))
    with pytest.raises(Fenced):
        await first.engine.look_at_parked()


async def test_skip_keeps_what_it_skipped_for_people(server: SearchServer) -> None:
    bench = await Bench(server, LenientSums()).start()
    await bench.apply(item(1, "Order-x", HUGE), item(2, "Order-x", 2))
    assert await bench.parked() == [(1, "skipped", 1)]
    assert await bench.sums() == {"Order-x": 2}


async def test_what_was_parked_is_retried_under_a_policy_that_skips(server: SearchServer) -> None:
    parking = await Bench(server, Sums()).start()
    await parking.apply(item(1, "Order-x", HUGE), item(2, "Order-x", 2), item(3, "Order-x", HUGE), item(4, "Order-x", 4))
    skipping = await Bench(server, LenientSums()).start()
    skipping.seen = parking.seen
    await skipping.ask("Order-x", "retry")
    assert await skipping.parked() == [(1, "skipped", 2), (3, "skipped", 1)]
    assert await skipping.sums() == {"Order-x": 6}


async def test_halt_writes_nothing_behind(server: SearchServer) -> None:
    bench = await Bench(server, HaltingSums()).start()
    with pytest.raises(ProjectionError, match=r"global position 2.*does not fit"):
        await bench.apply(item(1, "Order-x", 1), item(2, "Order-x", HUGE), item(3, "Order-y", 2))
    again = await Bench(server, Sums()).start()
    assert again.engine.places[P0].next_offset == 1


async def test_a_row_that_is_there_is_not_inserted(server: SearchServer) -> None:
    bench = await Bench(server, Sums()).start()
    await bench.apply(item(1, "Order-x", 1))
    await bench.apply(item(2, "Order-y", 1, row=1))
    assert await bench.parked() == [(2, "parked", 1)]
    assert await bench.sums() == {"Order-x": 1}


async def test_a_row_that_several_owners_change_at_once(server: SearchServer) -> None:
    """Each partition's owner adds to one row, at the same time: each increment counts once."""
    owners = [await Bench(server, Sums()).start(Partition("events.Order", number)) for number in range(4)]

    async def own(number: int) -> None:
        for turn in range(8):
            position = turn * 4 + number + 1
            one = item(position, f"Order-{number}", 1, partition=Partition("events.Order", number), to="all")
            await owners[number].apply(one)

    await asyncio.gather(*map(own, range(4)))
    assert await owners[0].sums() == {"all": 32}


async def test_deleted_rows_are_not_found_and_come_again(server: SearchServer) -> None:
    bench = await Bench(server, Sums()).start()
    await bench.apply(item(1, "Order-x", 1), item(2, "Order-y", 2))
    await bench.apply(item(3, "Order-x", 0, event_type="Removed"), item(4, "Order-z", 0, event_type="Removed"))
    assert await bench.sums() == {"Order-y": 2}
    assert (await server.call("POST", "/sums/_count"))["count"] == 1
    await bench.apply(item(5, "Order-x", 7))
    assert await bench.sums() == {"Order-x": 7, "Order-y": 2}


async def test_begin_anew_while_an_old_owner_still_writes(server: SearchServer) -> None:
    bench = await Bench(server, Sums()).start(P0, P1)
    await bench.apply(item(1, "Order-x", 1), item(2, "Order-y", HUGE), item(3, "Order-z", 1, partition=P1))
    assert await bench.admin.reset(Sums()) == 2
    assert (await bench.sums(), await bench.parked()) == ({}, [])
    assert [(place.epoch, place.next_offset, place.events) for place in await bench.admin.places("sums")] == [(2, 0, 0)] * 2
    with pytest.raises(Fenced):
        await bench.apply(item(4, "Order-x", 1))
    with pytest.raises(Fenced):
        await bench.engine.look_at_parked()
    fresh = await Bench(server, Sums()).start()
    await fresh.apply(item(1, "Order-x", 1))
    assert await fresh.sums() == {"Order-x": 1}
    assert "sums-1" not in await server.call("GET", "/_all")


async def test_pause_and_topics_made_anew(server: SearchServer) -> None:
    bench = await Bench(server, Sums()).start()
    await bench.admin.pause("sums", True)
    assert await bench.engine.look_at_parked() is True
    await bench.admin.pause("sums", False)
    assert await bench.engine.look_at_parked() is False
    with pytest.raises(IntegrityError, match="made anew"):
        await bench.engine.claim({P0: "another id"})


async def test_sources_are_not_mixed(server: SearchServer) -> None:
    bench = await Bench(server, Sums()).start(LOG)
    await bench.apply(item(1, "Order-x", 1, partition=LOG), item(2, "Order-y", HUGE, partition=LOG))
    with pytest.raises(ProjectionError, match="has parked events from there"):
        await Bench(server, Sums()).start()
    await bench.ask("Order-y", "discard")
    kafka = await Bench(server, Sums()).start()
    assert kafka.engine.places[P0].built_to == 2
    await kafka.apply(*(item(position, f"Order-{position}", 1) for position in range(1, 5)))
    assert await kafka.sums() == {"Order-x": 1, "Order-3": 1, "Order-4": 1}
    with pytest.raises(Fenced):
        await bench.apply(item(3, "Order-x", 1, partition=LOG))
    with pytest.raises(ProjectionError, match="gone on from Kafka"):
        await Bench(server, Sums()).start(LOG)


_TYPES = {
    "key": "text",
    "at": "timestamptz",
    "local": "timestamp",
    "day": "date",
    "price": "numeric(10,2)",
    "weight": "numeric",
    "ratio": "double precision",
    "small": "real",
    "yes": "boolean",
    "who": "uuid",
    "about": "jsonb",
    "raw": "bytea",
    "count": "integer",
}


class Papers(Projection):
    table = Table("papers", columns=_TYPES, key=("key", "count"))

    @on("Written")
    def written(self, event: Event, papers: TableWriter) -> None:
        papers.upsert(**event.data["set"])
        if event.data.get("add"):
            papers.increment(**event.data["add"])


def written(position: int, add: object = None, **columns: object) -> Item:
    key = {"key": "k" * 3000, "count": 1}
    data = {"set": key | columns, "add": add and key | dict(add)}  # type: ignore[call-overload]
    event = Event(event_type="Written", data=data, stream_id=f"Order-{position}", version=1, global_position=position)
    return Item(P0, position - 1, position, 0, "Written", event.stream_id, event, raw=event)


async def test_values_of_every_type_and_what_does_not_fit(server: SearchServer) -> None:
    bench = await Bench(server, Papers()).start()
    nested: Any = {"deep": 1}
    for _ in range(60):
        nested = [nested]
    fits: dict[str, object] = {
        "at": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "local": datetime.min,  # noqa: DTZ901 - its column has no time zone
        "day": date.max,
        "price": Decimal("12.345"),
        "weight": Decimal("1E+3"),
        "ratio": 1e300,
        "small": 0.5,
        "yes": True,
        "who": UUID(int=7),
        "about": {"": nested, "a.b": [1 << 70, None, "é"]},
        "raw": b"\0\1",
    }
    await bench.apply(written(1, **fits, add={"price": Decimal("0.10"), "weight": 1, "ratio": 1}))
    await bench.apply(written(2, about=[1], add={"price": 1}), written(3, about="scalar", raw=None))
    assert await rows_of(server, "papers") == [
        {
            "key": "k" * 3000,
            "count": 1,
            "at": "2026-01-02T03:04:05.678901+00:00",
            "local": "0001-01-01T00:00:00",
            "day": "9999-12-31",
            "price": "13.45",
            "weight": "1001",
            "ratio": 1e300,
            "small": 0.5,
            "yes": True,
            "who": str(UUID(int=7)),
            "about": "scalar",
        }
    ]
    too_deep: Any = 1
    for _ in range(200):
        too_deep = [too_deep]
    misfits: list[dict[str, object]] = [
        {"at": datetime(2026, 1, 1)},  # noqa: DTZ001 - that is what does not fit
        {"local": datetime(2026, 1, 1, tzinfo=UTC)},
        {"day": "2026-01-01"},
        {"price": Decimal("123456789.00")},
        {"price": Decimal("NaN")},
        {"weight": "1"},
        {"ratio": float("inf")},
        {"small": 1e39},
        {"yes": 1},
        {"who": "nobody"},
        {"about": too_deep},
        {"raw": 5},
        {"key": "\ud800"},
        {"key": "x" * 5_000_001},
    ]
    await bench.apply(*(written(position, **misfit) for position, misfit in enumerate(misfits, 4)))
    assert [position for position, _, _ in await bench.parked()] == list(range(4, 4 + len(misfits)))


@pytest.mark.parametrize(
    ("columns", "said"),
    [({"id": "text", "span": "interval"}, "no type for"), ({"id": "jsonb"}, "in the key"), ({"id": "text", "n": "int(4)"}, "")],
)
async def test_declarations_that_have_no_counterpart(server: SearchServer, columns: dict[str, str], said: str) -> None:
    projection = type("Odd", (Projection,), {"table": Table("odd", columns=columns, key="id")})()
    if said:
        with pytest.raises(ProjectionError, match=said):
            await OpenSearchSink(server).prepare(projection)
    else:
        await OpenSearchSink(server).prepare(projection)


async def test_indices_that_are_not_as_declared(server: SearchServer) -> None:
    sink = OpenSearchSink(server)
    await sink.prepare(Sums())
    await sink.prepare(Sums())

    class Wider(Projection):
        name = "sums"
        table = Table("sums", columns={"id": "text", "n": "bigint"}, key="id")

    class Thief(Projection):
        table = Table("sums", columns={"id": "text", "n": "smallint"}, key="id")

    with pytest.raises(ProjectionError, match=r"another mapping.*in n"):
        await sink.prepare(Wider())
    with pytest.raises(ProjectionError, match="belongs to sums"):
        await sink.prepare(Thief())
    words = {"properties": {"id": {"type": "keyword", "ignore_above": 8191, "fields": {"words": {"type": "text"}}}}}
    await server.call("PUT", "/sums-1/_mapping", words)
    await sink.prepare(Sums())
    await OpenSearchProjectionAdmin(server).reset(Wider())
    await sink.prepare(Wider())
    await server.call("PUT", "/sums-2/_settings", {"index.translog.durability": "async"})
    with pytest.raises(ProjectionError, match="durability"):
        await sink.prepare(Wider())
    await server.call("PUT", "/taken")
    with pytest.raises(ProjectionError, match="no projection made"):
        await sink.prepare(type("Taken", (Projection,), {"table": Table("taken", columns={"id": "text"}, key="id")})())


async def test_reading_handlers_and_sql_are_refused(server: SearchServer) -> None:
    class Reading(Sums):
        name = "sums"

        @on("Added")
        def added(self, event: Event, sums: TableWriter, rows: TableWriter) -> None:
            sums.delete(id=event.stream_id)
            sums.get(id=event.stream_id)  # known without a look: the batch itself deleted it

    class WithSql(Sums):
        name = "sums"
        sql = Sql()

    bench = await Bench(server, Reading()).start()
    with pytest.raises(ProjectionError, match="reads rows with get"):
        await bench.apply(item(1, "Order-x", 1))
    with pytest.raises(ProjectionError, match="SQL of its own"):
        await OpenSearchSink(server).prepare(WithSql())


async def test_a_node_that_takes_no_writes_for_a_while(server: SearchServer) -> None:
    """As when its disk is full: what it does not take is tried again."""
    bench = await Bench(server, Sums()).start()
    await server.call("PUT", "/sums-1/_settings", {"index.blocks.write": True})
    writing = asyncio.create_task(bench.apply(item(1, "Order-x", 1)))
    done, _ = await asyncio.wait([writing], timeout=1)
    assert not done
    await server.call("PUT", "/sums-1/_settings", {"index.blocks.write": False})
    await writing
    assert await bench.sums() == {"Order-x": 1}


@pytest.mark.parametrize(
    "dsn",
    [
        "opensearch://",
        "opensearch+http://127.0.0.1:9200",
        "opensearch://127.0.0.1:9200/index",
        "opensearch://127.0.0.1:port",
        "opensearch://127.0.0.1:9200?tls=yes",
        "opensearch+https://127.0.0.1:9200?ca_file=/nowhere.pem",
    ],
)
async def test_dsns_that_make_no_sense(dsn: str) -> None:
    with pytest.raises(SettingsError, match=r"opensearch://|no file|read_model_dsn"):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(open_opensearch(dsn))
