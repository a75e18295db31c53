"""The read model of orders: `eventspine consume eventspine.examples.orders:OrderSummary`."""

from __future__ import annotations

from eventspine import Event, Projection, Table, TableWriter, on

__all__ = ["OrderSummary"]


class OrderSummary(Projection):
    """One row for each order."""

    categories = ("Order",)
    table = Table(
        "order_summaries",
        columns={"id": "text", "customer": "text", "total": "bigint", "status": "text", "carrier": "text"},
        key="id",
    )

    @on("OrderPlaced")
    def placed(self, event: Event, orders: TableWriter) -> None:
        data = event.data
        orders.upsert(id=data["order_id"], customer=data["customer_id"], total=data["total_cents"], status="placed")

    @on("OrderPaid")
    def paid(self, event: Event, orders: TableWriter) -> None:
        orders.upsert(id=event.data["order_id"], status="paid")

    @on("OrderShipped")
    def shipped(self, event: Event, orders: TableWriter) -> None:
        orders.upsert(id=event.data["order_id"], status="shipped", carrier=event.data["carrier"])
