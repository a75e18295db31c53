"""The relay's decisions, and the envelope on Kafka: without servers."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from eventspine import DecodeError, Event, IntegrityError, SettingsError, Unavailable
from eventspine.relay.batch import BEHIND_PARKED, Batch, Unknown, build_batch, late_headers
from eventspine.relay.cursor import START, Cursor, begin, check_history, check_link, next_cursor
from eventspine.relay.relay import unbroken
from eventspine.relay.router import Misrouted, Routed, check_options
from eventspine.relay.state import Parked, PinnedTopic, fair_share, stale_topics, surplus
from eventspine.schemas import StoredEvent
from eventspine.schemas.cloudevents import HeaderWriter, event_of
from eventspine.schemas.partition import partition_of
from eventspine.store.postgres.outbox import TRIMMED

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
    assert next_cursor(Cursor(0, "", generation=3), [stored(1)]) == Cursor(1, _ID, generation=3)


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


def test_history_of_an_outbox_that_was_emptied_is_not_asked_for() -> None:
    check_history(Cursor(5, "a"), TRIMMED)


def test_the_link_of_the_hash_chain_is_the_same() -> None:
    """An event that was altered and kept its id has another link."""
    check_link(Cursor(5, "a"), None)
    check_link(Cursor(5, "a", link=2, digest="ff"), "ff")
    with pytest.raises(IntegrityError, match=r"link 2 .* now it has the digest 00"):
        check_link(Cursor(5, "a", link=2, digest="ff"), "00")
    with pytest.raises(IntegrityError, match=r"link 2 .* now it is missing"):
        check_link(Cursor(5, "a", link=2, digest="ff"), None)


def test_cursor_as_bytes() -> None:
    full = Cursor(42, _ID, link=7, digest="ff", generation=1, shards=4, unparked=(3, 9), late=2, retrying=(8,))
    assert Cursor.from_bytes(full.to_bytes()) == full
    assert msgspec.json.decode(Cursor(42, _ID).to_bytes()) == {"position": 42, "event_id": _ID}
    with pytest.raises(IntegrityError, match="unreadable"):
        Cursor.from_bytes(b"{}")


def test_a_first_generation_begins_at_its_own_cursor() -> None:
    own = Cursor(9, _ID)
    assert begin({}, "relay", 0, 0) == (START, [])
    assert begin({("relay", 1): own, ("other", 0): Cursor(3, "x")}, "relay", 1, 0) == (own, [])
    assert begin({("relay", 1): own}, "relay", 0, 0) == (START, [])


def test_a_later_generation_begins_at_the_least_of_the_closed_cursors() -> None:
    closing = [Cursor(30, "c", shards=2, unparked=(4,)), Cursor(20, "b", link=1, digest="ff", shards=2, late=2, retrying=(7, 8))]
    cursors = {("relay@0", number): each for number, each in enumerate(closing)}
    cursors |= {("relay", 0): Cursor(30, "c"), ("relay", 1): Cursor(20, "b")}  # what they had written of the old generation
    expected = Cursor(20, "b", link=1, digest="ff", generation=1, late=4)
    for shard in range(3):
        assert begin(cursors, "relay", shard, 1) == (expected, closing)
    own = Cursor(25, "d", generation=1)
    assert begin(cursors | {("relay", 2): own}, "relay", 2, 1) == (own, closing)


def test_a_shard_does_not_begin_where_cursors_contradict_the_database() -> None:
    with pytest.raises(Unavailable, match="is being changed"):
        begin({("relay@0", 1): Cursor(5, "a", shards=2)}, "relay", 1, 0)
    with pytest.raises(IntegrityError, match="restored to an older state"):
        begin({("relay", 0): Cursor(5, "a", generation=2)}, "relay", 0, 1)
    with pytest.raises(IntegrityError, match="shards unknown"):
        begin({}, "relay", 0, 1)
    with pytest.raises(IntegrityError, match="shards 0, 2"):
        begin({("relay@0", 1): Cursor(5, "a", shards=3)}, "relay", 1, 1)


def by_category(event: StoredEvent) -> Routed | None:
    """Route as the default does; what a stream is called says where it fails or is left out."""
    if "bad" in event.stream_id:
        raise ValueError("no such customer")
    return (
        None if "quiet" in event.stream_id else Routed(event.stream_type, event.stream_id.encode(), event.payload, [("a", b"1")])
    )


def build(events: list[StoredEvent], **options: Any) -> Batch | Unknown:
    defaults: dict[str, Any] = {
        "route": by_category,
        "partitions": {"Order": 6},
        "shard": 0,
        "shards": 1,
        "floors": (),
        "parked": {},
    }
    return build_batch(events, Cursor(99, _ID), **(defaults | options))


def built(events: list[StoredEvent], **options: Any) -> Batch:
    batch = build(events, **options)
    assert isinstance(batch, Batch)
    return batch


def test_what_a_partition_has_is_neither_published_nor_set_aside_again() -> None:
    events = [stored(1), stored(2), stored(3, stream_id="Order-4"), stored(4)]
    partition = built(events[:1]).records[0].partition
    assert partition != built(events[2:3]).records[0].partition
    batch = built(events, tails={("Order", partition): 2}, parked={"Order-1": 1})
    assert [event.global_position for event in batch.sources] == [3]
    assert [each.position for each in batch.parked] == [4]


def test_a_batch_holds_a_record_for_each_event() -> None:
    events = [stored(1), stored(2, stream_id="Order-quiet"), stored(3, stream_id="Order-2")]
    batch = built(events)
    assert [(record.topic, record.key, record.value) for record in batch.records] == [
        ("Order", b"Order-1", b"\0\0\0\0\x05data"),
        ("Order", b"Order-2", b"\0\0\0\0\x05data"),
    ]
    assert [record.partition for record in batch.records] == [partition_of(b"Order-1", 6), partition_of(b"Order-2", 6)]
    assert (batch.sources, batch.parked, batch.cursor) == ([events[0], events[2]], [], Cursor(99, _ID))


def test_topics_that_are_not_known_yet_are_asked_for() -> None:
    assert build([stored(1), stored(2, stream_id="Quote-1"), stored(3, stream_id="Refund-1")]) == Unknown({"Quote", "Refund"})


def test_an_event_that_can_not_be_routed_is_parked_with_its_stream() -> None:
    events = [stored(n, stream_id=stream) for n, stream in enumerate(["Order-1", "Order-bad", "Order-2", "Order-bad"], 1)]
    batch = built(events)
    assert batch.sources == [events[0], events[2]]
    assert batch.parked == [
        Parked(2, "Order-bad", "ValueError: no such customer", 1),
        Parked(4, "Order-bad", BEHIND_PARKED, 0),
    ]


def test_what_follows_in_a_parked_stream_is_parked() -> None:
    events = [stored(1), stored(2, stream_id="Order-2"), stored(3, stream_id="Order-bad")]
    batch = built(events, parked={"Order-1": 1, "Order-bad": 1})
    assert batch.sources == [events[1]]
    assert batch.parked == [Parked(1, "Order-1", BEHIND_PARKED, 0), Parked(3, "Order-bad", BEHIND_PARKED, 0)]


def test_what_comes_before_the_parked_event_of_its_stream_is_published() -> None:
    """It is read again where the cursor was lost: set aside, it would be published late a second time."""
    events = [stored(1), stored(2), stored(3), stored(4)]
    batch = built(events, parked={"Order-1": 3}, published_late={2})
    assert [event.global_position for event in batch.sources] == [1]
    assert [each.position for each in batch.parked] == [3, 4]


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_publish_and_park_each_event_once(shards: int) -> None:
    events = [stored(n, stream_id=f"Order-{'bad' if n % 5 == 0 else ''}{n % 40}") for n in range(1, 200)]
    batches = [built(events, shard=shard, shards=shards) for shard in range(shards)]
    for number, batch in enumerate(batches):
        assert {record.partition % shards for record in batch.records} <= {number}
    published = [event.global_position for batch in batches for event in batch.sources]
    parked = [each.position for batch in batches for each in batch.parked]
    assert sorted(published + parked) == list(range(1, 200))


def by_category_misrouted(event: StoredEvent) -> Routed | None:
    if event.stream_id == "Order-7" and event.global_position % 2:
        raise Misrouted("ValueError: odd", topic="Order", key=event.stream_id.encode())
    return by_category(event)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_what_has_a_place_is_parked_by_the_shard_that_publishes_its_stream(shards: int) -> None:
    """Another shard would not know that the stream is parked, and publish what follows in it."""
    events = [stored(n, stream_id="Order-7") for n in (2, 3, 4, 5)]
    batches = [built(events, route=by_category_misrouted, shard=shard, shards=shards) for shard in range(shards)]
    batch = batches.pop(partition_of(b"Order-7", 6) % shards)
    assert [event.global_position for event in batch.sources] == [2]
    assert [(each.position, each.reason, each.tries) for each in batch.parked] == [
        (3, "ValueError: odd", 1),
        (4, BEHIND_PARKED, 0),
        (5, BEHIND_PARKED, 0),
    ]
    assert all(not each.records and not each.parked for each in batches)
    already = built(events, route=by_category_misrouted, floors=(4, 4))
    assert [each.position for each in already.parked] == [5]
    assert build(events[1:2], route=by_category_misrouted, partitions={}) == Unknown({"Order"})


def test_what_an_earlier_generation_published_is_left_out() -> None:
    """Of old shards 0 and 1, the first published up to 10, the second up to 20: partition p was old shard p % 2's."""
    events = [stored(n, stream_id=f"Order-{n % 9}") for n in range(1, 31)]
    batch = built(events, floors=(10, 20))
    published = {event.global_position for event in batch.sources}
    expected = {e.global_position for e in events if e.global_position > (10, 20)[partition_of(e.stream_id.encode(), 6) % 2]}
    assert published == expected
    assert {position for position in published if position <= 20}


