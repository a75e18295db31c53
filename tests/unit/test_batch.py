from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventspine import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    AppendCondition,
    ConcurrencyError,
    Event,
    EventIdTaken,
    InvalidEvent,
    Query,
    QueryItem,
    StreamAppend,
    UnknownEventType,
)
from eventspine.schemas import Codec, PinnedType
from eventspine.store.batch import AppendRequest, Outcome, cut_batch, prepare, recorded
from eventspine.store.postgres.batch import arguments
from tests.event_types import EVENT_TYPES, paid, placed

NOW = "2026-01-02T03:04:05.000006Z"
CODEC = Codec()
CODEC.add(PinnedType(n, event_type) for n, event_type in enumerate(EVENT_TYPES, 1))


def request(stream_id: str = "Order-1", *events: Event, expected: Any = ANY, limit: int = 10_000) -> AppendRequest:
    append = StreamAppend(stream_id, stream_id.partition("-")[0], list(events) or [placed()], expected)
    return prepare(CODEC, [append], None, now=NOW, max_event_bytes=limit)


def drain(waiting: deque[AppendRequest], *, max_events: int, max_bytes: int) -> Iterator[list[AppendRequest]]:
    while batch := cut_batch(waiting, max_events=max_events, max_bytes=max_bytes):
        yield batch


# Few ids, so that requests often share one.
events = st.builds(placed, st.text("abc", max_size=20), event_id=st.integers(0, 12).map(lambda n: UUID(int=n)))
requests = st.tuples(
    st.sampled_from(["Order-1", "Order-2", "Invoice-1"]),
    st.lists(events, min_size=1, max_size=5, unique_by=lambda event: event.event_id),
    st.sampled_from([ANY, NO_STREAM, STREAM_EXISTS, 0, 1, 7]),
).map(lambda drawn: request(drawn[0], *drawn[1], expected=drawn[2]))


@given(st.lists(requests, max_size=20), st.integers(1, 10), st.integers(1, 2000))
def test_batches_lose_nothing_keep_the_order_and_stay_in_their_limits(
    queue: list[AppendRequest], max_events: int, max_bytes: int
) -> None:
    waiting = deque(queue)
    batches = list(drain(waiting, max_events=max_events, max_bytes=max_bytes))
    assert [each for batch in batches for each in batch] == queue
    assert not waiting
    for batch in batches:
        ids = [event_id for each in batch for event_id in each.ids]
        assert len(set(ids)) == len(ids)
        if len(batch) > 1:
            assert sum(each.events for each in batch) <= max_events
            assert sum(each.bytes for each in batch) <= max_bytes
    for batch, following in pairwise(batches):  # no batch ends without a reason
        first = following[0]
        assert (
            sum(each.events for each in [*batch, first]) > max_events
            or sum(each.bytes for each in [*batch, first]) > max_bytes
            or any(not each.ids.isdisjoint(first.ids) for each in batch)
        )


async def test_requests_whose_caller_has_gone_are_dropped() -> None:
    queue = [request(f"Order-{n}") for n in range(5)]
    for each in queue:
        each.done = asyncio.get_running_loop().create_future()
    for n in (0, 2, 4):
        queue[n].done.cancel()  # type: ignore[union-attr]
    assert cut_batch(deque(queue), max_events=10, max_bytes=10_000) == [queue[1], queue[3]]
    for each in queue:
        each.done.cancel()  # type: ignore[union-attr]
    assert cut_batch(deque(queue), max_events=10, max_bytes=10_000) == []


@given(st.lists(requests, min_size=1, max_size=10))
def test_arguments_describe_the_batch(batch: list[AppendRequest]) -> None:
    (
        stream_ids, part_expected, part_append, part_stream, part_events,
        item_append, item_after, item_tags, item_types, item_categories, item_correlations,
        kind_types, kind_versions, event_kind, ids, data, metadata, tags, payloads, link,
    ) = arguments(batch, hash_chain=True)  # fmt: skip
    count = range(1, len(batch) + 1)
    parts = [each.parts[0] for each in batch]
    assert len(set(stream_ids)) == len(stream_ids)
    assert part_append is None  # one part each
    assert [stream_ids[n - 1] for n in part_stream or count] == [part.stream_id for part in parts]
    codes = {ANY: -1, STREAM_EXISTS: -2, NO_STREAM: 0}
    assert part_expected == [codes.get(part.expected, part.expected) for part in parts]  # type: ignore[arg-type]
    assert (part_events or [1] * len(parts)) == [len(part.encoded) for part in parts]
    flat = [encoded for part in parts for encoded in part.encoded]
    assert [(kind_types[n - 1], kind_versions[n - 1]) for n in event_kind or [1] * len(flat)] == [
        (encoded.event_type, encoded.schema_version) for encoded in flat
    ]
    assert (ids, data, metadata, payloads) == (
        [each.event_id for each in flat], [each.json for each in flat],
        [each.metadata_json for each in flat], [each.payload for each in flat],
    )  # fmt: skip
    assert (item_append, item_after, item_tags, item_types, item_categories, item_correlations) == (None,) * 6
    assert (tags, link) == (None, True)


