"""What a batch comes to, without servers: rows that handlers read, poison events, policies."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import pytest

from eventspine import Event, MemoryReadModel, Projection, ProjectionError, Sql, SqlWriter, Table, TableWriter, on, on_batch
from eventspine.consumers.folding import fold, fold_batch
from eventspine.consumers.places import Item, Partition

P0 = Partition("events.Order", 0)


class Customers(Projection):
    """Reads its own rows: an order's customer is known from the order's first event."""

    orders = Table("orders", columns={"id": "text", "customer": "text", "cents": "bigint"}, key="id")
    customers = Table("customers", columns={"id": "text", "paid": "bigint", "largest": "bigint"}, key="id")

    @on("Placed")
    def placed(self, event: Event, orders: TableWriter, customers: TableWriter) -> None:
        orders.insert(id=event.stream_id, customer=event.data["customer"], cents=event.data["cents"])

    @on("Paid")
    def paid(self, event: Event, orders: TableWriter, customers: TableWriter) -> None:
        order = orders.get(id=event.stream_id)
        assert order is not None
        customer = customers.get(id=order["customer"]) or {"paid": 0, "largest": 0}
        customers.upsert(
            id=order["customer"], paid=customer["paid"] + order["cents"], largest=max(customer["largest"], order["cents"])
        )

    @on("Cancelled")
    def cancelled(self, event: Event, orders: TableWriter, customers: TableWriter) -> None:
        orders.delete(id=event.stream_id)


def event(kind: str, stream_id: str = "Order-1", **data: Any) -> Event:
    return Event(event_type=kind, data=data, stream_id=stream_id)


@pytest.mark.parametrize("seed", range(30))
def test_batches_of_any_size_come_to_the_same(seed: int) -> None:
    chance = random.Random(seed)
    events: list[Event] = []
    expected: dict[str, tuple[int, int]] = {}
    for number in range(60):
        stream, customer, cents = f"Order-{number}", f"c{chance.randint(1, 4)}", chance.randint(1, 99)
        events.append(event("Placed", stream, customer=customer, cents=cents))
        for _ in range(chance.randint(0, 2)):
            events.insert(chance.randint(events.index(events[-1]) + 1, len(events)), event("Paid", stream))
            paid, largest = expected.get(customer, (0, 0))
            expected[customer] = paid + cents, max(largest, cents)
    model, left = MemoryReadModel(Customers()), events
    while left:
        size = chance.randint(1, 40)
        model.apply(*left[:size])
        left = left[size:]
    assert {row["id"]: (row["paid"], row["largest"]) for row in model.rows("customers")} == expected


def test_rows_that_are_read_are_asked_for_by_key_all_at_once() -> None:
    events = [event("Placed", "Order-1", customer="a", cents=1), *(event("Paid", f"Order-{number}") for number in range(1, 5))]
    folded = fold(Customers(), events)
    assert folded.missing == {"orders": {("Order-2",), ("Order-3",), ("Order-4",)}, "customers": {("a",)}}


def test_a_row_is_seen_as_the_events_before_left_it() -> None:
    table = Table("rows", columns={"id": "text", "n": "bigint", "name": "text"}, key="id")
    writer = table.writer({("a",): {"id": "a", "n": 5, "name": "x"}, ("b",): None})
    writer.increment(id="a", n=2)
    assert writer.get(id="a") == {"id": "a", "n": 7, "name": "x"}
    writer.delete(id="a")
    assert writer.get(id="a") is None
    writer.upsert(id="a", name="y")
    assert writer.get(id="a") == {"id": "a", "n": None, "name": "y"}
    writer.update(id="b", n=1)
    assert writer.get(id="b") is None
    writer.insert(id="c", n=1)
    assert writer.get(id="c") == {"id": "c", "n": 1, "name": None}
    (seen := writer.get(id="c") or {})["n"] = 9
    assert writer.get(id="c") != seen


class Strict(Projection):
    """Fails where the data says so."""

    table = Table("seen", columns={"id": "text", "n": "bigint"}, key="id")

    @on("Seen")
    def seen(self, event: Event, table: TableWriter) -> None:
        table.increment(id=event.stream_id, n=1)
        if event.data.get("bad"):
            raise ValueError("bad")


class Lenient(Strict):
    poison = "skip"


class Halting(Strict):
    poison = "halt"


def items(*events: Event) -> list[Item]:
    return [Item(P0, number, number + 1, 0, each.event_type, each.stream_id, each) for number, each in enumerate(events)]


BATCH = [
    event("Seen", "Order-1"),
    event("Seen", "Order-2", bad=True),
    event("Seen", "Order-2"),
    event("Seen", "Order-3", bad=True),
    event("Seen", "Order-1"),
    event("Seen", "Order-2", bad=True),
]


def test_a_poison_event_parks_its_stream_and_no_other() -> None:
    folded = fold_batch(Strict(), items(*BATCH), {}, {})
    assert [(aside.item.position, aside.state) for aside in folded.asides] == [
        (2, "parked"),
        (3, "waiting"),
        (4, "parked"),
        (6, "waiting"),
    ]
    assert [write.rows for write in folded.writes] == [[("Order-1", 2)]]
    assert "ValueError('bad')" in folded.asides[0].reason


def test_what_follows_in_a_parked_stream_waits() -> None:
    folded = fold_batch(Strict(), items(*BATCH[:1], *BATCH[4:5]), {}, {P0: {"Order-1"}})
    assert [aside.state for aside in folded.asides] == ["waiting", "waiting"]
    assert not folded.writes


def test_skip_goes_on_behind_and_halt_does_not() -> None:
    folded = fold_batch(Lenient(), items(*BATCH), {}, {})
    assert [(aside.item.position, aside.state) for aside in folded.asides] == [(2, "skipped"), (4, "skipped"), (6, "skipped")]
    assert [write.rows for write in folded.writes] == [[("Order-1", 2), ("Order-2", 1)]]
    with pytest.raises(ProjectionError, match=r"failed at Seen .*Order-2.*mend the handler"):
        fold_batch(Halting(), items(*BATCH), {}, {})


def test_a_record_that_can_not_be_read_is_poison() -> None:
    unreadable = Item(P0, 0, 1, 0, "Seen", "Order-1", None, "3 bytes do not fit")
    folded = fold_batch(Strict(), [unreadable, *items(*BATCH[:1])], {}, {})
    assert [aside.state for aside in folded.asides] == ["parked", "waiting"]


def test_an_event_that_fails_once_is_applied() -> None:
    class Shaky(Projection):
        table = Table("shaky", columns={"id": "text", "n": "bigint"}, key="id")
        failures = 0

        @on("Seen")
        def seen(self, event: Event, table: TableWriter) -> None:
            table.increment(id="a", n=1)
            if event.stream_id == "Order-2" and not self.failures:
                self.failures += 1
                raise OSError("once")

    folded = fold_batch(Shaky(), items(event("Seen"), event("Seen", "Order-2"), event("Seen", "Order-3")), {}, {})
    assert not folded.asides
    assert [write.rows for write in folded.writes] == [[("a", 3)]]


def test_what_fails_before_it_writes_is_tried_again_at_once() -> None:
    """The others of its batch are handled once: a poison event does not make a batch three times the work."""

    class Careful(Projection):
        table = Table("careful", columns={"id": "text", "n": "bigint"}, key="id")

        def __init__(self, cured_by: int) -> None:
            self.calls: list[str] = []
            self.cured_by = cured_by

        @on("Seen")
        def seen(self, event: Event, table: TableWriter) -> None:
            self.calls.append(event.stream_id)
            if event.data.get("bad") and self.calls.count(event.stream_id) < self.cured_by:
                raise ValueError("bad")
            table.increment(id=event.stream_id, n=1)

    projection = Careful(cured_by=9)
    folded = fold_batch(projection, items(*BATCH), {}, {})
    assert projection.calls == ["Order-1", "Order-2", "Order-2", "Order-3", "Order-3", "Order-1"]
    assert [aside.state for aside in folded.asides] == ["parked", "waiting", "parked", "waiting"]
    assert [write.rows for write in folded.writes] == [[("Order-1", 2)]]

    projection = Careful(cured_by=2)
    folded = fold_batch(projection, items(*BATCH), {}, {})
    assert projection.calls == ["Order-1", "Order-2", "Order-2", "Order-2", "Order-3", "Order-3", "Order-1", "Order-2"]
    assert not folded.asides
    assert [write.rows for write in folded.writes] == [[("Order-1", 2), ("Order-2", 3), ("Order-3", 1)]]


def test_what_fails_is_not_kept_in_memory() -> None:
    """An exception holds the batch by its frames; consumers look for cycles rarely."""

    class Bad(Exception):
        """One that can be watched."""

    seen: list[weakref.ref[Bad]] = []

    class Failing(Projection):
        table = Table("failing", columns={"id": "text", "n": "bigint"}, key="id")

        @on("Seen")
        def seen(self, event: Event, table: TableWriter) -> None:
            if event.stream_id == "Order-2":
                table.increment(id=event.stream_id, n=1)
            error = Bad()
            seen.append(weakref.ref(error))
            try:
                raise error
            finally:
                del error

    gc.disable()
    try:
        folded = fold_batch(Failing(), items(*BATCH), {}, {})
        assert [aside.state for aside in folded.asides] == ["parked", "parked", "waiting", "parked", "waiting", "waiting"]
        assert {reference() for reference in seen} == {None}
    finally:
        gc.enable()


def test_poison_among_events_that_read() -> None:
    batch = items(
        event("Paid", "Order-9"),
        event("Placed", "Order-1", customer="a", cents=3),
        event("Paid", "Order-8"),
        event("Paid", "Order-1"),
    )
    rows: dict[str, Any] = {"orders": {("Order-8",): None, ("Order-9",): None}, "customers": {("a",): None}}
    folded = fold_batch(Customers(), batch, rows, {})
    assert [aside.item.stream_id for aside in folded.asides] == ["Order-9", "Order-8"]
    assert [write.rows for write in folded.writes] == [[("Order-1", 3, "a")], [("a", 3, 3)]]


def test_batch_handlers_and_sql() -> None:
    class Both(Projection):
        sql = Sql("CREATE TABLE IF NOT EXISTS sums (n bigint)")

        @on("Seen")
        def seen(self, event: Event, sql: SqlWriter) -> None:
            sql.execute("SELECT $1", event.stream_id)

        @on_batch("Seen", "Other")
        def all_of_them(self, events: list[Event], sql: SqlWriter) -> None:
            sql.execute("INSERT INTO sums VALUES ($1)", len(events))

    assert Both().handles("Other")
    folded = fold(Both(), [event("Seen"), event("Other"), event("Third")])
    assert folded.statements == [("SELECT $1", ("Order-1",)), ("INSERT INTO sums VALUES ($1)", (2,))]


def test_memory_refuses_a_second_insert_and_keeps_what_was_there() -> None:
    model = MemoryReadModel(Customers())
    model.given("Order-1", event("Placed", customer="a", cents=1))
    with pytest.raises(ProjectionError, match="is inserted"):
        model.given("Order-1", event("Placed", customer="b", cents=2))
    assert model.row("orders", "Order-1") == {"id": "Order-1", "customer": "a", "cents": 1}
    model.given("Order-1", event("Cancelled"))
    assert model.row("orders", "Order-1") is None


@pytest.mark.parametrize("keys", [["b", "c", "a"], [10, 9, 2], ["b", 1, "a"]])
def test_rows_are_written_in_one_order_of_their_keys(keys: list[Any]) -> None:
    """Two processes that touch the same rows lock them in the same order, whatever came first."""
    table = Table("things", columns={"id": "text", "n": "bigint", "m": "bigint"}, key="id")
    orders = []
    for order in (keys, keys[::-1]):
        writer = table.writer()
        for key in order:
            writer.upsert(id=key, n=1)
            writer.increment(m=2, id=key)
        (write,) = writer.flush()
        assert (write.columns, sorted(row[1:] for row in write.rows)) == (("id", "n", "m"), [(1, 2)] * 3)
        assert not writer.flush()
        orders.append([row[0] for row in write.rows])
    assert orders[0] == orders[1] != keys
