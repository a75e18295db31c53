"""What goes into a transaction of DynamoDB, and what its failure means."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventspine import ANY, NO_STREAM, STREAM_EXISTS, AppendCondition, Event, InvalidEvent, Query, SettingsError
from eventspine.store.batch import AppendRequest
from eventspine.store.dynamodb.layout import LogHead, places_of
from eventspine.store.dynamodb.table import MAX_TRANSACTION_ITEMS, Reason, parse_dsn
from eventspine.store.dynamodb.writing import MAX_EVENTS, blamed, check_size, decide, plan, take
from tests.event_types import paid, placed
from tests.unit.test_batch import request

_NOW = datetime(2026, 1, 2, tzinfo=UTC)
_EMPTY = LogHead(0, None)


def taken(*requests: AppendRequest) -> list[list[str]]:
    """Return the streams of each transaction that is taken from a queue."""
    waiting = deque(requests)
    batches = []
    while batch := take(waiting):
        batches.append([request.parts[0].stream_id for request in batch])
    return batches


def test_a_stream_is_written_once_in_a_transaction_and_keeps_its_order() -> None:
    first, second = request("Order-1", paid(1)), request("Order-1", paid(2))
    waiting = deque([first, second, request("Order-2")])
    assert [each.parts[0].stream_id for each in take(waiting)] == ["Order-1", "Order-2"]
    assert take(waiting) == [second]


def test_a_condition_goes_alone() -> None:
    conditional = AppendRequest(request("Order-2").parts, AppendCondition(Query()))
    assert taken(request("Order-1"), conditional, request("Order-3")) == [["Order-1"], ["Order-2"], ["Order-3"]]
    assert taken(conditional, request("Order-3")) == [["Order-2"], ["Order-3"]]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, MAX_EVENTS)), max_size=20))
def test_every_request_is_taken_once_within_the_limit(sizes: list[tuple[int, int]]) -> None:
    requests = [request(f"Order-{stream}", *[paid(n) for _ in range(count)]) for n, (stream, count) in enumerate(sizes)]
    waiting, seen = deque(requests), []
    while batch := take(waiting):
        planned = plan(batch, _EMPTY, {f"Order-{n}": 0 for n in range(6)}, now=_NOW)
        assert len(planned.operations) == len(planned.owners) <= MAX_TRANSACTION_ITEMS
        seen += batch
    assert sorted(map(id, seen)) == sorted(map(id, requests))
    for stream in range(6):
        name = f"Order-{stream}"
        mine = [each for each in seen if each.parts[0].stream_id == name]
        assert mine == [each for each in requests if each.parts[0].stream_id == name]


def test_positions_and_versions_follow_what_is_there() -> None:
    batch = [request("Order-1", paid(1), paid(2), expected=7), request("Order-2", expected=NO_STREAM), request("Order-3", paid())]
    planned = plan(batch, LogHead(10, _NOW + timedelta(hours=1)), {"Order-3": 4}, now=_NOW)
    assert [[(each.version, each.position) for each in outcomes] for outcomes in planned.outcomes] == [
        [(8, 11)],
        [(1, 13)],
        [(5, 14)],
    ]
    assert planned.head == LogHead(14, _NOW + timedelta(hours=1)), "times never fall"
    note = planned.operations[1]["Put"]["Item"]
    parts = [each["S"] for each in note["parts"]["L"]]
    assert list(places_of(11, parts)) == [(11, "Order-1", 8), (12, "Order-1", 9), (13, "Order-2", 1), (14, "Order-3", 5)]
    assert planned.owners == [-1, -1, *[0] * 5, *[1] * 3, *[2] * 3]


def test_what_no_transaction_holds_is_refused() -> None:
    check_size(request("Order-1", *[paid(n) for n in range(MAX_EVENTS)]))
    with pytest.raises(InvalidEvent, match="holds 48 events of one stream"):
        check_size(request("Order-1", *[paid(n) for n in range(MAX_EVENTS + 1)]))
    large = [Event(event_type="OrderPlaced", data={"customer_id": "x" * 350_000, "total_cents": 1}) for _ in range(12)]
    with pytest.raises(InvalidEvent, match="bytes; a transaction of DynamoDB holds"):
        check_size(request("Order-1", *large, limit=400_000))


def test_who_is_to_blame() -> None:
    fine, failed = Reason("None", None), Reason("ConditionalCheckFailed", {"position": 12, "created_at": _NOW.isoformat()})
    assert blamed([-1, -1, 0, 1], [failed, fine, fine, fine]) == (set(), LogHead(12, _NOW))
    assert blamed([-1, -1, 0, 1], [fine, fine, fine, failed]) == ({1}, None)
    assert blamed([-1, -1, 0, 1], [Reason("TransactionConflict", None), fine, fine, fine]) == (set(), None)


_ID, _OTHER = UUID(int=1), UUID(int=2)


def item(event_id: UUID, version: int, position: int, stream_id: str = "Order-1") -> tuple[UUID, dict[str, Any]]:
    place = {"stream_id": stream_id, "version": version, "position": position, "created_at": _NOW}
    return event_id, place


@pytest.mark.parametrize(
    ("expected", "current", "recorded", "outcome"),
    [
        (0, 0, [], None),
        (ANY, 3, [], None),
        (STREAM_EXISTS, 1, [], None),
        (STREAM_EXISTS, 0, [], "conflict"),
        (2, 3, [], "conflict"),
        (NO_STREAM, 3, [], "conflict"),
        (0, 2, [item(_ID, 1, 5), item(_OTHER, 2, 6)], "duplicate"),
        (ANY, 9, [item(_ID, 4, 5), item(_OTHER, 5, 6)], "duplicate"),
        (3, 9, [item(_ID, 4, 5), item(_OTHER, 5, 6)], "duplicate"),
        (9, 9, [item(_ID, 4, 5), item(_OTHER, 5, 6)], "taken"),
        (ANY, 9, [item(_ID, 4, 5), item(_OTHER, 6, 7)], "taken"),
        (ANY, 9, [item(_ID, 4, 5), item(_OTHER, 5, 9)], "taken"),
        (ANY, 9, [item(_ID, 4, 5)], "taken"),
        (ANY, 9, [item(_ID, 4, 5, "Order-2"), item(_OTHER, 5, 6, "Order-2")], "taken"),
    ],
)
def test_what_is_recorded_decides(expected: Any, current: int, recorded: list[Any], outcome: str | None) -> None:
    asked = request("Order-1", placed(event_id=_ID), placed(event_id=_OTHER), expected=expected)
    outcomes = decide(asked, {"Order-1": current}, dict(recorded), lambda item, each: True)
    assert (outcomes and outcomes[0].outcome) == outcome
    if outcome == "duplicate":
        assert decide(asked, {"Order-1": current}, dict(recorded), lambda item, each: False) != outcomes


@pytest.mark.parametrize("dsn", ["dynamodb://", "dynamodb://a", "dynamodb://events/x", "dynamodb://events?zone=x", "events"])
def test_addresses_that_name_no_table(dsn: str) -> None:
    with pytest.raises(SettingsError, match="names no DynamoDB table"):
        parse_dsn(dsn)
