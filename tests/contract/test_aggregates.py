"""Repositories, snapshots and command handlers, on every backend."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from eventspine import (
    ANY,
    Aggregate,
    ConcurrencyError,
    Decider,
    Event,
    EventspineError,
    EventStore,
    Repository,
    SnapshottedRepository,
    UnknownEventType,
    handle_command,
    on,
)
from tests.contract.conftest import Backend
from tests.event_types import EVENT_TYPES, paid, placed


class Refused(Exception):
    pass


class Order(Aggregate):
    """Counts its payments."""

    customer: str = ""
    paid: int = 0

    def place(self, customer: str) -> None:
        if self.customer:
            raise Refused("placed already")
        self.record("OrderPlaced", placed(customer).data)

    def pay(self) -> None:
        self.record("OrderPaid", paid(self.paid).data)

    @on("OrderPlaced")
    def _placed(self, event: Event) -> None:
        self.customer = event.data["customer_id"]

    @on("OrderPaid")
    def _paid(self, event: Event) -> None:
        self.paid += 1


class NewOrder(Order):
    """The same streams after a change of the state's shape."""

    stream_type = "Order"
    snapshot_version = 2
    tips: int = 0


class Rival:
    """A store with somebody who is faster: between our read and our append, an event is appended, `times` times."""

    def __init__(self, store: EventStore, times: int) -> None:
        self._store = store
        self.times_left = times

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def append(self, stream_id: str, stream_type: str, events: Any, expected_version: Any) -> list[Event]:
        if self.times_left:
            self.times_left -= 1
            await self._store.append(stream_id, stream_type, [paid()], ANY)
        return await self._store.append(stream_id, stream_type, events, expected_version)


def rivalled(store: EventStore, times: int) -> Any:
    return Rival(store, times)


def decide(payments: int, most: int) -> list[Event]:
    if payments >= most:
        raise Refused(f"{payments} payments are enough")
    return [paid(payments)]


PAYMENTS: Decider[int, int] = Decider("Order", 0, decide, lambda payments, event: payments + 1)


async def test_load_and_save(store: EventStore) -> None:
    orders = Repository(store, Order)
    order = await orders.load("1")
    assert (order.id, order.version, order.customer) == ("1", 0, "")
    order.place("c1")
    order.pay()
    recorded = await orders.save(order, metadata={"user_id": "u1", "correlation_id": "k"})
    assert [(event.version, event.user_id, event.correlation_id) for event in recorded] == [(1, "u1", "k"), (2, "u1", "k")]
    assert await store.read_stream("Order-1") == recorded
    assert (order.version, order.pending) == (2, ())
    assert await orders.save(order) == []
    order.pay()
    await orders.save(order)
    again = await orders.load("1")
    assert (again.version, again.customer, again.paid) == (3, "c1", 2)


async def test_an_events_own_metadata_wins(store: EventStore) -> None:
    orders = Repository(store, Order)
    order = await orders.load("1")
    order.record("OrderPaid", paid().data, metadata={"user_id": "own"})
    [event] = await orders.save(order, metadata={"user_id": "u1", "why": "test"})
    assert (event.user_id, event.metadata["why"]) == ("own", "test")


async def test_a_conflict_is_told_and_nothing_is_lost(store: EventStore) -> None:
    orders = Repository(store, Order)
    order = await orders.load("1")
    order.pay()
    await store.append("Order-1", "Order", [paid()], ANY)
    with pytest.raises(ConcurrencyError):
        await orders.save(order)
    assert len(order.pending) == 1
    assert len(await store.read_stream("Order-1")) == 1


async def test_saving_again_after_an_unknown_outcome_makes_no_duplicate(store: EventStore) -> None:
    orders = Repository(store, Order)
    order = await orders.load("1")
    order.pay()
    await store.append("Order-1", "Order", order.pending, 0)  # recorded, but we did not hear of it
    assert [event.version for event in await orders.save(order)] == [1]
    assert (order.version, len(await store.read_stream("Order-1"))) == (1, 1)


async def test_execute_decides_anew_on_the_newest_state(store: EventStore) -> None:
    orders = Repository(rivalled(store, 3), Order)
    seen = []

    def pay(order: Order) -> None:
        seen.append(order.paid)
        order.pay()

    order = await orders.execute("1", pay)
    assert (seen, order.version, order.paid) == ([0, 1, 2, 3], 4, 4)


async def test_execute_takes_commands_that_wait(store: EventStore) -> None:
    async def place(order: Order) -> None:
        await asyncio.sleep(0)
        order.place("c1")

    orders = Repository(store, Order)
    assert (await orders.execute("1", place)).version == 1
    with pytest.raises(Refused):
        await orders.execute("1", place)
    assert len(await store.read_stream("Order-1")) == 1


async def test_execute_gives_up(store: EventStore) -> None:
    rival = rivalled(store, 100)
    with pytest.raises(ConcurrencyError):
        await Repository(rival, Order, tries=3).execute("1", Order.pay)
    assert rival.times_left == 97
    assert len(await store.read_stream("Order-1")) == 3


async def test_commands_at_once_all_pass(store: EventStore, backend: Backend) -> None:
    stores = [store, await backend.open(*EVENT_TYPES)]
    await asyncio.gather(*(Repository(stores[n % 2], Order, tries=50).execute("1", Order.pay) for n in range(20)))
    assert (await Repository(store, Order).load("1")).paid == 20


async def test_an_event_without_a_schema_is_refused(store: EventStore) -> None:
    orders = Repository(store, Order)
    order = await orders.load("1")
    order.record("OrderForgotten", {})
    with pytest.raises(UnknownEventType, match="no schema is registered"):
        await orders.save(order)