def test_records_are_linked_to_those_before_them_in_their_partition() -> None:
    """Whatever is left out, parked or published in whichever batches: each link names the last position that was published."""
    chance = random.Random(4)
    cursor, last, linked = Cursor(0, ""), dict[int, int](), 0
    position = 0
    for _ in range(60):
        streams = ["Order-bad", "Order-quiet", *(f"Order-{n}" for n in range(9))]
        events = [stored(position + n, stream_id=chance.choice(streams)) for n in range(1, chance.randint(2, 12))]
        position += len(events)
        batch = build_batch(
            events,
            next_cursor(cursor, events),
            route=by_category,  # type: ignore[arg-type]
            partitions={"Order": 6},
            shard=0,
            shards=1,
            floors=(),
            parked={"Order-3": 1},
            topic_ids={"Order": "id"},
        )
        assert isinstance(batch, Batch)
        if chance.random() < 0.2:  # refused: what follows is built from the cursor before
            position -= len(events)
            continue
        cursor = Cursor.from_bytes(batch.cursor.to_bytes())
        seen: set[int] = set()
        for number, (record, event) in enumerate(zip(batch.records, batch.sources, strict=True)):
            if record.partition not in seen and record.partition in last:
                assert batch.links[number] == last[record.partition]
                linked += 1
            else:
                assert number not in batch.links
            seen.add(record.partition)
            last[record.partition] = event.global_position
    assert linked > 50
    assert cursor.published == {"id": last}


