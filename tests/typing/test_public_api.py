"""The public API as users write it. mypy checks this file; running it only proves that the names are there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type
from uuid import UUID

import asyncpg

import eventspine
from eventspine import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    Aggregate,
    AppendCondition,
    ConcurrencyError,
    Decider,
    Event,
    EventIdTaken,
    EventSetAside,
    EventStore,
    EventType,
    ExpectedVersion,
    InvalidEvent,
    PostgresEventStore,
    Projection,
    Query,
    QueryItem,
    ReadModel,
    Repository,
    Snapshot,
    SnapshottedRepository,
    StaleReadModel,
    StreamAppend,
    Subscription,
    Unavailable,
    Upcaster,
    WorkerGroup,
    handle_command,
    on,
    open_read_models,
    upcaster,
)
from eventspine.testing import given
from eventspine.web import ReadYourWrites


async def place_order(store: EventStore, order_id: str) -> None:
    event = Event(
        event_type="OrderPlaced",
        data={"customer_id": "c1", "total_cents": 1990},
        metadata={"user_id": "u1", "timestamp": datetime.now(UTC)},
    )
    recorded = await store.append(f"Order-{order_id}", "Order", [event], expected_version=NO_STREAM)
    assert_type(recorded, list[Event])
    assert_type(recorded[0].event_id, UUID)
    assert_type(recorded[0].version, int)
    assert_type(recorded[0].global_position, int)
    assert_type(recorded[0].created_at, datetime | None)
    assert_type(recorded[0].timestamp, datetime | None)
    assert_type(recorded[0].user_id, str | None)
    assert_type(recorded[0].category, str)


@dataclass
class OrderPlaced:
    customer_id: str
    total_cents: int


@upcaster("OrderPlaced", from_version=1)
def add_total(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "total_cents": 0}


@add_total.downcaster
def drop_total(data: dict[str, Any]) -> dict[str, Any]:
    return {"customer_id": data["customer_id"]}


class Counted(Aggregate):
    placed: int = 0

    def place(self) -> None:
        self.record(OrderPlaced("c1", 500))

    @on(OrderPlaced)
    def _placed(self, event: Event) -> None:
        self.placed += event.data_as(OrderPlaced).total_cents


async def typed_events(pool: asyncpg.Pool, event: Event) -> None:
    store = PostgresEventStore(pool)
    await store.register([EventType.from_dataclass(OrderPlaced)], [add_total])
    assert_type(add_total, Upcaster)
    assert_type(Event.of(OrderPlaced("c1", 500), metadata={"user_id": "u1"}), Event)
    assert_type(event.data_as(OrderPlaced), OrderPlaced)


async def expect(store: EventStore, expected: ExpectedVersion) -> None:
    for each in (0, 17, ANY, NO_STREAM, STREAM_EXISTS, expected):
        await store.append("Order-1", "Order", [], expected_version=each)
    await store.append("Order-1", "Order", (), expected_version=0)
    await store.append("Order-1", "Order", [])  # type: ignore[call-arg]
    await store.append("Order-1", "Order", [], expected_version="0")  # type: ignore[arg-type]
    await store.append("Order-1", "Order", [{"event_type": "OrderPlaced"}], expected_version=0)  # type: ignore[list-item]


async def decide_again(store: EventStore) -> None:
    try:
        await store.append("Order-1", "Order", [Event(event_type="OrderPaid", data={})], expected_version=1)
    except ConcurrencyError as error:
        assert_type(error.stream_id, str)
        assert_type(error.actual, int)
    except EventIdTaken as error:
        assert_type(error.event_ids, list[str])
    except InvalidEvent as error:
        assert_type(error.reason, str)
    except Unavailable:
        pass


async def enroll(store: EventStore, course: str, student: str) -> None:
    query = Query(QueryItem(tags=[f"course:{course}"], event_types=["Enrolled"]), QueryItem(tags=[f"student:{student}"]))
    seen = await store.read(query)
    condition = AppendCondition(query, after=seen[-1].global_position if seen else 0)
    event = Event(event_type="Enrolled", data={}, tags=(f"course:{course}", f"student:{student}"))
    await store.append(f"Course-{course}", "Course", [event], ANY, condition=condition)
    both = [StreamAppend("Order-1", "Order", [event], 0), StreamAppend("Order-2", "Order", [event], NO_STREAM)]
    assert_type(await store.append_streams(both, condition=condition), list[list[Event]])


async def look_back(store: EventStore, event_id: UUID) -> None:
    await store.read_stream("Order-1", 3, to_version=9, backwards=True)
    await store.read(Query(), backwards=True, limit=1)
    async for event in store.iterate_stream("Order-1"):
        assert_type(event, Event)
    assert_type(await store.read_event(event_id), Event | None)
    assert_type(await store.load_snapshot("Order-1", schema_version=2), Snapshot | None)
    await store.save_snapshot("Order-1", "Order", {"total": 1}, version=7, schema_version=2)


async def follow(store: EventStore) -> None:
    assert_type(await store.read_stream("Order-1", 3, limit=10), list[Event])
    assert_type(await store.read_all(0, limit=10), list[Event])
    assert_type(await store.last_position(), int)
    position = await store.load_checkpoint("mails")
    assert_type(position, int)
    subscription = store.subscribe(from_position=position, batch_size=100)
    assert_type(subscription, Subscription)
    async for event in subscription:
        assert_type(event, Event)
        await store.save_checkpoint("mails", event.global_position)


async def open_one(dsn: str) -> None:
    event_types = eventspine.load_event_types(Path("schemas"))
    assert_type(event_types, list[EventType])
    async with eventspine.connect(dsn, event_types=event_types) as store:
        assert_type(store, PostgresEventStore)
        await place_order(store, "1")  # the Postgres store fits the protocol


async def by_hand(pool: asyncpg.Pool, connection: asyncpg.Connection) -> EventStore:
    assert_type(await eventspine.migrate(connection), list[int])
    store = PostgresEventStore(pool, max_event_bytes=10_000, retry_s=5)
    await store.register([EventType.from_schema({"type": "record", "name": "OrderPaid", "fields": []}, schema_version=2)])
    return store


class Order(Aggregate):
    paid: int = 0

    def pay(self, cents: int) -> None:
        self.record("OrderPaid", {"amount_cents": cents})

    @on("OrderPaid")
    def _paid(self, event: Event) -> None:
        self.paid += event.data["amount_cents"]


async def command(store: EventStore) -> None:
    orders = Repository(store, Order)
    assert_type(await orders.load("1"), Order)
    assert_type(await orders.execute("1", lambda order: order.pay(5)), Order)
    await orders.execute("1", lambda order: order.ship())  # type: ignore[attr-defined]
    await SnapshottedRepository(store, Order, every=100).save(Order("1"), metadata={"user_id": "u1"})
    decider: Decider[int, str] = Decider("Order", 0, lambda paid, command: [], lambda paid, event: paid + 1)
    assert_type(await handle_command(store, decider, "1", "pay"), list[Event])
    await handle_command(store, decider, "1", 5)  # type: ignore[misc]
    given(decider, Event(event_type="OrderPaid", data={})).when("pay").then()
    given(Order).when(lambda order: order.pay(5)).raises(ConcurrencyError)


async def work(store: PostgresEventStore) -> None:
    async def handle(event: Event) -> None: ...

    await WorkerGroup(store, "mails", "Order", handle, concurrency=4).run()


async def read_what_was_written(dsn: str, store: EventStore, projection: type[Projection], app: Any) -> None:
    events = await store.append("Order-1", "Order", [Event(event_type="OrderPlaced", data={})], ANY)
    async with open_read_models(dsn, projection, topic_prefix="events.") as models:
        assert_type(models, list[ReadModel])
        try:
            await models[0].wait_for(events, timeout_s=2)
            await models[0].wait_for(events[0])
            await models[0].wait_for(events[0].global_position)
            await models[0].wait_for({"Order-1": 7})
        except EventSetAside as aside:
            assert_type(aside.reason, str)
        except StaleReadModel as late:
            assert_type(late.reached, int)
        wrapped = ReadYourWrites(app, lambda: models, timeout_s=1.0, when_stale="pass", cookie="seen")
        assert_type(wrapped, ReadYourWrites)


def freeze(event: Event) -> None:
    event.version = 1  # type: ignore[misc]
    Event("OrderPlaced", {})  # type: ignore[call-arg]


if TYPE_CHECKING:

    def fits(postgres: PostgresEventStore) -> EventStore:
        return postgres


def test_the_names_are_there() -> None:
    assert all(hasattr(eventspine, name) for name in eventspine.__all__)
