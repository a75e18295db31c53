"""The program of the usual event-sourcing tutorial, written by hand on the store's methods, and the mistakes that people make.

Nothing of the library's own aggregates, repositories or projections is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from eventspine import ConcurrencyError, Event, EventStore, EventType, InvalidEvent, PostgresEventStore, UnknownEventType
from tests.event_types import record

EVENT_TYPES = [
    EventType.from_schema(record("OrderCreated", ("order_id", "string"), ("customer_id", "string"))),
    EventType.from_schema(record("ItemAdded", ("order_id", "string"), ("sku", "string"), ("quantity", "int"), ("cents", "long"))),
    EventType.from_schema(record("OrderSubmitted", ("order_id", "string"), ("total_cents", "long"))),
]


@pytest.fixture
async def store(pool: asyncpg.Pool) -> PostgresEventStore:
    store = PostgresEventStore(pool)
    await store.register(EVENT_TYPES)
    return store


# The order and its command handler


@dataclass(frozen=True)
class Order:
    order_id: str
    version: int = 0
    status: str = "new"
    customer_id: str = ""
    items: Mapping[str, int] = field(default_factory=dict)
    total_cents: int = 0

    def apply(self, event: Event) -> Order:
        data, order = event.data, replace(self, version=event.version)
        match event.event_type:
            case "OrderCreated":
                return replace(order, status="open", customer_id=data["customer_id"])
            case "ItemAdded":
                quantity = order.items.get(data["sku"], 0) + data["quantity"]
                total_cents = order.total_cents + data["quantity"] * data["cents"]
                return replace(order, items={**order.items, data["sku"]: quantity}, total_cents=total_cents)
            case "OrderSubmitted":
                return replace(order, status="submitted")
        return order


class OrderCommandHandler:
    def __init__(self, store: EventStore) -> None:
        self.store = store

    async def load(self, order_id: str) -> Order:
        events = await self.store.read_stream(f"Order-{order_id}")
        order = Order(order_id)
        for event in events:
            order = order.apply(event)
        return order

    async def create(self, order_id: str, customer_id: str) -> None:
        order = await self.load(order_id)
        if order.status != "new":
            raise ValueError(f"order {order_id} is there already")
        events = [Event(event_type="OrderCreated", data={"order_id": order_id, "customer_id": customer_id})]
        await self.store.append(f"Order-{order_id}", "Order", events, expected_version=order.version)

    async def add_item(self, order_id: str, sku: str, quantity: int, cents: int) -> None:
        order = await self.load(order_id)
        if order.status != "open":
            raise ValueError(f"order {order_id} is {order.status}")
        data = {"order_id": order_id, "sku": sku, "quantity": quantity, "cents": cents}
        events = [Event(event_type="ItemAdded", data=data)]
        await self.store.append(f"Order-{order_id}", "Order", events, expected_version=order.version)

    async def submit(self, order_id: str) -> None:
        order = await self.load(order_id)
        if order.status != "open" or not order.items:
            raise ValueError(f"order {order_id} is {order.status} and has {len(order.items)} items")
        events = [Event(event_type="OrderSubmitted", data={"order_id": order_id, "total_cents": order.total_cents})]
        await self.store.append(f"Order-{order_id}", "Order", events, expected_version=order.version)


async def place_orders(handler: OrderCommandHandler, *order_ids: str) -> None:
    for order_id in order_ids:
        await handler.create(order_id, f"customer-{order_id}")
        await handler.add_item(order_id, "tea", 2, 350)
        await handler.add_item(order_id, "cup", 1, 900)
        await handler.submit(order_id)


async def test_the_command_handler(store: PostgresEventStore) -> None:
    handler = OrderCommandHandler(store)
    await place_orders(handler, "abc123")
    order = await handler.load("abc123")
    assert order == Order("abc123", 4, "submitted", "customer-abc123", {"tea": 2, "cup": 1}, 1600)
    with pytest.raises(ValueError, match="is submitted"):
        await handler.add_item("abc123", "pot", 1, 100)
    assert [(event.event_type, event.version) for event in await store.read_stream("Order-abc123")] == [
        ("OrderCreated", 1), ("ItemAdded", 2), ("ItemAdded", 3), ("OrderSubmitted", 4),
    ]  # fmt: skip


async def test_of_two_handlers_at_once_one_must_load_again(store: PostgresEventStore) -> None:
    handler = OrderCommandHandler(store)
    await handler.create("1", "c")

    async def add_and_retry(sku: str) -> int:
        for conflicts in range(10):
            try:
                await handler.add_item("1", sku, 1, 100)
            except ConcurrencyError:
                continue
            return conflicts
        raise AssertionError("ten conflicts in a row among eight writers")

    conflicts = await asyncio.gather(*(add_and_retry(f"sku-{n}") for n in range(8)))
    assert sum(conflicts) > 0
    order = await handler.load("1")
    assert (order.version, order.total_cents, len(order.items)) == (9, 800, 8)


# The summary projection


class OrderSummaryProjection:
    """Keeps one row for each order; the rows and the checkpoint are committed together."""

    def __init__(self, store: EventStore, pool: asyncpg.Pool) -> None:
        self.store = store
        self.pool = pool

    async def create_tables(self) -> None:
        await self.pool.execute("""
            CREATE TABLE IF NOT EXISTS order_summaries (
                order_id text PRIMARY KEY, customer_id text NOT NULL, status text NOT NULL, items int NOT NULL DEFAULT 0,
                total_cents bigint NOT NULL DEFAULT 0);
            CREATE TABLE IF NOT EXISTS projection_checkpoints (name text PRIMARY KEY, position bigint NOT NULL)""")

    async def run(self, batch: int = 100) -> int:
        """Apply what is new, and return the position that was reached."""
        query = "SELECT position FROM projection_checkpoints WHERE name = 'order_summaries'"
        position: int = await self.pool.fetchval(query) or 0
        while events := await self.store.read_all(position, batch):
            async with self.pool.acquire() as connection, connection.transaction():
                for event in events:
                    await self.handle(connection, event)
                    position = event.global_position
                await connection.execute(
                    """INSERT INTO projection_checkpoints VALUES ('order_summaries', $1)
                       ON CONFLICT (name) DO UPDATE SET position = EXCLUDED.position""",
                    position,
                )
        return position

    async def handle(self, connection: Any, event: Event) -> None:
        data = event.data
        match event.event_type:
            case "OrderCreated":
                await connection.execute(
                    "INSERT INTO order_summaries (order_id, customer_id, status) VALUES ($1, $2, 'open')",
                    data["order_id"], data["customer_id"],
                )  # fmt: skip
            case "ItemAdded":
                await connection.execute(
                    "UPDATE order_summaries SET items = items + $2, total_cents = total_cents + $2 * $3 WHERE order_id = $1",
                    data["order_id"], data["quantity"], data["cents"],
                )  # fmt: skip
            case "OrderSubmitted":
                await connection.execute("UPDATE order_summaries SET status = 'submitted' WHERE order_id = $1", data["order_id"])


@pytest.mark.parametrize("batch", [1, 3, 100])
async def test_the_summary_projection(store: PostgresEventStore, pool: asyncpg.Pool, batch: int) -> None:
    handler, projection = OrderCommandHandler(store), OrderSummaryProjection(store, pool)
    await projection.create_tables()
    assert await projection.run(batch) == 0
    await place_orders(handler, "1", "2")
    assert await projection.run(batch) == 8
    await handler.create("3", "late")
    assert await OrderSummaryProjection(store, pool).run(batch) == 9  # another process goes on at the checkpoint
    assert await projection.run(batch) == 9
    assert [tuple(row) for row in await pool.fetch("SELECT * FROM order_summaries ORDER BY order_id")] == [
        ("1", "customer-1", "submitted", 3, 1600), ("2", "customer-2", "submitted", 3, 1600), ("3", "late", "open", 0, 0),
    ]  # fmt: skip


async def test_the_projection_while_orders_are_placed(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    """It stops at the end of the log, wherever that is; begun again and again, it misses no event and counts none twice."""
    handler, projection = OrderCommandHandler(store), OrderSummaryProjection(store, pool)
    await projection.create_tables()
    placing = asyncio.gather(*(place_orders(handler, f"{n}") for n in range(20)))
    runs = 0
    while not placing.done():
        await projection.run(7)
        runs += 1
    await placing
    assert await projection.run(7) == 80
    assert runs > 1
    rows = [tuple(row) for row in await pool.fetch("SELECT status, items, total_cents FROM order_summaries")]
    assert rows == [("submitted", 3, 1600)] * 20


# The repository with snapshots


class OrderRepository:
    """Loads an order from its last snapshot and the events after it, and takes a snapshot every 50 events."""

    SNAPSHOT_EVERY = 50
    SCHEMA_VERSION = 1

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.events_read = 0

    async def load(self, order_id: str) -> Order:
        stream_id = f"Order-{order_id}"
        snapshot = await self.store.load_snapshot(stream_id, schema_version=self.SCHEMA_VERSION)
        if snapshot is None:
            order, events = Order(order_id), await self.store.read_stream(stream_id)
        else:
            order = Order(**{**snapshot.state, "version": snapshot.version})
            events = await self.store.read_stream(stream_id, from_version=snapshot.version + 1)
        for event in events:
            order = order.apply(event)
        self.events_read = len(events)
        return order

    async def save(self, order: Order, events: list[Event]) -> Order:
        stream_id = f"Order-{order.order_id}"
        before = order.version
        for event in await self.store.append(stream_id, "Order", events, expected_version=order.version):
            order = order.apply(event)
        if order.version // self.SNAPSHOT_EVERY > before // self.SNAPSHOT_EVERY:
            state = asdict(order)
            await self.store.save_snapshot(stream_id, "Order", state, version=order.version, schema_version=self.SCHEMA_VERSION)
        return order


def item(order_id: str, n: int) -> Event:
    return Event(event_type="ItemAdded", data={"order_id": order_id, "sku": f"sku-{n % 7}", "quantity": 1, "cents": n})


async def order_of(repository: OrderRepository, order_id: str, events: int) -> Order:
    """Make an order with that many events, appended one by one."""
    created = Event(event_type="OrderCreated", data={"order_id": order_id, "customer_id": "c"})
    order = await repository.save(Order(order_id), [created])
    for n in range(1, events):
        order = await repository.save(order, [item(order_id, n)])
    return order


@pytest.mark.parametrize(
    ("events", "version", "read"), [(49, None, 49), (50, 50, 0), (51, 50, 1), (99, 50, 49), (100, 100, 0), (120, 100, 20)]
)
async def test_the_repository_snapshots_every_50_events(
    store: PostgresEventStore, events: int, version: int | None, read: int
) -> None:
    repository = OrderRepository(store)
    saved = await order_of(repository, "1", events)
    snapshot = await store.load_snapshot("Order-1")
    assert (snapshot and snapshot.version) == version
    assert await repository.load("1") == saved == await OrderCommandHandler(store).load("1")
    assert repository.events_read == read
    assert saved.version == events


async def test_a_snapshot_that_is_passed_over_by_several_events(store: PostgresEventStore) -> None:
    repository = OrderRepository(store)
    order = await order_of(repository, "1", 48)
    order = await repository.save(order, [item("1", n) for n in range(5)])
    snapshot = await store.load_snapshot("Order-1")
    assert snapshot is not None
    assert snapshot.version == 53
    assert await repository.load("1") == order


# Mistakes


async def test_a_stale_version_is_told_with_the_right_one(store: PostgresEventStore) -> None:
    handler = OrderCommandHandler(store)
    await handler.create("1", "c")
    stale = await handler.load("1")
    await handler.add_item("1", "tea", 1, 100)
    with pytest.raises(ConcurrencyError) as caught:
        await store.append("Order-1", "Order", [item("1", 1)], expected_version=stale.version)
    assert (caught.value.stream_id, caught.value.expected, caught.value.actual) == ("Order-1", 1, 2)
    assert "read the stream again" in str(caught.value)
    assert (await handler.load("1")).version == 2


@pytest.mark.parametrize("expected", [-1, None, "0", 1.0, True])
async def test_versions_as_other_stores_count_them(store: PostgresEventStore, expected: Any) -> None:
    """-1 means "no stream" elsewhere, None "any"; here it must be spelled out."""
    with pytest.raises(InvalidEvent, match=r"0 for a new stream.*, ANY, NO_STREAM or STREAM_EXISTS"):
        await store.append("Order-1", "Order", [item("1", 1)], expected_version=expected)
    assert await store.last_position() == 0


async def test_the_number_of_events_counts_from_one(store: PostgresEventStore) -> None:
    """Whoever takes the index of the last event for its version is one behind."""
    await OrderCommandHandler(store).create("1", "c")
    events = await store.read_stream("Order-1")
    with pytest.raises(ConcurrencyError, match="is at version 1, not at the expected 0"):
        await store.append("Order-1", "Order", [item("1", 1)], expected_version=len(events) - 1)


async def test_an_expected_version_is_never_left_out(store: PostgresEventStore) -> None:
    with pytest.raises(TypeError, match="expected_version"):
        await store.append("Order-1", "Order", [item("1", 1)])  # type: ignore[call-arg]


async def test_an_event_without_a_schema(store: PostgresEventStore) -> None:
    with pytest.raises(UnknownEventType, match="OrderCancelled") as caught:
        await store.append("Order-1", "Order", [Event(event_type="OrderCancelled", data={})], expected_version=0)
    assert caught.value.event_type == "OrderCancelled"
    assert "register" in str(caught.value)
    assert await store.read_stream("Order-1") == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"order_id": "1"}, "customer_id"),
        ({"order_id": "1", "customer_id": 7}, "customer_id"),
        ({"order_id": uuid4(), "customer_id": "c"}, "order_id"),
        ({"order_id": "1", "customer_id": "c", "vip": True}, "vip"),
    ],
)
async def test_data_that_does_not_fit_its_schema(store: PostgresEventStore, data: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidEvent, match=says):
        await store.append("Order-1", "Order", [Event(event_type="OrderCreated", data=data)], expected_version=0)
    assert await store.last_position() == 0


@pytest.mark.parametrize(
    ("stream_id", "stream_type", "says"),
    [
        ("1", "Order", "named {Type}-{id}"),
        ("Order-1", "Order-1", "stream_type='Order-1'"),
        ("Order-1", "Orders", "stream_type='Orders'"),
    ],
)
async def test_a_stream_by_a_wrong_name(store: PostgresEventStore, stream_id: str, stream_type: str, says: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        await store.append(stream_id, stream_type, [item("1", 1)], expected_version=0)
    assert says in str(caught.value)


async def test_one_event_in_place_of_a_list(store: PostgresEventStore) -> None:
    with pytest.raises(InvalidEvent, match="given as a list, not as Event"):
        await store.append("Order-1", "Order", item("1", 1), expected_version=0)  # type: ignore[arg-type]


async def test_events_are_not_changed(store: PostgresEventStore) -> None:
    [recorded] = await store.append("Order-1", "Order", [item("1", 1)], expected_version=0)
    with pytest.raises(AttributeError, match="immutable"):
        recorded.version = 7  # type: ignore[misc]


class OrderRepositoryV2(OrderRepository):
    """After `Order` has got other fields: what older programs saved is read no more."""

    SCHEMA_VERSION = 2


async def test_a_snapshot_of_an_old_shape_is_left_alone(store: PostgresEventStore) -> None:
    """The old program saved other fields; the new one replays from the beginning, and its own snapshots then win."""
    old, new = OrderRepository(store), OrderRepositoryV2(store)
    await order_of(old, "1", 50)
    await store.save_snapshot("Order-1", "Order", {"id": "1", "sum": 5}, version=51)
    with pytest.raises(TypeError, match="unexpected keyword argument 'id'"):  # what trusting it would come to
        await old.load("1")
    order = await new.load("1")
    assert (order.version, new.events_read) == (50, 50)
    for n in range(50):
        order = await new.save(order, [item("1", n)])
    assert await new.load("1") == order
    assert new.events_read == 0
    await store.save_snapshot("Order-1", "Order", {"id": "1", "sum": 6}, version=101)  # the old program still runs somewhere
    assert await new.load("1") == order
    assert new.events_read == 0


async def test_a_state_that_is_not_json(store: PostgresEventStore) -> None:
    with pytest.raises(InvalidEvent, match="the snapshot is not JSON") as caught:
        await store.save_snapshot("Order-1", "Order", {"lines": {1, 2}, "sum": object()}, version=1)
    assert caught.value.stream_id == "Order-1"
    assert await store.load_snapshot("Order-1") is None
