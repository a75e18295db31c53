"""Decisions of the EventStoreDB door that need no server: names, rules, filters, opaque data, checkpoints."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf import descriptor_pool

from eventspine import EventType
from eventspine.schemas import Codec, InvalidEvent, Opaque, PinnedType, UnknownEventType
from eventspine.schemas.event import check_stream_id
from eventspine.schemas.from_json import data_from_json
from eventspine.schemas.opaque import JSON, OPAQUE, raw_content, readable
from eventspine.store.kurrent.events import Recorded, id_of, lifted_ids, record_of
from eventspine.store.kurrent.faults import Fault
from eventspine.store.kurrent.following import Mark, _checkpoints
from eventspine.store.kurrent.frames import event_frame
from eventspine.store.kurrent.messages import message_class
from eventspine.store.kurrent.names import category_query, stream_id_of, stream_name_of, type_of
from eventspine.store.kurrent.reading import Item
from eventspine.store.kurrent.requests import read_request_of
from eventspine.store.kurrent.rules import DELETED, Rules, StreamRules, Told, with_deletion, without_deletion
from tests.event_types import logical, record

NAMES = [
    "Order-1", "order", "my stream", "e8abad29-9cd5-4218-b0d2-670be2de7f11", "$$Order-1", "$$$all",
    "kurrent-x", "kurrent", "-", "1st-a", "Größe-1", "a-",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_each_name_has_an_id_of_its_own(name: str) -> None:
    stream_id = stream_id_of(name)
    check_stream_id(stream_id, type_of(stream_id))
    assert stream_name_of(stream_id) == name
    assert sum(stream_id_of(other) == stream_id for other in NAMES) == 1


def test_uuids_are_no_categories() -> None:
    """The relay makes a topic for each category."""
    assert {type_of(stream_id_of(str(uuid4()))) for _ in range(100)} == {"kurrent"}


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "x" * 393, "Order-" + "x" * 400])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(Fault):
        stream_id_of(name)


def test_where_a_category_is_looked_for() -> None:
    assert category_query("Order") == ("Order", "Order-")
    assert category_query("my order") == ("kurrent", "kurrent-my order-")
    assert category_query("kurrent") == ("kurrent", "kurrent-kurrent-")


def test_what_metadata_says() -> None:
    rules = Rules()
    rules.learn([Told(5, "$$A-1", "$metadata", b'{"$maxCount": 2, "$maxAge": 60, "$tb": 3, "own": 1}')])
    known = rules.of("A-1")
    assert (known.max_count, known.max_age_s, known.first_version) == (2, 60, 4)
    assert known.first_readable(5) == 4
    assert known.first_readable(9) == 8
    now = datetime.now(UTC)
    assert known.expired(now - timedelta(seconds=61), now)
    assert not known.expired(now - timedelta(seconds=59), now)
    rules.learn([Told(4, "$$A-1", "$metadata", b"{}")])  # older: it changes nothing
    assert rules.of("A-1") == known
    rules.learn([Told(6, "$$A-1", "$metadata", with_deletion(known))])
    assert rules.of("A-1").deleted
    rules.learn([Told(7, "$$A-1", "$metadata", without_deletion(rules.of("A-1"), 9))])
    revived = rules.of("A-1")
    assert (revived.deleted, revived.first_version, revived.max_count) == (False, 10, 2)
    rules.learn([Told(8, "A-1", "$streamDeleted", b""), Told(9, "$$A-1", "$metadata", b"{}")])
    assert rules.of("A-1").tombstoned
    assert rules.of("$$A-1").tombstoned
    assert rules.of("B-1") == StreamRules()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"$maxCount": "x", "$tb": -1, "$maxAge": 1.5}', b"[" * 100_000])
def test_metadata_that_is_none_says_nothing(content: bytes) -> None:
    rules = Rules()
    rules.learn([Told(5, "$$A-1", "$metadata", content)])
    assert rules.of("A-1")._replace(position=0, metadata=b"{}") == StreamRules()
    assert b"9223372036854775807" in with_deletion(rules.of("A-1"))
    assert DELETED == 9223372036854775807


def codec_with(*event_types: EventType) -> Codec:
    codec = Codec()
    codec.add([PinnedType(number, each) for number, each in enumerate([OPAQUE, *event_types], 1)])
    return codec


@pytest.mark.parametrize("content", [b"", b"{}", b'{"a": 1.50}', b"x" * 127, b"x" * 200, bytes(range(256)) * 300])
def test_opaque_content_comes_back_to_the_byte(content: bytes) -> None:
    codec = codec_with()
    encoded = codec.encode("Any type!", 0, Opaque(JSON, content))
    assert raw_content(encoded.payload) == (JSON, content)
    assert codec.decode(encoded.payload) == encoded.data == readable({"content_type": JSON, "content": content})
    assert encoded.schema_version == 0


@pytest.mark.parametrize("content", [b"[1]", b'{"a": "\\u0000"}', b'{"a": 1e400}', b'{"a": "\\ud800"}', b"{", b'"a"', b"\xff"])
def test_what_jsonb_can_not_hold_stays_bytes(content: bytes) -> None:
    assert readable({"content_type": JSON, "content": content}) == {"content": content}


def test_a_registered_type_takes_no_opaque_data() -> None:
    codec = codec_with(EventType.from_schema(record("Known", ("n", "long"))))
    assert codec.encode("Known", 0, Opaque(JSON, b'{"n": 1}')).schema_version == 1
    with pytest.raises(InvalidEvent):
        codec.encode("Known", 0, Opaque(JSON, b'{"n": "x"}'))
    with pytest.raises(UnknownEventType):
        Codec().encode("Any", 0, Opaque(JSON, b"{}"))


def test_json_becomes_what_the_schema_has() -> None:
    event_type = EventType.from_schema(
        record(
            "Typed",
            ("id", logical("string", "uuid")),
            ("day", logical("int", "date")),
            ("at", logical("long", "timestamp-micros")),
            ("sum", logical("bytes", "decimal", precision=9, scale=2)),
            ("raw", "bytes"),
            ("rate", "double"),
            ("maybe", ["null", logical("string", "uuid")]),
            ("text", "string"),
        )
    )
    number = uuid4()
    data: dict[str, Any] = {
        "id": str(number), "day": "2026-01-31", "at": "2026-01-31T10:00:00Z", "sum": "12.50", "raw": "aGk=", "rate": 2,
        "maybe": None, "text": "2026-01-31",
    }  # fmt: skip
    converted = data_from_json(event_type, data)
    assert converted == {
        "id": number, "day": date(2026, 1, 31), "at": datetime(2026, 1, 31, 10, tzinfo=UTC), "sum": Decimal("12.50"),
        "raw": b"hi", "rate": 2.0, "maybe": None, "text": "2026-01-31",
    }  # fmt: skip
    codec = codec_with(event_type)
    assert codec.decode(codec.encode("Typed", 0, converted).payload) == converted
    assert data_from_json(event_type, {**data, "day": "soon"})["day"] == "soon"  # the codec says what is wrong


def test_checkpoints_fall_due_at_their_distance() -> None:
    assert _checkpoints(10, 10, 34, 10) == [Mark("checkpoint", 20), Mark("checkpoint", 30)]
    assert _checkpoints(10, 19, 20, 10) == [Mark("checkpoint", 20)]
    assert _checkpoints(10, 20, 29, 10) == []
    assert _checkpoints(10, 10, 34, 0) == []


def test_a_correlation_is_its_id_alone() -> None:
    """Events of one correlation go to one consumer, whatever else their metadata says."""
    first, second = b'{"$correlationId": "c", "$causationId": "1"}', b'{"a": 1, "$correlationId":"c"}'
    assert lifted_ids(first)["correlation_id"] == lifted_ids(second)["correlation_id"] == "c"
    assert lifted_ids(b"no JSON: $correlationId") == lifted_ids(b"[]") == {}


def test_ids_in_either_form() -> None:
    event_id = UUID("f0e1d2c3-b4a5-4697-8879-6a5b4c3d2e1f")
    recorded = Recorded(event_id, "A-1", 1, 1, "T", JSON, b"{}", b"", datetime.now(UTC))
    for structured in (True, False):
        assert id_of(record_of(recorded, structured=structured).id) == event_id
    with pytest.raises(Fault):
        id_of(message_class("Id")(string="none"))


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_384, 3_000_000])
def test_frames_are_what_the_classes_write(structured: bool, size: int) -> None:
    now = datetime.now(UTC)
    event = Recorded(uuid4(), "Größe-1", 1, 2**40, "Ereignis", JSON, b"d" * size, b"m" * (size // 2), now)
    link = Recorded(UUID(int=2**127 + 1), "$ce-Größe", 300, 7, "$>", "application/octet-stream", b"0@x", b"", now)
    for item in (Item(event), Item(event, link), Item(None, link)):
        read = message_class("ReadResponse")(event={"commit_position": item.place.position})
        for field, recorded in (("event", item.event), ("link", item.link)):
            if recorded is not None:
                getattr(read.event, field).CopyFrom(record_of(recorded, structured=structured))
        assert message_class("ReadResponse").FromString(event_frame(item, structured=structured)) == read


def test_a_read_says_from_where() -> None:
    request = message_class("ReadRequest")

    def place(**options: Any) -> int | None:
        return read_request_of(request(options={"count": 1, **options}).SerializeToString()).place

    named = {"stream_identifier": {"stream_name": b"A-1"}}
    assert place(stream={**named, "revision": 0}) == 1
    assert place(stream={**named, "start": {}}) is None
    assert place(stream={**named, "end": {}}) == -1
    assert place(stream={**named, "revision": 2**64 - 1}) == 2**63 - 1
    assert place(all={"position": {"commit_position": 7, "prepare_position": 7}}) == 7


def test_the_messages_are_in_a_pool_of_their_own() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("eventspine.kurrent.ReadRequest")