# Deciders


async def test_a_decider_decides_on_the_stream(store: EventStore) -> None:
    assert [event.version for event in await handle_command(store, PAYMENTS, "1", 2)] == [1]
    [second] = await handle_command(store, PAYMENTS, "1", 2, metadata={"user_id": "u1"})
    assert (second.version, second.user_id) == (2, "u1")
    with pytest.raises(Refused, match="2 payments are enough"):
        await handle_command(store, PAYMENTS, "1", 2)
    nothing: Decider[int, int] = Decider("Order", 0, lambda state, command: [], PAYMENTS.evolve)
    assert await handle_command(store, nothing, "1", 2) == []


async def test_a_decider_decides_again_after_a_conflict(store: EventStore) -> None:
    rival = rivalled(store, 2)
    assert [event.version for event in await handle_command(rival, PAYMENTS, "1", 9)] == [3]
    with pytest.raises(Refused, match="4 payments"):
        await handle_command(rivalled(store, 1), PAYMENTS, "1", 4)
    with pytest.raises(ConcurrencyError):
        await handle_command(rivalled(store, 100), PAYMENTS, "1", 99, tries=2)


# Snapshots


async def pay(orders: Repository[Any], times: int) -> None:
    for _ in range(times):
        await orders.execute("1", Order.pay)


async def test_a_snapshot_every_so_many_events(store: EventStore) -> None:
    orders = SnapshottedRepository(store, Order, every=10)
    order = await orders.load("1")
    for _ in range(9):
        order.pay()
    await orders.save(order)
    assert await store.load_snapshot("Order-1") is None
    for _ in range(25):
        order.pay()
    await orders.save(order)  # beyond 10, 20 and 30
    snapshot = await store.load_snapshot("Order-1")
    assert snapshot is not None
    assert (snapshot.version, snapshot.state["state"]) == (34, {"customer": "", "paid": 34})
    await pay(orders, 5)
    loaded = await orders.load("1")
    assert (loaded.version, loaded.paid) == (39, 39)
    await pay(orders, 1)
    snapshot = await store.load_snapshot("Order-1")
    assert snapshot is not None
    assert snapshot.version == 40


async def test_only_what_follows_the_snapshot_is_replayed(store: EventStore) -> None:
    orders = SnapshottedRepository(store, Order, every=10)
    await pay(orders, 12)
    replayed: list[int] = []

    class Watched(Order):
        stream_type = "Order"

        def replay(self, event: Event) -> None:
            replayed.append(event.version)
            super().replay(event)

    watched = await SnapshottedRepository(store, Watched, every=10).load("1")
    assert (replayed, watched.version, watched.paid) == ([11, 12], 12, 12)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"last_event_id": "another", "state": {"customer": "", "paid": 99}},
        {"last_event_id": None, "state": {"customer": "", "paid": "many"}},
        {"last_event_id": None, "state": {"paid": 99}},
    ],
)
async def test_a_snapshot_that_does_not_fit_is_ignored(
    store: EventStore, state: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    orders = SnapshottedRepository(store, Order, every=10)
    await pay(orders, 12)
    events = await store.read_stream("Order-1")
    if state.get("last_event_id", "") is None:
        state = state | {"last_event_id": str(events[10].event_id)}
    await store.save_snapshot("Order-1", "Order", state, version=11)
    with caplog.at_level(logging.WARNING):
        assert (await orders.load("1")).paid == 12
    assert "snapshot Order-1@11 is ignored" in caplog.text


async def test_a_snapshot_beyond_the_stream_is_ignored(store: EventStore) -> None:
    orders = SnapshottedRepository(store, Order, every=10)
    await pay(orders, 3)
    state = {"last_event_id": "x", "state": {"customer": "", "paid": 99}}
    await store.save_snapshot("Order-1", "Order", state, version=50)
    assert (await orders.load("1")).paid == 3


async def test_a_snapshot_of_an_old_shape_is_ignored_and_replaced(store: EventStore) -> None:
    await pay(SnapshottedRepository(store, Order, every=10), 12)
    new = SnapshottedRepository(store, NewOrder, every=10)
    assert (await new.load("1")).paid == 12
    await pay(new, 8)
    snapshot = await store.load_snapshot("Order-1", schema_version=2)
    assert snapshot is not None
    assert (snapshot.version, snapshot.state["state"]) == (20, {"customer": "", "paid": 20, "tips": 0})
    assert await store.load_snapshot("Order-1") is None


async def test_a_snapshot_that_can_not_be_saved_harms_nobody(store: EventStore, caplog: pytest.LogCaptureFixture) -> None:
    class Unfit(Order):
        stream_type = "Order"

        def snapshot(self) -> dict[str, Any]:
            return super().snapshot() | ({"loop": object()} if self.paid else {})

    orders = SnapshottedRepository(store, Unfit, every=1)
    with caplog.at_level(logging.WARNING):
        assert (await orders.execute("1", Unfit.pay)).version == 1
    assert "no snapshot of Order-1@1" in caplog.text
    assert (await orders.load("1")).paid == 1


async def test_state_that_does_not_survive_json_is_told_at_once(store: EventStore) -> None:
    class Opaque(Aggregate):
        inner: object = object()

    with pytest.raises(EventspineError, match="the state of Opaque does not survive JSON"):
        SnapshottedRepository(store, Opaque)
    with pytest.raises(EventspineError, match="every=0"):
        SnapshottedRepository(store, Order, every=0)
