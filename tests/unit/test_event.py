from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventspine import Event, InvalidEvent
from eventspine.schemas import category_of
from eventspine.schemas.event import check_stream_id, normalise_metadata, rfc3339

NOW = "2026-01-02T03:04:05.000006Z"


def test_an_event_is_frozen() -> None:
    event = Event(event_type="OrderPaid", data={})
    with pytest.raises(AttributeError):
        event.version = 1  # type: ignore[misc]


def test_new_events_have_rising_uuid7_ids_and_no_places() -> None:
    events = [Event(event_type="OrderPaid", data={}) for _ in range(100)]
    assert {event.event_id.version for event in events} == {7}
    assert len({event.event_id for event in events}) == 100
    first = events[0]
    assert (first.stream_id, first.schema_version, first.version, first.global_position, first.created_at) == (
        "",
        0,
        0,
        0,
        None,
    )
    assert first.metadata == {}
    assert first.metadata is not events[1].metadata


def test_the_envelope_is_read_from_metadata() -> None:
    metadata = {"correlation_id": "c", "causation_id": "d", "user_id": "u", "timestamp": NOW}
    event = Event(event_type="OrderPaid", data={}, metadata=metadata, stream_id="Order-1-2")
    assert (event.correlation_id, event.causation_id, event.user_id) == ("c", "d", "u")
    assert event.timestamp == datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    assert event.category == "Order"
    empty = Event(event_type="OrderPaid", data={})
    assert (empty.correlation_id, empty.causation_id, empty.user_id, empty.timestamp) == (None, None, None, None)


def test_the_category_ends_at_the_first_hyphen() -> None:
    assert category_of("Order-abc-def") == "Order"
    assert category_of("shop.Order-1") == "shop.Order"


@pytest.mark.parametrize("stream_id", ["Order-1", "Order-a b/ü-1", "_a.B9-x", "Order--", "O-" + "x" * 398, "Order-🙂"])
def test_good_stream_ids_pass(stream_id: str) -> None:
    check_stream_id(stream_id, category_of(stream_id))


@pytest.mark.parametrize(
    ("stream_id", "stream_type", "says"),
    [
        ("Order", "Order", "{Type}-{id}"),
        ("", "", "{Type}-{id}"),
        ("-1", "", "{Type}-{id}"),
        ("Order-", "Order", "{Type}-{id}"),
        ("9Order-1", "9Order", "{Type}-{id}"),
        ("Or/der-1", "Or/der", "{Type}-{id}"),
        ("Ördér-1", "Ördér", "{Type}-{id}"),
        ("Order-1\n", "Order", "{Type}-{id}"),
        ("Order-\0", "Order", "{Type}-{id}"),
        ("Order-1", "Invoice", "stream_type='Invoice'"),
        ("Order-1", "", "stream_type=''"),
        ("Order-1", None, "stream_type=None"),
        ("O-" + "x" * 399, "O", "401 characters"),
        ("Order-\ud800", "Order", "Unicode"),
        (None, "Order", "{Type}-{id}"),
        (b"Order-1", "Order", "{Type}-{id}"),
    ],
)
def test_bad_stream_ids_are_refused(stream_id: Any, stream_type: Any, says: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        check_stream_id(stream_id, stream_type)
    assert says in str(caught.value)


def test_metadata_keeps_the_users_values_and_completes_the_envelope() -> None:
    given_ = {"correlation_id": UUID(int=1), "causation_id": "x", "user_id": None, "tenant": {"a": [1]}}
    assert normalise_metadata(given_, now=NOW) == {
        "correlation_id": "00000000-0000-0000-0000-000000000001",
        "causation_id": "x",
        "tenant": {"a": [1]},
        "timestamp": NOW,
    }
    assert given_["correlation_id"] == UUID(int=1)  # the caller's mapping stays as it was


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 1, 2, 5, 4, 5, 6, timezone(timedelta(hours=2))),
        "2026-01-02T05:04:05.000006+02:00",
        "2026-01-02T03:04:05.000006Z",
    ],
)
def test_timestamps_become_utc(moment: Any) -> None:
    assert normalise_metadata({"timestamp": moment}, now="")["timestamp"] == NOW


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"timestamp": datetime(2026, 1, 1)}, "naive"),  # noqa: DTZ001
        ({"timestamp": "2026-01-01T00:00:00"}, "naive"),
        ({"timestamp": "yesterday"}, "ISO 8601"),
        ({"timestamp": 1}, "int"),
        ({"timestamp": datetime(2026, 1, 1, tzinfo=UTC).date()}, "date"),
        ({"correlation_id": 7}, "'correlation_id'"),
        ({"causation_id": b"x"}, "'causation_id'"),
        ({"user_id": ["u"]}, "'user_id'"),
    ],
)
def test_a_bad_envelope_is_refused(metadata: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        normalise_metadata(metadata, now=NOW)
    assert says in str(caught.value)


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=zones)  # noqa: DTZ001


@given(moments, moments)
def test_rfc3339_texts_sort_like_times(a: datetime, b: datetime) -> None:
    assert (rfc3339(a) < rfc3339(b)) == (a < b)
    assert datetime.fromisoformat(rfc3339(a)) == a


def test_events_compare_by_content() -> None:
    event_id = uuid4()
    one = Event(event_type="A", data={"x": 1}, event_id=event_id)
    assert one == Event(event_type="A", data={"x": 1}, event_id=event_id)
    assert one != Event(event_type="A", data={"x": 2}, event_id=event_id)
