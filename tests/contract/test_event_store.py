"""The contract of `EventStore` (store/protocol.py) in code: every backend passes the same tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from eventspine import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    ConcurrencyError,
    Event,
    EventIdTaken,
    EventStore,
    EventType,
    ExpectedVersion,
    InvalidEvent,
    Unavailable,
    UnknownEventType,
)
from tests.contract.conftest import Backend
from tests.event_types import EVENT_TYPES, EVERYTHING, paid, placed, record
from tests.unit.test_codec import EVERYTHING_DATA

ORDER = "Order-1"

ids_count_in_a_place = pytest.mark.cannot_hold("kurrent", reason="the protocol knows event ids only where an append expects them")


async def snapshot(store: EventStore) -> tuple[int, list[Event]]:
    return await store.last_position(), await store.read_all()


def places(events: Sequence[Event]) -> list[tuple[str, int, int]]:
    return [(event.stream_id, event.version, event.global_position) for event in events]


async def take(events: AsyncIterator[Event], count: int, timeout_s: float = 20.0) -> list[Event]:
    """Return the next `count` events of a subscription."""
    taken: list[Event] = []
    try:
        async with asyncio.timeout(timeout_s):
            while len(taken) < count:
                taken.append(await anext(events))
    except TimeoutError:
        raise AssertionError(f"{len(taken)} of {count} events came in {timeout_s} s; the last: {taken[-1:]}") from None
    return taken


# Order


async def test_versions_count_in_the_stream_and_positions_in_the_log(store: EventStore) -> None:
    await store.append(ORDER, "Order", [placed(), paid()], expected_version=0)
    await store.append("Order-2", "Order", [placed()], expected_version=0)
    await store.append(ORDER, "Order", [paid()], expected_version=2)
    await store.append("Invoice-1", "Invoice", [paid(), paid()], expected_version=NO_STREAM)
    assert places(await store.read_all()) == [
        (ORDER, 1, 1), (ORDER, 2, 2), ("Order-2", 1, 3), (ORDER, 3, 4), ("Invoice-1", 1, 5), ("Invoice-1", 2, 6),
    ]  # fmt: skip


async def test_an_empty_log(store: EventStore) -> None:
    assert await store.last_position() == 0
    assert await store.read_all() == []
    assert await store.read_stream(ORDER) == []


async def test_times_never_fall_and_are_the_stores(store: EventStore) -> None:
    before = datetime.now(UTC)
    for n in range(20):
        await store.append(f"Order-{n}", "Order", [placed()], expected_version=0)
    moments = [event.created_at for event in await store.read_all()]
    assert all(moment is not None and moment.utcoffset() == timedelta(0) for moment in moments)
    assert moments == sorted(moments)  # type: ignore[type-var]
    assert before - timedelta(seconds=5) < moments[0] < datetime.now(UTC) + timedelta(seconds=5)  # type: ignore[operator]


# What append returns and reads return


async def test_append_returns_what_every_read_returns(store: EventStore, backend: Backend) -> None:
    event = Event(
        event_type="EverythingHappened",
        data=EVERYTHING_DATA,
        metadata={
            "correlation_id": UUID(int=1),
            "causation_id": "cause",
            "user_id": "ü",
            "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
            "tenant": {"id": 5, "tags": ["a", None, True, 1.5]},
        },
    )
    [recorded] = await store.append(ORDER, "Order", [event], expected_version=0)
    assert recorded.data == EVERYTHING_DATA
    assert recorded.event_id == event.event_id
    assert (recorded.stream_id, recorded.event_type, recorded.schema_version) == (ORDER, "EverythingHappened", 1)
    assert (recorded.version, recorded.global_position) == (1, 1)
    assert recorded.correlation_id == str(UUID(int=1))
    assert recorded.timestamp == datetime(2026, 1, 1, tzinfo=UTC)
    assert recorded.metadata["tenant"] == {"id": 5, "tags": ["a", None, True, 1.5]}
    for reader in (store, await backend.open()):
        assert await reader.read_stream(ORDER) == [recorded]
        assert await reader.read_all() == [recorded]
        assert await take(reader.subscribe(), 1) == [recorded]


async def test_a_time_that_is_not_given_is_the_time_of_the_append(store: EventStore) -> None:
    [recorded] = await store.append(ORDER, "Order", [placed()], expected_version=0)
    assert recorded.timestamp is not None
    assert abs(recorded.timestamp - datetime.now(UTC)) < timedelta(seconds=30)


async def test_copies_are_in_the_order_of_the_events(store: EventStore, backend: Backend) -> None:
    events = [placed(str(n), n) for n in range(backend.max_append_events)]
    recorded = await store.append(ORDER, "Order", events, expected_version=0)
    assert [copy.event_id for copy in recorded] == [event.event_id for event in events]
    assert places(recorded) == [(ORDER, n, n) for n in range(1, len(events) + 1)]
    assert await store.read_stream(ORDER) == recorded


async def test_the_newest_schema_version_is_written_and_every_version_is_read_as_it(store: EventStore) -> None:
    shipped = Event(event_type="OrderShipped", data={"carrier": "c"})
    old = Event(event_type="OrderShipped", data={"carrier": "c"}, schema_version=1)
    copies = await store.append(ORDER, "Order", [shipped, old], expected_version=0)
    assert [(copy.schema_version, copy.data) for copy in copies] == [(2, {"carrier": "c", "tracking_code": ""})] * 2
    assert await store.read_stream(ORDER) == copies
    assert await store.append(ORDER, "Order", [shipped, old], expected_version=0) == copies
    with pytest.raises(EventIdTaken):  # the other version is another content
        await store.append(ORDER, "Order", [shipped, msgspec.structs.replace(old, schema_version=2)], expected_version=ANY)


# Expected versions


@pytest.mark.parametrize(
    ("present", "expected", "passes"),
    [
        (0, 0, True), (0, NO_STREAM, True), (0, ANY, True), (0, STREAM_EXISTS, False), (0, 1, False),
        (2, 2, True), (2, ANY, True), (2, STREAM_EXISTS, True),
        (2, 0, False), (2, NO_STREAM, False), (2, 1, False), (2, 3, False), (2, 2**63 - 1, False),
    ],
)  # fmt: skip
async def test_expected_versions(store: EventStore, present: int, expected: ExpectedVersion, passes: bool) -> None:
    await store.append("Order-0", "Order", [placed()], expected_version=0)
    if present:
        await store.append(ORDER, "Order", [placed() for _ in range(present)], expected_version=0)
    before = await snapshot(store)
    append = store.append(ORDER, "Order", [paid(), paid()], expected_version=expected)
    if passes:
        assert [event.version for event in await append] == [present + 1, present + 2]
        return
    with pytest.raises(ConcurrencyError) as caught:
        await append
    assert (caught.value.stream_id, caught.value.expected, caught.value.actual) == (ORDER, expected, present)
    assert await snapshot(store) == before


# Idempotence

Retry = Callable[[EventStore, list[Event]], Awaitable[list[Event]]]


@pytest.mark.parametrize("expected", [1, ANY, STREAM_EXISTS])
@pytest.mark.parametrize("grown", [False, True], ids=["at the end", "behind which the stream went on"])
async def test_a_retry_returns_the_originals(store: EventStore, expected: ExpectedVersion, grown: bool) -> None:
    await store.append(ORDER, "Order", [placed()], expected_version=0)
    events = [paid(1), paid(2)]
    originals = await store.append(ORDER, "Order", events, expected_version=expected)
    if grown:
        await store.append("Order-2", "Order", [placed()], expected_version=0)
        await store.append(ORDER, "Order", [paid(3)], expected_version=3)
    before = await snapshot(store)
    for _ in range(2):
        assert await store.append(ORDER, "Order", events, expected_version=expected) == originals
    assert await snapshot(store) == before


@pytest.mark.parametrize("expected", [0, NO_STREAM])
async def test_a_retry_of_a_new_stream_returns_the_originals(store: EventStore, expected: ExpectedVersion) -> None:
    events = [placed(), paid()]
    originals = await store.append(ORDER, "Order", events, expected_version=expected)
    assert await store.append(ORDER, "Order", events, expected_version=expected) == originals
    assert await store.last_position() == 2


async def test_a_retry_is_known_by_ids_and_data_alone(store: EventStore) -> None:
    everything = Event(event_type="EverythingHappened", data=EVERYTHING_DATA | {"counts": {"a": 1, "b": 2}})
    originals = await store.append(ORDER, "Order", [everything], expected_version=0)
    other_order = {key: EVERYTHING_DATA[key] for key in reversed(EVERYTHING_DATA)} | {"counts": {"b": 2, "a": 1}}
    again = Event(event_type="EverythingHappened", data=other_order, event_id=everything.event_id, metadata={"attempt": 2})
    assert await store.append(ORDER, "Order", [again], expected_version=0) == originals
    assert await store.last_position() == 1


def _with_id(event: Event, **changes: Any) -> Event:
    same: dict[str, Any] = {"event_type": event.event_type, "data": event.data, "event_id": event.event_id}
    return Event(**(same | changes))


@pytest.mark.parametrize(
    "retry",
    [
        pytest.param(
            lambda s, e: s.append("Order-2", "Order", e, expected_version=ANY), id="another stream", marks=ids_count_in_a_place
        ),
        pytest.param(
            lambda s, e: s.append("Order-2", "Order", e, expected_version=0), id="another new stream", marks=ids_count_in_a_place
        ),
        pytest.param(
            lambda s, e: s.append(ORDER, "Order", e, expected_version=4),
            id="another place in the stream",
            marks=ids_count_in_a_place,
        ),
        pytest.param(lambda s, e: s.append(ORDER, "Order", [*e, paid()], expected_version=ANY), id="and one more"),
        pytest.param(
            lambda s, e: s.append(ORDER, "Order", [paid(), *e], expected_version=ANY),
            id="one more before",
            marks=ids_count_in_a_place,
        ),
        pytest.param(lambda s, e: s.append(ORDER, "Order", [e[0], paid()], expected_version=ANY), id="partly recorded"),
        pytest.param(lambda s, e: s.append(ORDER, "Order", [e[1], e[0]], expected_version=ANY), id="another order"),
        pytest.param(lambda s, e: s.append(ORDER, "Order", [e[0], e[2]], expected_version=ANY), id="with a gap"),
        pytest.param(
            lambda s, e: s.append(ORDER, "Order", [_with_id(e[0], data={"amount_cents": 9})], expected_version=ANY),
            id="other data",
        ),
        pytest.param(
            lambda s, e: s.append(
                ORDER,
                "Order",
                [_with_id(e[0], event_type="OrderPlaced", data={"customer_id": "", "total_cents": 1})],
                expected_version=ANY,
            ),
            id="another type",
        ),
    ],
)
async def test_an_id_is_taken_once_recorded(store: EventStore, retry: Retry) -> None:
    await store.append(ORDER, "Order", [placed()], expected_version=0)
    events = [paid(1), paid(2), paid(3)]
    await store.append(ORDER, "Order", events, expected_version=1)
    before = await snapshot(store)
    with pytest.raises(EventIdTaken) as caught:
        await retry(store, events)
    assert caught.value.stream_id in (ORDER, "Order-2")
    assert {str(event.event_id) for event in events} & set(caught.value.event_ids)
    assert await snapshot(store) == before


async def test_the_same_append_twice_at_once_is_recorded_once(store: EventStore, backend: Backend) -> None:
    other = await backend.open(*EVENT_TYPES)
    for n in range(10):
        events = [placed(), paid()]
        appends = [each.append(f"Order-{n}", "Order", events, expected_version=0) for each in (store, store, other, other)]
        first, *others = await asyncio.gather(*appends)
        assert others == [first] * 3
        assert await store.read_stream(f"Order-{n}") == first
    assert await store.last_position() == 20


async def test_a_cancelled_append_can_be_made_again(store: EventStore) -> None:
    for n in range(30):
        events = [placed(), paid()]
        append = asyncio.create_task(store.append(f"Order-{n}", "Order", events, expected_version=0))
        for _ in range(n % 6):  # at another moment each time
            await asyncio.sleep(0)
        append.cancel()
        await asyncio.gather(append, return_exceptions=True)
        recorded = await store.append(f"Order-{n}", "Order", events, expected_version=0)
        assert await store.read_stream(f"Order-{n}") == recorded
        assert [event.version for event in recorded] == [1, 2]
    assert await store.last_position() == 60


async def test_an_append_survives_a_cut_connection(store: EventStore, backend: Backend) -> None:
    for n in range(5):
        await backend.cut_connections()
        await store.append(ORDER, "Order", [placed()], expected_version=n)
    assert await store.last_position() == 5


async def test_a_store_that_does_not_answer_is_unavailable(backend: Backend) -> None:
    store = await backend.open_unreachable()
    with pytest.raises(Unavailable):
        await store.append(ORDER, "Order", [placed()], expected_version=0)
    with pytest.raises(Unavailable):
        await store.read_all()
    with pytest.raises(Unavailable):
        await store.read_stream(ORDER)
    with pytest.raises(Unavailable):
        await store.last_position()
    with pytest.raises(Unavailable):
        await store.load_checkpoint("x")
    with pytest.raises(Unavailable):
        await store.save_checkpoint("x", 1)
    with pytest.raises(Unavailable):
        await anext(store.subscribe())


# Reads


async def test_read_stream_begins_with_from_version_and_ends_at_the_limit(store: EventStore) -> None:
    recorded = await store.append(ORDER, "Order", [paid(n) for n in range(5)], expected_version=0)
    await store.append("Order-10", "Order", [placed()], expected_version=0)
    assert await store.read_stream(ORDER) == recorded
    assert await store.read_stream(ORDER, 0) == await store.read_stream(ORDER, 1) == recorded
    assert await store.read_stream(ORDER, 3) == recorded[2:]
    assert await store.read_stream(ORDER, from_version=2, limit=2) == recorded[1:3]
    assert await store.read_stream(ORDER, 5) == recorded[4:]
    assert await store.read_stream(ORDER, 6) == []
    assert await store.read_stream(ORDER, limit=0) == []
    assert await store.read_stream("Order-3") == []


async def test_read_all_begins_after_from_position_and_ends_at_the_limit(store: EventStore) -> None:
    for n in range(7):
        await store.append(f"Order-{n % 3}", "Order", [paid(n)], expected_version=ANY)
    log = await store.read_all()
    assert [event.global_position for event in log] == [1, 2, 3, 4, 5, 6, 7]
    assert await store.read_all(0, 3) == log[:3]
    assert await store.read_all(3, 3) == log[3:6]
    assert await store.read_all(from_position=6) == log[6:]
    assert await store.read_all(7) == []
    assert await store.read_all(1000) == []
    assert await store.read_all(0, limit=0) == []
    assert await store.last_position() == 7


async def test_read_all_returns_at_most_1000_unless_asked(store: EventStore, backend: Backend) -> None:
    for start in range(0, 1001, backend.max_append_events):
        events = [paid(n) for n in range(start, min(1001, start + backend.max_append_events))]
        await store.append(ORDER, "Order", events, expected_version=start)
    assert len(await store.read_all()) == 1000
    assert len(await store.read_all(limit=2000)) == 1001


async def test_a_reader_behind_many_writers_misses_nothing(store: EventStore, backend: Backend) -> None:
    writers = [store, *[await backend.open(*EVENT_TYPES) for _ in range(3)]]
    reader = await backend.open()
    total = 40 * len(writers)

    async def write(number: int, writer: EventStore) -> None:
        for n in range(40):
            await writer.append(f"Order-{number}-{n % 7}", "Order", [paid()], expected_version=ANY)

    seen: list[int] = []

    async def read() -> None:
        while len(seen) < total:
            events = await reader.read_all(seen[-1] if seen else 0, 50)
            seen.extend(event.global_position for event in events)
            assert seen == list(range(1, len(seen) + 1))

    async with asyncio.timeout(60):
        await asyncio.gather(read(), *(write(n, writer) for n, writer in enumerate(writers)))
    assert seen == list(range(1, total + 1))


# Subscriptions


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
async def test_a_subscription_catches_up_and_goes_on(store: EventStore, backend: Backend, batch_size: int) -> None:
    for n in range(8):
        await store.append(ORDER, "Order", [paid(n)], expected_version=n)
    subscription = (await backend.open()).subscribe(from_position=2, batch_size=batch_size)
    assert [event.global_position for event in await take(subscription, 6)] == [3, 4, 5, 6, 7, 8]
    waiting = asyncio.create_task(take(subscription, 4))
    for n in range(4):
        await store.append(f"Order-new-{n}", "Order", [paid(n)], expected_version=0)
    assert await waiting == (await store.read_all(8))


async def test_a_subscription_to_what_is_not_there_yet_waits_for_it(store: EventStore) -> None:
    waiting = asyncio.create_task(take(store.subscribe(from_position=2), 1))
    await store.append(ORDER, "Order", [paid(), paid(), paid()], expected_version=0)
    assert [event.global_position for event in await waiting] == [3]


async def test_a_subscription_survives_cut_connections(store: EventStore, backend: Backend) -> None:
    subscription = (await backend.open()).subscribe(batch_size=5)
    seen: list[int] = []
    for n in range(4):
        waiting = asyncio.create_task(take(subscription, 10))
        await store.append(ORDER, "Order", [paid() for _ in range(5)], expected_version=ANY)
        assert await backend.cut_connections() >= 1
        await store.append(f"Order-2{n}", "Order", [paid() for _ in range(5)], expected_version=0)
        seen += [event.global_position for event in await waiting]
    assert seen == list(range(1, 41))


async def test_two_subscriptions_see_the_same(store: EventStore) -> None:
    one, two = store.subscribe(), store.subscribe(batch_size=2)
    waiting = [asyncio.create_task(take(each, 10)) for each in (one, two)]
    await asyncio.gather(*(store.append(f"Order-{n}", "Order", [placed()], expected_version=0) for n in range(10)))
    log = await store.read_all()
    assert await asyncio.gather(*waiting) == [log, log]


# Checkpoints


async def test_checkpoints_never_go_back(store: EventStore, backend: Backend) -> None:
    assert await store.load_checkpoint("mails") == 0
    await store.save_checkpoint("mails", 5)
    await store.save_checkpoint("mails", 3)
    await store.save_checkpoint("bills", 1)
    assert await (await backend.open()).load_checkpoint("mails") == 5
    await store.save_checkpoint("mails", 5)
    await store.save_checkpoint("mails", 8)
    assert (await store.load_checkpoint("mails"), await store.load_checkpoint("bills")) == (8, 1)
    await asyncio.gather(*(store.save_checkpoint("race", n) for n in range(30)))
    assert await store.load_checkpoint("race") == 29


# Invalid input

TWICE = uuid4()
GOOD = {"customer_id": "c", "total_cents": 1}


def event(**changes: Any) -> Event:
    return Event(**({"event_type": "OrderPlaced", "data": GOOD} | changes))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("Order", "Order", [event()], 0), "{Type}-{id}", id="no hyphen"),
        pytest.param(("Order-", "Order", [event()], 0), "{Type}-{id}", id="no id"),
        pytest.param((None, "Order", [event()], 0), "{Type}-{id}", id="no stream"),
        pytest.param(("Order-\0", "Order", [event()], 0), "{Type}-{id}", id="NUL in the name"),
        pytest.param(("Order-\udfff", "Order", [event()], 0), "Unicode", id="surrogate in the name"),
        pytest.param(("Order-" + "x" * 400, "Order", [event()], 0), "406 characters", id="long name"),
        pytest.param(("Order-1", "Invoice", [event()], 0), "stream_type='Invoice'", id="other type"),
        pytest.param(("Order-1", "Order", [], 0), "at least one event", id="no events"),
        pytest.param(("Order-1", "Order", event(), 0), "as a list", id="one event without a list"),
        pytest.param(("Order-1", "Order", None, 0), "as a list", id="None for events"),
        pytest.param(("Order-1", "Order", [{"customer_id": "c"}], 0), "Event objects, not dict", id="a dict for an event"),
        pytest.param(("Order-1", "Order", [event()], -1), "expected_version=-1", id="negative version"),
        pytest.param(("Order-1", "Order", [event()], True), "expected_version=True", id="True for a version"),
        pytest.param(("Order-1", "Order", [event()], None), "expected_version=None", id="None for a version"),
        pytest.param(("Order-1", "Order", [event()], 2**63), "expected_version=9", id="huge version"),
        pytest.param(("Order-1", "Order", [event(event_type=["a"])], 0), "event_type is a string", id="list for a type"),
        pytest.param(("Order-1", "Order", [event(schema_version="1")], 0), "an integer", id="text for a schema version"),
        pytest.param(("Order-1", "Order", [event(event_id="x")], 0), "uuid.UUID", id="text for an id"),
        pytest.param(("Order-1", "Order", [event(event_id=TWICE)] * 2, 0), "same event_id", id="an id twice"),
        pytest.param(("Order-1", "Order", [event(stream_id="Order-2")], 0), "'Order-2' itself", id="event of another stream"),
        pytest.param(("Order-1", "Order", [event(data=None)], 0), "mappings", id="no data"),
        pytest.param(("Order-1", "Order", [event(metadata=None)], 0), "mappings", id="no metadata"),
        pytest.param(("Order-1", "Order", [event(data={"customer_id": "c"})], 0), "total_cents", id="missing field"),
        pytest.param(("Order-1", "Order", [event(data=GOOD | {"x": 1})], 0), "more fields", id="extra field"),
        pytest.param(("Order-1", "Order", [event(data=GOOD | {"total_cents": 5.5})], 0), "total_cents: 5.5", id="coercion"),
        pytest.param(("Order-1", "Order", [event(data=GOOD | {"note": "\0"})], 0), "NUL", id="NUL in data"),
        pytest.param(("Order-1", "Order", [event(data=GOOD | {"note": "\ud800"})], 0), "surrogates", id="surrogate in data"),
        pytest.param(("Order-1", "Order", [event(metadata={"a": ["\0"]})], 0), "NUL", id="NUL in metadata"),
        pytest.param(("Order-1", "Order", [event(metadata={"\0": 1})], 0), "NUL", id="NUL in a key of metadata"),
        pytest.param(("Order-1", "Order", [event(metadata={"a": "\ud800"})], 0), "not JSON", id="surrogate in metadata"),
        pytest.param(("Order-1", "Order", [event(metadata={"a": object()})], 0), "not JSON", id="object in metadata"),
        pytest.param(("Order-1", "Order", [event(metadata={"user_id": 5})], 0), "'user_id'", id="number for a user"),
        pytest.param(("Order-1", "Order", [event(metadata={"timestamp": "x"})], 0), "ISO 8601", id="unreadable time"),
        pytest.param(("Order-1", "Order", [event(data=GOOD | {"note": "x" * 1_000_000})], 0), "limit", id="too large"),
    ],
)
async def test_invalid_input_is_refused_with_a_clear_error(store: EventStore, arguments: Any, says: str) -> None:
    stream_id, stream_type, events, expected = arguments
    with pytest.raises(InvalidEvent) as caught:
        await store.append(stream_id, stream_type, events, expected_version=expected)
    assert says in str(caught.value)
    assert await store.last_position() == 0


async def test_one_invalid_event_refuses_the_whole_append(store: EventStore) -> None:
    with pytest.raises(UnknownEventType) as caught:
        await store.append(ORDER, "Order", [placed(), event(event_type="OrderLost"), paid()], expected_version=0)
    assert (caught.value.stream_id, caught.value.event_type) == (ORDER, "OrderLost")
    assert await store.last_position() == 0


async def test_events_are_not_taken_from_an_iterator(store: EventStore, backend: Backend) -> None:
    """The type is registered by another process, so that the store looks twice at the events."""
    await backend.open(EventType.from_schema(record("OrderReturned", ("reason", "string"))))
    events: Any = (event(event_type="OrderReturned", data={"reason": ""}) for _ in range(2))
    with pytest.raises(InvalidEvent, match="as a list, not as generator"):
        await store.append(ORDER, "Order", events, expected_version=0)


# Sharing


@ids_count_in_a_place
async def test_neighbours_in_a_round_trip_do_not_harm_each_other(store: EventStore) -> None:
    await store.append("Order-stale", "Order", [placed()], expected_version=0)
    known = placed()
    await store.append("Order-known", "Order", [known], expected_version=0)

    def appends(n: int) -> list[Awaitable[list[Event]]]:
        return [
            store.append(f"Order-{n}", "Order", [placed(), paid()], expected_version=0),
            store.append("Order-stale", "Order", [paid()], expected_version=7),
            store.append("Order-thief", "Order", [known], expected_version=ANY),
            store.append("Order-known", "Order", [known], expected_version=0),
            store.append("Order-shared", "Order", [paid(n)], expected_version=ANY),
            store.append("Order-lost", "Order", [event(event_type="OrderLost")], expected_version=ANY),
        ]

    outcomes = await asyncio.gather(*(each for n in range(20) for each in appends(n)), return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [list, ConcurrencyError, EventIdTaken, list, list, UnknownEventType] * 20
    new = [e for n, outcome in enumerate(outcomes) if isinstance(outcome, list) and n % 6 != 3 for e in outcome]
    assert sorted(event.global_position for event in new) == list(range(3, 3 + 60))
    assert sorted(await store.read_all(2), key=lambda e: e.event_id) == sorted(new, key=lambda e: e.event_id)
    assert [e.data["amount_cents"] for e in await store.read_stream("Order-shared")] == list(range(20))  # as they were called


async def test_a_chain_of_appends_called_at_once_is_kept_in_order(store: EventStore) -> None:
    outcomes = await asyncio.gather(*(store.append(ORDER, "Order", [paid(n)], expected_version=n) for n in range(600)))
    assert [each[0].version for each in outcomes] == list(range(1, 601))


@pytest.mark.cannot_hold("kurrent", reason="the server keeps no schemas: each program declares its own")
async def test_types_registered_by_another_process_are_found(store: EventStore, backend: Backend) -> None:
    returned = EventType.from_schema(record("OrderReturned", ("reason", "string")))
    late = Event(event_type="OrderReturned", data={"reason": "too large"})
    with pytest.raises(UnknownEventType):
        await store.append(ORDER, "Order", [late], expected_version=0)
    other = await backend.open(returned)
    [first] = await store.append(ORDER, "Order", [late], expected_version=0)
    assert await other.read_all() == [first]

    newer = EventType.from_schema(record("OrderReturned", ("reason", "string"), ("to", "string", "")), schema_version=2)
    await backend.register(other, newer)
    [second] = await other.append(
        ORDER, "Order", [Event(event_type="OrderReturned", data={"reason": "", "to": "x"})], expected_version=1
    )
    assert await store.read_stream(ORDER, 2) == [second]
    in_new_shape = msgspec.structs.replace(first, schema_version=2, data={"reason": "too large", "to": ""})
    assert await take(store.subscribe(), 2) == [in_new_shape, second]


async def test_writers_that_race_for_a_version_have_one_winner(store: EventStore, backend: Backend) -> None:
    stores = [store, *[await backend.open(*EVENT_TYPES) for _ in range(3)]]
    for version in range(12):
        outcomes = await asyncio.gather(
            *(stores[n % 4].append(ORDER, "Order", [paid(n)], expected_version=version) for n in range(32)),
            return_exceptions=True,
        )
        winners = [outcome for outcome in outcomes if isinstance(outcome, list)]
        assert [[event.version for event in winner] for winner in winners] == [[version + 1]]
        losers = [outcome for outcome in outcomes if isinstance(outcome, ConcurrencyError)]
        assert [(loser.expected, loser.actual) for loser in losers] == [(version, version + 1)] * 31
        assert (await store.read_stream(ORDER, version + 1)) == winners[0]


def test_everything_is_a_registered_type() -> None:
    """EVERYTHING_DATA above is data of it; the round trip test would say nothing about fields that it lacks."""
    assert set(EVERYTHING_DATA) == {field["name"] for field in EVERYTHING.parsed["fields"]}
