"""The relay's decisions, and the envelope on Kafka: without servers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from eventspine import DecodeError, Event, IntegrityError
from eventspine.relay.cursor import START, Cursor, check_history, next_cursor
from eventspine.relay.publisher import record_of, subjects_of
from eventspine.schemas import StoredEvent
from eventspine.schemas.cloudevents import event_of

_ID = "0192d5a0-0000-7000-8000-000000000001"


def stored(position: int = 1, *, metadata: dict[str, Any] | None = None, stream_id: str = "Order-1") -> StoredEvent:
    return StoredEvent(
        global_position=position,
        event_id=_ID,
        stream_id=stream_id,
        stream_type=stream_id.partition("-")[0],
        event_type="OrderPlaced",
        version=7,
        schema_version=2,
        payload=b"\0\0\0\0\x05data",
        created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        metadata=msgspec.json.encode(metadata or {}).decode(),
    )


def test_cursor_follows_positions_without_a_gap() -> None:
    assert next_cursor(START, [stored(1), stored(2)]) == Cursor(2, _ID)
    assert next_cursor(Cursor(5, "x"), []) == Cursor(5, "x")


@pytest.mark.parametrize("positions", [[2], [1, 3], [1, 1], [2, 1], [0]])
def test_gap_or_disorder_in_the_log_halts(positions: list[int]) -> None:
    with pytest.raises(IntegrityError, match="position"):
        next_cursor(START, [stored(position) for position in positions])


def test_history() -> None:
    check_history(START, None)
    check_history(Cursor(5, "a"), "a")
    with pytest.raises(IntegrityError, match="ends before"):
        check_history(Cursor(5, "a"), None)
    with pytest.raises(IntegrityError, match="holds event b"):
        check_history(Cursor(5, "a"), "b")


def test_cursor_as_bytes() -> None:
    assert Cursor.from_bytes(Cursor(42, _ID).to_bytes()) == Cursor(42, _ID)
    with pytest.raises(IntegrityError, match="unreadable"):
        Cursor.from_bytes(b"{}")


def test_record_is_routed_by_category_and_keyed_by_stream() -> None:
    record = record_of(stored(stream_id="Order-ü"), prefix="events.", source="/shop")
    assert (record.topic, record.key, record.value) == ("events.Order", "Order-ü".encode(), b"\0\0\0\0\x05data")


def test_subjects_are_topic_and_record_name() -> None:
    events = [stored(1), stored(2), stored(3, stream_id="Refund-1")]
    subjects = subjects_of(events, {5: "shop.OrderPlaced"}, "events.")
    assert subjects == {("events.Order-shop.OrderPlaced", 5), ("events.Refund-shop.OrderPlaced", 5)}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"timestamp": "2026-01-01T00:00:00.000000Z"},
        {"timestamp": "2026-01-01T00:00:00.000000Z", "correlation_id": "c", "causation_id": "a", "user_id": "ü"},
        {"timestamp": "2026-01-01T00:00:00.000000Z", "shop": {"city": "Zürich", "floor": 3}},
    ],
)
def test_event_survives_the_headers(metadata: dict[str, Any]) -> None:
    source = stored(99, metadata=metadata)
    headers = {
        name: value.encode() if isinstance(value, str) else value or b""
        for name, value in record_of(source, prefix="", source="/shop").headers
    }
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_source"] == b"/shop"
    assert ("ce_metadata" in headers) == ("shop" in metadata)
    assert event_of(headers, {"n": 1}) == Event(
        event_type="OrderPlaced",
        data={"n": 1},
        metadata=metadata,
        event_id=UUID(_ID),
        stream_id="Order-1",
        schema_version=2,
        version=7,
        global_position=99,
        created_at=source.created_at,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce_id", b"no uuid"),
        ("ce_streamversion", b"one"),
        ("ce_recordedtime", b"yesterday"),
        ("ce_metadata", b"[1]"),
        ("ce_type", b"\xff"),
        ("ce_subject", None),
    ],
)
def test_foreign_headers_are_refused(name: str, value: bytes | None) -> None:
    headers = {
        key: text.encode() if isinstance(text, str) else text or b""
        for key, text in record_of(stored(), prefix="", source="/").headers
    }
    if value is None:
        del headers[name]
    else:
        headers[name] = value
    with pytest.raises(DecodeError, match="headers"):
        event_of(headers, {})
