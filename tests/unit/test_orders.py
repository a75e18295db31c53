"""The decider of the orders example: given what happened, when a command comes, then this happens, or it is refused."""

from __future__ import annotations

from functools import reduce
from importlib.resources import files

import pytest

from eventspine import Event, MemoryReadModel, load_event_types
from eventspine.examples.orders import OrderSummary
from eventspine.examples.orders.commands import Command, Order, PayOrder, PlaceOrder, Refused, ShipOrder, decide, evolve
from eventspine.schemas import Codec, PinnedType

PLACED = Event(event_type="OrderPlaced", data={"order_id": "1", "customer_id": "c", "total_cents": 500})
PAID = Event(event_type="OrderPaid", data={"order_id": "1", "amount_cents": 500})
SHIPPED = Event(event_type="OrderShipped", data={"order_id": "1", "carrier": "post"})
FOREIGN = Event(event_type="OrderPraised", data={})

PLACE, PAY, SHIP = PlaceOrder("1", "c", 500), PayOrder("1", 500), ShipOrder("1", "post")


def after(*events: Event) -> Order:
    return reduce(evolve, events, Order())


@pytest.mark.parametrize(
    ("given", "command", "then"),
    [
        ([], PLACE, PLACED),
        ([PLACED], PAY, PAID),
        ([PLACED, PAID], SHIP, SHIPPED),
        ([PLACED, FOREIGN], PAY, PAID),
    ],
)
def test_accepted(given: list[Event], command: Command, then: Event) -> None:
    (decided,) = decide(after(*given), command)
    assert (decided.event_type, decided.data) == (then.event_type, then.data)


@pytest.mark.parametrize(
    ("given", "command", "why"),
    [
        ([PLACED], PLACE, "placed already"),
        ([PLACED, PAID, SHIPPED], PLACE, "shipped already"),
        ([], PlaceOrder("1", "c", 0), "cost something"),
        ([], PlaceOrder("1", "c", -1), "cost something"),
        ([], PAY, "only a placed one"),
        ([PLACED, PAID], PAY, "only a placed one"),
        ([PLACED], PayOrder("1", 499), "costs 500 cents, not 499"),
        ([], SHIP, "only a paid one"),
        ([PLACED], SHIP, "only a paid one"),
        ([PLACED, PAID, SHIPPED], SHIP, "only a paid one"),
    ],
)
def test_refused(given: list[Event], command: Command, why: str) -> None:
    with pytest.raises(Refused, match=why):
        decide(after(*given), command)


def test_what_is_decided_fits_the_schemas() -> None:
    codec = Codec()
    event_types = load_event_types(files("eventspine.examples.orders") / "schemas")
    codec.add(PinnedType(number, each) for number, each in enumerate(event_types, 1))
    history: list[Event] = []
    for command in (PLACE, PAY, SHIP):
        history += decide(after(*history), command)
    for event in history:
        codec.encode(event.event_type, 0, event.data)


def test_the_read_model_folds_an_order_into_one_row() -> None:
    model = MemoryReadModel(OrderSummary())
    model.given("Order-1", PLACED, PAID, SHIPPED)
    (row,) = model.rows(OrderSummary.table)
    assert sorted(map(str, row.values())) == ["1", "500", "c", "post", "shipped"]
