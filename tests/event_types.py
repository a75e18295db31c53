"""The event types that tests append."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

from eventspine import Event, EventType


def record(name: str, *fields: tuple[str, Any] | tuple[str, Any, Any], **more: Any) -> dict[str, Any]:
    """Return an Avro record schema; a field is (name, type) or (name, type, default)."""
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": f[0], "type": f[1]} | ({"default": f[2]} if len(f) > 2 else {}) for f in fields],
        **more,
    }


def logical(underlying: str, logical_type: str, **more: Any) -> dict[str, Any]:
    return {"type": underlying, "logicalType": logical_type, **more}


ORDER_PLACED = EventType.from_schema(
    record("OrderPlaced", ("customer_id", "string"), ("total_cents", "long"), ("note", ["null", "string"], None))
)
ORDER_PAID = EventType.from_schema(record("OrderPaid", ("amount_cents", "long")))
ORDER_SHIPPED = EventType.from_schema(record("OrderShipped", ("carrier", "string")))
ORDER_SHIPPED_V2 = EventType.from_schema(
    record("OrderShipped", ("carrier", "string"), ("tracking_code", "string", "")), schema_version=2
)
ADDRESS = record("Address", ("street", "string"), ("zip", ["null", "string"], None))
EVERYTHING = EventType.from_schema(
    record(
        "EverythingHappened",
        ("id", logical("string", "uuid")),
        ("price", logical("bytes", "decimal", precision=12, scale=2)),
        ("at", logical("long", "timestamp-micros")),
        ("day", logical("int", "date")),
        ("level", {"type": "enum", "name": "Level", "symbols": ["LOW", "HIGH"]}),
        ("home", ADDRESS),
        ("work", ["null", "Address"], None),
        ("choice", ["null", "long", "string", "boolean"], None),
        ("counts", {"type": "map", "values": "long"}),
        ("places", {"type": "array", "items": "Address"}),
        ("digest", {"type": "fixed", "name": "Digest", "size": 4}),
        ("ratio", "double"),
        ("small", "int"),
        namespace="org.example.shop",
    )
)

EVENT_TYPES = [ORDER_PLACED, ORDER_PAID, ORDER_SHIPPED, ORDER_SHIPPED_V2, EVERYTHING]


def placed(
    customer_id: str = "c1", total_cents: int = 100, *, event_id: UUID | None = None, tags: tuple[str, ...] = (), **metadata: Any
) -> Event:
    data = {"customer_id": customer_id, "total_cents": total_cents}
    event = Event(event_type="OrderPlaced", data=data, metadata=metadata, tags=tags)
    return event if event_id is None else msgspec.structs.replace(event, event_id=event_id)


def paid(amount_cents: int = 100, **metadata: Any) -> Event:
    return Event(event_type="OrderPaid", data={"amount_cents": amount_cents}, metadata=metadata)
