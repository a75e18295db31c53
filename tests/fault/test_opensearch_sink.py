"""Connections break between the writes of a batch, owners change in its middle: each document gets each record once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventspine import Event, Fenced, MemoryReadModel, Projection, ProjectionError, Table, TableWriter, Unavailable, on
from eventspine.consumers.engine import Engine
from eventspine.consumers.log_consumer import LOG
from eventspine.consumers.opensearch_admin import OpenSearchProjectionAdmin
from eventspine.consumers.opensearch_client import SearchServer, open_opensearch
from eventspine.consumers.opensearch_sink import OpenSearchSink
from eventspine.consumers.parked import Kept, Parked
from eventspine.consumers.places import Item, Partition
from tests.fault.opensearch_proxy import OpenSearchProxy, Strike, opensearch_proxy
from tests.opensearch import OpenSearchService, rows_of, wipe

P0, P1 = Partition("events.Order", 0), Partition("events.Order", 1)
_MOMENTS: Final = ("before", "half", "unanswered")


class Things(Projection):
    """Does what its events say, to rows of their partition's, and adds to rows of everybody's."""

    things = Table("things", columns={"id": "text", "n": "bigint", "m": "bigint", "name": "text"}, key="id")
    broken = True

    @on("Changed")
    def changed(self, event: Event, things: TableWriter) -> None:
        if event.data.get("bad") and self.broken:
            raise ValueError("bad")
        for change, columns in event.data["changes"]:
            getattr(things, change)(**columns)


def record(
    partition: Partition, offset: int, position: int, changes: Sequence[Any], *, bad: bool = False, stream: str = ""
) -> Item:
    event = Event(
        event_type="Changed",
        data={"changes": changes, "bad": bad},
        stream_id=stream or f"Order-{position}",
        version=1,
        global_position=position,
    )
    return Item(partition, offset, position, 0, "Changed", event.stream_id, event, raw=event)


class Owner:
    """Owns partitions until something goes wrong; reads their records from memory, from where its place says."""

    def __init__(self, server: SearchServer, records: dict[Partition, list[Item]], projection: Projection) -> None:
        self.projection = projection
        self.sink = OpenSearchSink(server)
        self.engine = Engine(
            projection, self.sink, keep=lambda item: Kept(b"{}", b"key", item.stream_id.encode()), read=self._read
        )
        self._records = records

    async def start(self) -> Owner:
        await self.sink.prepare(self.projection)
        await self.engine.claim(dict.fromkeys(self._records, ""))
        return self

    async def step(self, size: int) -> bool:
        """Apply what follows, up to `size` records of each partition; False if there is nothing."""
        batch = [
            item
            for partition, records in self._records.items()
            for item in records[self.engine.reached[partition].next_offset :][:size]
        ]
        staged = self.engine.stage(batch)
        if staged is not None:
            await self.engine.write(staged)
        return staged is not None

    async def _read(self, rows: Sequence[Parked]) -> list[Item]:
        by_position = {item.position: item for records in self._records.values() for item in records}
        return [by_position[row.position]._replace(offset=0, raw=row) for row in rows]


@dataclass
class Story:
    """Records by partition, and what goes wrong on the way."""

    records: dict[Partition, list[Item]]
    sizes: list[int]
    strikes: list[Strike] = field(default_factory=list)


_numbers = st.integers(-3, 3)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    positions = itertools.count(1)
    records: dict[Partition, list[Item]] = {}
    for partition in (P0, P1):
        records[partition] = []
        for offset in range(draw(st.integers(2, 10))):
            changes: list[tuple[str, dict[str, Any]]] = []
            position = next(positions)
            for _ in range(draw(st.integers(1, 3))):
                change = draw(st.sampled_from(["upsert", "increment", "increment", "update", "delete", "insert", "shared"]))
                key = f"{partition.number}-{draw(st.sampled_from('abc'))}"
                if change == "shared":
                    changes.append(("increment", {"id": draw(st.sampled_from(["x", "y"])), "n": draw(_numbers)}))
                elif change == "insert":
                    changes.append(("insert", {"id": f"i{position}-{len(changes)}", "n": draw(_numbers)}))
                elif change == "delete":
                    changes.append(("delete", {"id": key}))
                else:
                    columns = {name: draw(_numbers) for name in draw(st.sampled_from([("n",), ("m",), ("n", "m")]))}
                    changes.append((change, {"id": key, **columns}))
            bad = draw(st.integers(0, 5)) == 0
            if bad:  # it is applied late: then only what does not depend on the order can be foretold
                changes = [("increment", {"id": draw(st.sampled_from(["x", "y", "z"])), "n": draw(_numbers)})]
            records[partition].append(record(partition, offset, position, changes, bad=bad))
    steps = st.builds(
        Strike,
        step=st.sampled_from(["begin", "documents", "documents", "documents", "park", "finish"]),
        moment=st.sampled_from(_MOMENTS),
        skip=st.integers(0, 3),
    )
    return Story(records, draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)), draw(st.lists(steps, max_size=5)))


def expected(records: dict[Partition, list[Item]]) -> list[dict[str, Any]]:
    """The rows by a fold in memory: what was bad comes last."""
    mended = Things()
    mended.broken = False
    model = MemoryReadModel(mended)
    events = [item.event for each in records.values() for item in each if item.event]
    model.apply(*[event for event in events if not event.data["bad"]], *[event for event in events if event.data["bad"]])
    return [{name: value for name, value in row.items() if value is not None} for row in model.rows("things")]


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(story=stories())
def test_whatever_breaks_each_record_is_applied_once(opensearch: OpenSearchService, story: Story) -> None:
    """Batches of any size, connections that break at any step, retries of what was parked: the rows are those of a fold."""
    asyncio.run(_tell(opensearch, story))


async def _tell(opensearch: OpenSearchService, story: Story) -> None:
    strikes = iter(story.strikes)
    projection = Things()
    async with (
        opensearch_proxy(opensearch.port or 0) as proxy,
        open_opensearch(opensearch.dsn) as direct,
        open_opensearch(proxy.dsn) as server,
    ):
        await wipe(direct)
        admin, sizes = OpenSearchProjectionAdmin(direct), itertools.cycle(story.sizes)
        proxy.strike = next(strikes, None)
        for mended in (False, True):
            projection.broken = not mended
            while True:
                try:
                    owner = await Owner(server, story.records, projection).start()
                    while await owner.step(next(sizes)):
                        pass
                    while mended and await admin.parked("things"):
                        await admin.ask("things", "retry")
                        await owner.engine.look_at_parked()
                    break
                except Unavailable:
                    proxy.strike = next(strikes, None)
        assert await rows_of(direct, "things") == expected(story.records)
        assert sum(place.events for place in await admin.places("things")) == sum(map(len, story.records.values()))


@pytest.fixture
async def direct(opensearch: OpenSearchService) -> AsyncIterator[SearchServer]:
    """Calls to an empty node."""
    async with open_opensearch(opensearch.dsn) as server:
        await wipe(server)
        yield server


@pytest.fixture
async def proxy(opensearch: OpenSearchService) -> AsyncIterator[OpenSearchProxy]:
    async with opensearch_proxy(opensearch.port or 0) as proxy:
        yield proxy


def _adding(partition: Partition, count: int, *, start: int = 1, key: str = "x") -> list[Item]:
    return [
        record(partition, offset, start + offset, [("increment", {"id": key, "n": 1}), ("insert", {"id": f"i{start + offset}"})])
        for offset in range(count)
    ]


@pytest.mark.parametrize("size", [1, 2, 9])
async def test_a_zombie_whose_documents_come_late(direct: SearchServer, proxy: OpenSearchProxy, size: int) -> None:
    """It began a batch, and sleeps with the documents in its hand; its heir writes the same batch, and goes on; it wakes up.

    To the heir, a row may be made and deleted in one batch, and never have been there; the zombie is about to make it.
    """
    records = {
        P0: [
            *_adding(P0, 3),
            record(P0, 3, 4, [("increment", {"id": "x", "n": 1}), ("upsert", {"id": "gone", "n": 1})]),
            record(P0, 4, 5, [("delete", {"id": "i2"}), ("delete", {"id": "gone"}), ("increment", {"id": "x", "n": 1})]),
        ]
    }
    async with open_opensearch(proxy.dsn) as server:
        zombie = await Owner(server, records, Things()).start()
        await zombie.step(1)
        proxy.strike = Strike("documents", holds=True)
        late = asyncio.create_task(zombie.step(3))
        await proxy.strike.held.wait()
        heir = await Owner(direct, records, Things()).start()
        assert heir.engine.places[P0].next_offset == 1
        while await heir.step(size):
            pass
        proxy.strike.released.set()
        with pytest.raises(Fenced):
            await late
    assert await rows_of(direct, "things") == [{"id": "i1"}, {"id": "i3"}, {"id": "x", "n": 5}]


async def test_a_zombie_that_comes_before_its_heir(direct: SearchServer, proxy: OpenSearchProxy) -> None:
    """Its documents arrive when the heir has claimed, and has not read them: the heir leaves out what they have seen."""
    records = {P0: _adding(P0, 4)}
    async with open_opensearch(proxy.dsn) as server:
        zombie = await Owner(server, records, Things()).start()
        proxy.strike = Strike("documents", holds=True)
        late = asyncio.create_task(zombie.step(3))
        await proxy.strike.held.wait()
        heir = await Owner(direct, records, Things()).start()
        proxy.strike.released.set()
        with pytest.raises(Fenced):
            await late
        while await heir.step(2):
            pass
    assert await rows_of(direct, "things") == [*({"id": f"i{each}"} for each in range(1, 5)), {"id": "x", "n": 4}]


async def test_what_was_set_aside_in_a_batch_that_broke_stays_so(direct: SearchServer, proxy: OpenSearchProxy) -> None:
    """The code is mended between the crash and the next owner: documents that passed the event by must get it by a retry."""
    bad = record(P0, 1, 2, [("increment", {"id": "x", "n": 10})], bad=True, stream="Order-bad")
    behind = record(P0, 2, 3, [("increment", {"id": "x", "n": 100})], stream="Order-bad")
    records = {P0: [*_adding(P0, 1), bad, behind, *(each._replace(offset=3) for each in _adding(P0, 1, start=4))]}
    async with open_opensearch(proxy.dsn) as server:
        first = await Owner(server, records, Things()).start()
        proxy.strike = Strike("documents", "unanswered")
        with pytest.raises(Unavailable):
            await first.step(9)
    mended = Things()
    mended.broken = False
    heir = await Owner(direct, records, mended).start()
    while await heir.step(9):
        pass
    admin = OpenSearchProjectionAdmin(direct)
    assert [(event.position, event.state) for event in await admin.parked("things")] == [(2, "parked"), (3, "waiting")]
    assert (await rows_of(direct, "things"))[-1] == {"id": "x", "n": 2}
    await admin.ask("things", "retry")
    await heir.engine.look_at_parked()
    assert (await rows_of(direct, "things"))[-1] == {"id": "x", "n": 112}


async def test_what_was_begun_can_not_be_set_aside(direct: SearchServer, proxy: OpenSearchProxy) -> None:
    """The code is broken between the crash and the next owner: documents may hold the event, so its stream can't be parked."""
    event = record(P0, 0, 1, [("increment", {"id": "x", "n": 1}), ("increment", {"id": "y", "n": 1})], bad=True)
    records, whole = {P0: [event]}, Things()
    whole.broken = False
    async with open_opensearch(proxy.dsn) as server:
        first = await Owner(server, records, whole).start()
        proxy.strike = Strike("documents", "half")
        with pytest.raises(Unavailable):
            await first.step(9)
    with pytest.raises(ProjectionError, match="was begun before"):
        await (await Owner(direct, records, Things()).start()).step(9)
    await (await Owner(direct, records, whole).start()).step(9)
    assert await rows_of(direct, "things") == [{"id": "x", "n": 1}, {"id": "y", "n": 1}]


