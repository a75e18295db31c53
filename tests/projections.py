"""The projection that the fault tests run: what it must hold can be said in SQL over the log."""

from __future__ import annotations

from eventspine import Event, Projection, Table, TableWriter, on


class OrderTotals(Projection):
    """Per customer a count and a sum (increments), per stream the last event (upserts)."""

    totals = Table(
        "order_totals", columns={"customer_id": "text", "orders": "bigint", "total_cents": "bigint"}, key="customer_id"
    )
    states = Table("order_states", columns={"stream_id": "text", "version": "bigint", "last_event": "text"}, key="stream_id")

    @on("OrderPlaced")
    def placed(self, event: Event, totals: TableWriter, states: TableWriter) -> None:
        totals.increment(customer_id=event.data["customer_id"], orders=1, total_cents=event.data["total_cents"])
        self.moved(event, totals, states)

    @on("OrderPaid", "OrderShipped")
    def moved(self, event: Event, _: TableWriter, states: TableWriter) -> None:
        states.upsert(stream_id=event.stream_id, version=event.version, last_event=event.event_type)
