"""The reactions that integration and fault tests run: what they must record can be said of the log."""

from __future__ import annotations

import os
from datetime import timedelta

from eventspine import Context, Event, ProcessManager, Reactions, Webhook, by_stream, on


class Shipper(Reactions):
    """Ships each order that is paid: one event into a stream of its own."""

    name = "shipper"
    start = "beginning"
    categories = ("Order",)
    first_pause_s = 0.05

    @on("OrderPaid")
    async def paid(self, event: Event, context: Context) -> None:
        shipped = Event(event_type="OrderShipped", data={"carrier": str(event.data["amount_cents"])})
        context.append(f"Parcel-{by_stream(event)}", shipped)


class Fulfilment(ProcessManager):
    """Each order: reserve at `OrderPlaced` with a deadline, ship at `OrderPaid` and forget the deadline."""

    name = "fulfilment"
    start = "beginning"
    categories = ("Order", "Fulfilment")
    first_pause_s = 0.05
    status: str = "new"

    @on("OrderPlaced", by=by_stream)
    async def order_placed(self, event: Event, context: Context) -> None:
        if self.status == "new":
            self.record("OrderPlaced", {"customer_id": "reserved", "total_cents": event.data["total_cents"]})
            context.append(f"Stock-{self.id}", Event(event_type="OrderPaid", data={"amount_cents": 1}))
            overdue = Event(event_type="OrderShipped", data={"carrier": "overdue"})
            soon = not self.id.isdigit()  # these are never paid
            context.schedule(self.stream_id, overdue, after=timedelta(seconds=0.3 if soon else 300), key="deadline")

    @on("OrderPaid", by=by_stream)
    async def order_paid(self, event: Event, context: Context) -> None:
        if event.category == "Order":
            context.cancel("deadline")
            self.record("OrderPaid", {"amount_cents": event.data["amount_cents"]})

    @on("OrderPlaced")
    def _reserved(self, event: Event) -> None:
        self.status = "reserved"

    @on("OrderPaid")
    def _paid(self, event: Event) -> None:
        self.status = "paid"


if "WEBHOOK_URL" in os.environ:
    hooks = Webhook(
        os.environ["WEBHOOK_URL"],
        name="hooks",
        start="beginning",
        categories=("Order",),
        secret="whsec_" + "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0",
        first_pause_s=0.05,
        most_pause_s=0.5,
        max_attempts=200,
    )