@pytest.mark.parametrize("step", ["begin", "documents", "finish"])
@pytest.mark.parametrize("moment", _MOMENTS)
async def test_a_retry_that_breaks(direct: SearchServer, proxy: OpenSearchProxy, step: Any, moment: Any) -> None:
    """It comes to its end with the next owner, whatever is asked meanwhile; a discarded event stays so."""
    changes = [("increment", {"id": "x", "n": 1}), ("increment", {"id": "y", "n": 1})]
    records = {P0: [record(P0, each, each + 1, changes, bad=True, stream="Order-bad") for each in range(3)]}
    admin, projection = OpenSearchProjectionAdmin(direct), Things()
    first = await Owner(direct, records, projection).start()
    await first.step(9)
    projection.broken = False
    async with open_opensearch(proxy.dsn) as server:
        second = await Owner(server, records, projection).start()
        await admin.ask("things", "discard")
        proxy.strike = Strike(step, moment)
        with pytest.raises(Unavailable):
            await second.engine.look_at_parked()
    if moment != "before" and step == "documents":
        await admin.ask("things", "retry")
    third = await Owner(direct, records, projection).start()
    await third.engine.look_at_parked()
    assert await admin.parked("things") == []
    assert await rows_of(direct, "things") == [{"id": "x", "n": 2}, {"id": "y", "n": 2}]


async def test_from_the_middle_of_a_batch_of_the_log_on_from_kafka(direct: SearchServer, proxy: OpenSearchProxy) -> None:
    log = {LOG: _adding(LOG, 6)}
    kafka = {
        P0: [each._replace(partition=P0, offset=number) for number, each in enumerate(log[LOG][::2])],
        P1: [each._replace(partition=P1, offset=number) for number, each in enumerate(log[LOG][1::2])],
    }
    async with open_opensearch(proxy.dsn) as server:
        reader = await Owner(server, log, Things()).start()
        await reader.step(2)
        proxy.strike = Strike("documents", "half")
        with pytest.raises(Unavailable):
            await reader.step(4)
    owner = await Owner(direct, kafka, Things()).start()
    while await owner.step(1):
        pass
    assert await rows_of(direct, "things") == [*({"id": f"i{each}"} for each in range(1, 7)), {"id": "x", "n": 6}]