def test_arguments_of_several_parts_conditions_and_tags() -> None:
    condition = AppendCondition(Query(QueryItem(tags=["b", "a"]), QueryItem(event_types=['T"x\\'], correlation_id="c")), after=7)
    both = prepare(
        CODEC,
        [
            StreamAppend("Order-1", "Order", [placed(tags=("x", 'y"\\', "x"))], 0),
            StreamAppend("Order-2", "Order", [placed(), paid()], ANY),
        ],
        condition,
        now=NOW,
        max_event_bytes=10_000,
    )
    alone = request("Order-2", placed())
    drawn = arguments([both, alone], hash_chain=False)
    assert drawn[:5] == (["Order-1", "Order-2"], [0, -1, -1], [1, 1, 2], [1, 2, 2], [1, 2, 1])
    assert drawn[5:11] == ((1, 1), (7, 7), ['{"a","b"}', "{}"], ["{}", '{"T\\"x\\\\"}'], ["{}", "{}"], [None, "c"])
    assert drawn[11:14] == (["OrderPlaced", "OrderPaid"], [1, 1], [1, 1, 2, 1])
    assert drawn[17] == ['{"x","y\\"\\\\"}', None, None, None]
    assert drawn[19] is False


def test_a_batch_ends_before_a_condition_that_matches_it() -> None:
    def conditional(stream_id: str, tag: str, query: Query) -> AppendRequest:
        append = StreamAppend(stream_id, "Order", [placed(tags=(tag,))], ANY)
        return prepare(CODEC, [append], AppendCondition(query), now=NOW, max_event_bytes=10_000)

    a = conditional("Order-1", "a", Query(QueryItem(tags=["a"])))
    b = conditional("Order-2", "b", Query(QueryItem(tags=["b"])))
    again = conditional("Order-3", "c", Query(QueryItem(tags=["x"]), QueryItem(tags=["a"], event_types=["OrderPlaced"])))
    other_type = conditional("Order-4", "d", Query(QueryItem(tags=["a"], event_types=["OrderPaid"])))
    everything = conditional("Order-5", "e", Query())
    assert list(drain(deque([a, b, again]), max_events=10, max_bytes=10_000)) == [[a, b], [again]]
    assert list(drain(deque([a, b, other_type]), max_events=10, max_bytes=10_000)) == [[a, b, other_type]]
    assert list(drain(deque([everything, a, everything]), max_events=10, max_bytes=10_000)) == [[everything, a], [everything]]


def test_prepare_encodes_and_completes() -> None:
    event = placed("c", 5, correlation_id=UUID(int=1))
    each = request("Order-1", event)
    assert each.parts[0].encoded[0].payload == CODEC.encode("OrderPlaced", 0, event.data).payload
    [[copy]] = recorded(each, [Outcome("appended", 1, 2, None)])
    assert copy == Event(
        event_type="OrderPlaced",
        data={"customer_id": "c", "total_cents": 5, "note": None},
        metadata={"correlation_id": "00000000-0000-0000-0000-000000000001", "timestamp": NOW},
        event_id=event.event_id,
        stream_id="Order-1",
        schema_version=1,
        version=1,
        global_position=2,
    )


def test_events_may_name_their_stream() -> None:
    event = placed()
    named = Event(event_type=event.event_type, data=event.data, stream_id="Order-1")
    assert request("Order-1", named).parts[0].stream_id == "Order-1"
    with pytest.raises(InvalidEvent, match="the event names the stream 'Order-1' itself"):
        request("Order-2", named)


def test_the_limit_counts_encoded_data_and_metadata() -> None:
    [encoded] = request("Order-1", placed(note="x")).parts[0].encoded
    size = len(encoded.payload) + len(encoded.metadata_json)
    request("Order-1", placed(note="x"), limit=size)
    with pytest.raises(InvalidEvent, match=f"the event has {size} bytes"):
        request("Order-1", placed(note="x"), limit=size - 1)


@pytest.mark.parametrize("expected", [-1, -2, 2**63, True, False, 1.0, "1", None, "any version"])
def test_expected_versions_that_make_no_sense_are_refused(expected: Any) -> None:
    with pytest.raises(InvalidEvent, match=r"expected_version=.*give the stream's version"):
        request(expected=expected)


def test_an_unknown_type_says_where() -> None:
    with pytest.raises(UnknownEventType) as caught:
        request("Order-1", placed(), Event(event_type="OrderLost", data={}))
    assert (caught.value.stream_id, caught.value.event_type) == ("Order-1", "OrderLost")


def test_recorded_gives_each_event_its_places() -> None:
    each = request("Order-1", placed(), paid(), paid())
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    [copies] = recorded(each, [Outcome("appended", 5, 70, moment)])
    assert [(copy.version, copy.global_position, copy.created_at) for copy in copies] == [
        (5, 70, moment), (6, 71, moment), (7, 72, moment),
    ]  # fmt: skip
    assert [copy.event_id for copy in copies] == [encoded.event_id for encoded in each.parts[0].encoded]
    assert [copy.data for copy in copies] == [encoded.data for encoded in each.parts[0].encoded]


def test_recorded_raises_what_the_outcome_says() -> None:
    each = request("Order-1", expected=3)
    with pytest.raises(ConcurrencyError) as conflict:
        recorded(each, [Outcome("conflict", 5, None, None)])
    assert (conflict.value.stream_id, conflict.value.expected, conflict.value.actual) == ("Order-1", 3, 5)
    with pytest.raises(EventIdTaken) as taken:
        recorded(each, [Outcome("taken", None, None, None)])
    assert (taken.value.stream_id, taken.value.event_ids) == ("Order-1", [str(each.parts[0].encoded[0].event_id)])


def test_one_append_cannot_hold_an_id_twice() -> None:
    event_id = uuid4()
    with pytest.raises(InvalidEvent, match="two events of this append have the same event_id"):
        request("Order-1", placed(event_id=event_id), placed(event_id=event_id))
