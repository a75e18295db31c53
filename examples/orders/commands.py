"""Commands of an order: decided from its stream alone, never from a read model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from eventspine import Decider, Event, EventStore, handle_command

__all__ = ["ORDER", "Command", "Order", "PayOrder", "PlaceOrder", "Refused", "ShipOrder", "decide", "evolve", "handle"]


class Refused(Exception):
    """A business rule forbids the command."""


@dataclass(frozen=True)
class Order:
    """What the rules need to know of an order."""

    status: str = "unknown"
    total_cents: int = 0


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str
    customer_id: str
    total_cents: int


@dataclass(frozen=True)
class PayOrder:
    order_id: str
    amount_cents: int


@dataclass(frozen=True)
class ShipOrder:
    order_id: str
    carrier: str


Command = PlaceOrder | PayOrder | ShipOrder


def evolve(order: Order, event: Event) -> Order:
    """Return the order after an event."""
    match event.event_type:
        case "OrderPlaced":
            return replace(order, status="placed", total_cents=event.data["total_cents"])
        case "OrderPaid":
            return replace(order, status="paid")
        case "OrderShipped":
            return replace(order, status="shipped")
    return order


def decide(order: Order, command: Command) -> list[Event]:
    """Return what happens when an order gets a command.

    Raises:
        Refused: a rule forbids it.
    """
    match command:
        case PlaceOrder(order_id, customer_id, total_cents):
            if order.status != "unknown":
                raise Refused(f"order {order_id} is {order.status} already")
            if total_cents <= 0:
                raise Refused("an order must cost something")
            data = {"order_id": order_id, "customer_id": customer_id, "total_cents": total_cents}
            return [Event(event_type="OrderPlaced", data=data)]
        case PayOrder(order_id, amount_cents):
            if order.status != "placed":
                raise Refused(f"order {order_id} is {order.status}; only a placed one can be paid")
            if amount_cents != order.total_cents:
                raise Refused(f"order {order_id} costs {order.total_cents} cents, not {amount_cents}")
            return [Event(event_type="OrderPaid", data={"order_id": order_id, "amount_cents": amount_cents})]
        case ShipOrder(order_id, carrier):
            if order.status != "paid":
                raise Refused(f"order {order_id} is {order.status}; only a paid one can be shipped")
            return [Event(event_type="OrderShipped", data={"order_id": order_id, "carrier": carrier})]


ORDER: Decider[Order, Command] = Decider("Order", Order(), decide, evolve)


async def handle(store: EventStore, command: Command) -> Sequence[Event]:
    """Carry out a command: read the stream, decide, append at the version that was read; on a conflict, do it over.

    Raises:
        Refused: a rule forbids it.
        ConcurrencyError: others were faster five times in a row.
    """
    return await handle_command(store, ORDER, command.order_id, command)
