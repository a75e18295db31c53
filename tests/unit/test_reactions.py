"""Reactions without servers: ids, what a handler's context collects, how far a partition is, webhooks, and the test harness."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given as any_of
from hypothesis import strategies as st

from eventspine import (
    Aggregate,
    Callback,
    Context,
    Decider,
    Event,
    ProcessManager,
    Projection,
    ProjectionError,
    ReactionError,
    Reactions,
    Webhook,
    by_stream,
    on,
)
from eventspine.consumers.places import Item, Partition, Place
from eventspine.consumers.reactions import reaction_of
from eventspine.consumers.reactions.context import effect_id
from eventspine.consumers.reactions.progress import Progress, was_handled
from eventspine.consumers.reactions.webhook import cloud_event, retry_after_s, signature
from eventspine.testing import reacting
from tests.event_types import EVENT_TYPES, paid, placed
from tests.reactions import Fulfilment, Shipper

CAUSE = UUID("018f0000-0000-7000-8000-000000000001")


def caused(event: Event, stream_id: str = "Order-7") -> Event:
    return msgspec.structs.replace(
        event, event_id=CAUSE, stream_id=stream_id, version=1, global_position=9, created_at=datetime(2026, 1, 2, tzinfo=UTC)
    )


class NoStreams:
    async def iterate_stream(self, stream_id: str, from_version: int = 0) -> Any:
        nothing: tuple[Event, ...] = ()
        for event in nothing:
            yield event


def context(event: Event | None = None) -> Context:
    return Context("shipper", caused(paid(user_id="u1", correlation_id="talk")) if event is None else event, NoStreams())


# Ids


def test_ids_are_the_same_for_ever() -> None:
    """They are in logs: another one would have its effect a second time."""
    assert effect_id("shipper", CAUSE, 0) == UUID("15622e29-0fd9-5497-b468-13b795efe698")
    assert len({effect_id(name, CAUSE, n) for name in ("a", "b") for n in (0, 1, "scheduled/0", "scheduled/1")}) == 8


def test_what_a_handler_appends_has_derived_ids_and_its_cause() -> None:
    first, second = context(), context()
    for each in (first, second):
        each.append("Parcel-7", placed(), paid())
        each.append("Stock-1", paid(user_id="robot"))
        each.schedule("Parcel-7", paid(), after=timedelta(hours=1), key="late")
        each.cancel("late")
    one, other = first.effects(), second.effects()
    events = [event for append in one.appends for event in append.events]
    assert [event.event_id for event in events] == [effect_id("shipper", CAUSE, n) for n in range(3)]
    assert [event.event_id for append in other.appends for event in append.events] == [event.event_id for event in events]
    assert one.mark == events[0].event_id
    assert {event.causation_id for event in events} == {str(CAUSE)}
    assert {event.correlation_id for event in events} == {"talk"}
    assert [event.user_id for event in events] == ["u1", "u1", "robot"]
    assert one.scheduled[0].event.event_id == effect_id("shipper", CAUSE, "scheduled/0")
    assert one.scheduled[0].event.causation_id == str(CAUSE)
    assert one.cancelled == ["late"]
    assert first.idempotency_key == f"shipper:{CAUSE}"


class Counter(Aggregate):
    n: int = 0

    def add(self) -> None:
        self.record("OrderPaid", {"amount_cents": self.n})

    @on("OrderPaid")
    def _added(self, event: Event) -> None:
        self.n += 1


async def test_an_aggregate_is_loaded_once_and_appended_at_its_version() -> None:
    history = {"Counter-1": [paid(0), paid(1)]}

    class Adds(Reactions):
        start = "now"

        @on("OrderPaid")
        async def paid(self, event: Event, context: Context) -> None:
            (await context.load(Counter, "1")).add()
            (await context.load(Counter, "1")).add()
            await context.load(Counter, "untouched")

    reacted = await reacting(Adds, history).when("Order-7", paid())
    reacted.then({"Counter-1": [paid(2), paid(3)]})
    assert reacted.effects is not None
    assert [append.expected_version for append in reacted.effects.appends] == [2]


async def test_a_decider_sees_what_it_decided_before() -> None:
    def decide(state: int, command: str) -> list[Event]:
        return [paid(state)] if state < 3 else []

    decider: Decider[int, str] = Decider("Counter", 0, decide, lambda state, _: state + 1)

    class Decides(Reactions):
        start = "now"

        @on("OrderPaid")
        async def paid(self, event: Event, context: Context) -> None:
            for _ in range(4):
                await context.execute(decider, "1", "add")

    reacted = await reacting(Decides, {"Counter-1": [paid(0)]}).when("Order-7", paid())
    reacted.then({"Counter-1": [paid(1), paid(2)]})


async def test_one_way_for_a_stream() -> None:
    each = context()
    await each.load(Counter, "1")
    with pytest.raises(ReactionError, match="'Counter-1' was loaded by this handler, and can't be appended to as well"):
        each.append("Counter-1", paid())


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ({}, "just one of"),
        ({"at": datetime.now(UTC), "after": timedelta(1)}, "just one of"),
        ({"at": datetime(2026, 1, 1)}, "naive"),  # noqa: DTZ001
    ],
)
def test_a_scheduled_event_has_one_time(when: dict[str, Any], said: str) -> None:
    with pytest.raises(ReactionError, match=said):
        context().schedule("Order-1", paid(), **when)


def test_cancelling_needs_a_key() -> None:
    with pytest.raises(ReactionError, match="same key"):
        context().cancel("")


# What is declared


def test_where_a_reaction_begins_must_be_said() -> None:
    class Silent(Reactions):
        pass

    with pytest.raises(ReactionError, match=r"start is None; say where it begins.*no default"):
        reaction_of(Silent)


def test_mistakes_are_found_when_the_class_is_made() -> None:
    with pytest.raises(ReactionError, match="async def"):

        class Sync(Reactions):
            @on("OrderPaid")
            def paid(self, event: Event, context: Context) -> None: ...

    with pytest.raises(ReactionError, match="for process managers"):

        class By(Reactions):
            @on("OrderPaid", by=by_stream)
            async def paid(self, event: Event, context: Context) -> None: ...

    with pytest.raises(ProjectionError, match="for process managers"):

        class Model(Projection):
            @on("OrderPaid", by=by_stream)
            def paid(self, event: Event) -> None: ...

    with pytest.raises(ReactionError, match="is async and folds OrderPaid"):

        class Folds(ProcessManager):
            @on("OrderPaid")
            async def paid(self, event: Event, context: Context) -> None: ...

    with pytest.raises(ReactionError, match="both handle OrderPaid"):

        class Twice(Reactions):
            @on("OrderPaid")
            async def one(self, event: Event, context: Context) -> None: ...

            @on("OrderPaid")
            async def two(self, event: Event, context: Context) -> None: ...

    with pytest.raises(ReactionError, match="poison is 'drop'"):
        reaction_of(Callback(print, name="x", start="now", poison="drop"))
    with pytest.raises(ReactionError, match="takes no 'colour'"):
        Callback(print, name="x", start="now", colour="red")
    with pytest.raises(ReactionError, match="is no Reactions"):
        reaction_of(Counter)


def test_rules_of_a_class_are_those_of_what_runs() -> None:
    reaction = reaction_of(Fulfilment)
    assert (reaction.name, reaction.start, reaction.first_pause_s) == ("fulfilment", "beginning", 0.05)
    assert reaction.handles("OrderPlaced")
    assert not reaction.handles("OrderShipped")


# A process manager


async def test_a_process_manager_given_when_then() -> None:
    overdue = Event(event_type="OrderShipped", data={"carrier": "overdue"})
    begun = await reacting(Fulfilment, event_types=EVENT_TYPES).when("Order-7", placed("c", 5))
    begun.then(
        {"Fulfilment-7": [placed("reserved", 5)], "Stock-7": [paid(1)]},
        scheduled=[("Fulfilment-7", overdue, timedelta(seconds=300))],
    )
    assert begun.effects is not None
    assert begun.effects.scheduled[0].key == "7/deadline"  # another process's deadline is not cancelled by this one
    history = {"Fulfilment-7": [placed("reserved", 5)]}
    (await reacting(Fulfilment, history).when("Order-7", paid(5))).then({"Fulfilment-7": [paid(5)]}, cancelled=["deadline"])
    (await reacting(Fulfilment, history).when("Order-7", placed("c", 6))).then()


async def test_the_harness_tells_what_differs() -> None:
    reacted = await reacting(Shipper).when("Order-7", paid())
    with pytest.raises(AssertionError, match="something else is recorded"):
        reacted.then({})
    with pytest.raises(AssertionError, match="did not fail"):
        reacted.raises(ValueError)


# How far a partition is

P = Partition("events.Order", 0)


def item(offset: int, stream: str = "Order-1", *, handled: bool = True, late: int = 0) -> Item:
    event = Event(event_type="OrderPaid", data={}) if handled else None
    return Item(P, offset, offset + 100, late, "OrderPaid", stream, event)


@any_of(st.lists(st.booleans(), min_size=1, max_size=30), st.data())
def test_the_place_moves_behind_what_is_done_and_no_further(handled: list[bool], data: st.DataObject) -> None:
    progress = Progress(P, Place(1, 0, 0, 0), {})
    entries = [progress.take(item(offset, handled=each)) for offset, each in enumerate(handled)]
    left = [entry for entry in entries if entry is not None]
    assert len(left) == sum(handled)
    for entry in data.draw(st.permutations(left)):
        entry.done = True
        undone = [each.item.offset for each in left if not each.done]
        assert progress.place().next_offset == (min(undone) if undone else len(handled))
    assert progress.place() == progress.reached
    assert len(progress) == 0


def test_what_was_taken_before_is_not_taken_again() -> None:
    progress = Progress(P, Place(1, 5, 104, 5, built_to=107), {})
    assert progress.take(item(4)) is None
    assert progress.take(item(6)) is None  # behind the place, but before where the reaction begins
    assert progress.take(item(8)) is not None
    assert progress.take(item(8)) is None
    assert progress.place().next_offset == 7


def test_what_was_handled_before_its_stream_was_parked() -> None:
    aside = {(105, 0), (107, 0), (50, 3)}
    assert was_handled(item(4), aside)  # position 104, before the first in order
    assert was_handled(item(5), aside)
    assert not was_handled(item(6), aside)
    assert was_handled(item(-50, late=3), aside)
    assert not was_handled(item(-60, late=4), aside)


# Webhooks


def test_the_body_is_a_cloud_event() -> None:
    event = caused(placed("é", 5, user_id="u1", correlation_id="talk", traceparent="00-x", channel="web"))
    assert msgspec.json.decode(cloud_event(event, "/shop")) == {
        "specversion": "1.0",
        "id": str(CAUSE),
        "source": "/shop",
        "type": "OrderPlaced",
        "subject": "Order-7",
        "time": "2026-01-02T00:00:00.000000Z",
        "datacontenttype": "application/json",
        "recordedtime": "2026-01-02T00:00:00.000000Z",
        "globalposition": "9",
        "streamversion": "1",
        "schemaversion": "0",
        "correlationid": "talk",
        "userid": "u1",
        "traceparent": "00-x",
        "metadata": '{"channel":"web"}',
        "data": {"customer_id": "é", "total_cents": 5},
    }


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of its libraries' tests."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_retry_after_in_seconds_and_as_a_time() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert retry_after_s("120", now) == 120
    assert retry_after_s("Fri, 02 Jan 2026 00:01:00 GMT", now) == 60
    assert retry_after_s("Fri, 02 Jan 2026 00:00:00 GMT", now) == 0
    assert retry_after_s("86400", now) == 3600
    assert retry_after_s("soon", now) is None
    assert retry_after_s(None, now) is None


def test_a_webhook_is_refused_that_can_not_work() -> None:
    with pytest.raises(ReactionError, match="no http"):
        Webhook("ftp://example.org", name="x", start="now")
    for secret in ("whsec_short", "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "whsec_???"):
        with pytest.raises(ReactionError, match="whsec_ and at least 24"):
            Webhook("https://example.org", name="x", start="now", secret=secret)