def test_late_headers() -> None:
    assert late_headers(42, 7) == [("ce_publishedafter", b"42"), ("ce_latenumber", b"7")]


@pytest.mark.parametrize(
    ("key", "hash_"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
@pytest.mark.parametrize("partitions", [1, 6, 7, 1000])
def test_partitions_are_those_of_the_java_client(key: str, hash_: int, partitions: int) -> None:
    """The client's own test has these values of murmur2.

    Source: `testMurmur2` in
    https://github.com/apache/kafka/blob/4.0.0/clients/src/test/java/org/apache/kafka/common/utils/UtilsTest.java
    """
    assert partition_of(key.encode(), partitions) == (hash_ & 0x7FFFFFFF) % partitions


@pytest.mark.parametrize("shards", range(1, 12))
@pytest.mark.parametrize("workers", range(1, 7))
def test_fair_shares_cover_all_shards_and_no_more_than_needed(shards: int, workers: int) -> None:
    share = fair_share(shards, workers)
    assert share * workers >= shards > (share - 1) * workers


def test_no_worker_is_counted_as_one() -> None:
    assert fair_share(5, 0) == 5


def test_a_worker_gives_back_the_highest_of_what_is_beyond_its_share() -> None:
    assert surplus([0, 3, 1, 2], 2) == [3, 2]
    assert surplus([0, 1], 2) == surplus([], 2) == surplus([4], 5) == []
    assert surplus(iter([0, 1]), 0) == [1, 0]


def test_topics_that_are_not_what_they_were() -> None:
    pinned = {"a": PinnedTopic(6, "x"), "b": PinnedTopic(6, "x"), "c": PinnedTopic(6, "x"), "d": PinnedTopic(6, "")}
    assert stale_topics(pinned, pinned) == []
    found = {"a": PinnedTopic(12, "x"), "b": PinnedTopic(6, "y"), "d": PinnedTopic(6, "z"), "new": PinnedTopic(1, "n")}
    assert stale_topics(pinned, found) == [
        "topic a has 12 partitions, and had 6",
        "topic b was deleted and made anew",
        "topic c is gone",
    ]


@pytest.mark.parametrize(
    ("value_format", "subject_strategy", "said"),
    [("avro", "RecordNameStrategy", "value_format is 'avro'"), ("data", "ByTopic", "subject_strategy is 'ByTopic'")],
)
def test_options_that_do_not_exist_are_refused(value_format: str, subject_strategy: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_options(value_format, subject_strategy)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"timestamp": "2026-01-01T00:00:00.000000Z"},
        {"timestamp": "2026-01-01T00:00:00.000000Z", "correlation_id": "c", "causation_id": "a", "user_id": "ü"},
        {"timestamp": "2026-01-01T00:00:00.000000Z", "shop": {"city": "Zürich", "floor": 3}},
        {"shop": "Zürich", "floor": 3},
    ],
)
def test_event_survives_the_headers(metadata: dict[str, Any]) -> None:
    source = stored(99, metadata=metadata)
    headers = headers_of(source)
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


def headers_of(event: StoredEvent) -> dict[str, bytes]:
    """Return an event's headers as they arrive."""
    return dict(HeaderWriter("/shop").headers(event))


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
    headers = headers_of(stored())
    if value is None:
        del headers[name]
    else:
        headers[name] = value
    with pytest.raises(DecodeError, match="headers"):
        event_of(headers, {})


async def test_what_a_client_cancels_is_no_wish_to_end() -> None:
    """A task that ends as cancelled is missed by nobody; who does cancel it is obeyed."""
    broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await broken

    task = asyncio.create_task(unbroken(work()))
    await asyncio.sleep(0)
    broken.cancel()
    with pytest.raises(Unavailable, match="broke off"):
        await task
    unwanted = asyncio.create_task(unbroken(asyncio.sleep(60)))
    await asyncio.sleep(0)
    unwanted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unwanted
