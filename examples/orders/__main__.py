"""`python -m eventspine.examples.orders`: one order's life, on the store of EVENTSPINE_POSTGRES_DSN."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.resources import files
from uuid import uuid4

from ...connect import connect
from ...schemas import load_event_types
from .commands import PayOrder, PlaceOrder, Refused, ShipOrder, handle


async def main(dsn: str) -> None:
    order_id = uuid4().hex[:8]
    event_types = load_event_types(files("eventspine.examples.orders") / "schemas")
    async with connect(dsn, event_types=event_types) as store:
        await handle(store, PlaceOrder(order_id, "cust-1", 5000))
        try:
            await handle(store, ShipOrder(order_id, "post"))
        except Refused as refused:
            print(f"refused: {refused}")
        # Two programs pay at once: one wins, the other reads again and finds the order paid.
        payments = (handle(store, PayOrder(order_id, 5000)) for _ in range(2))
        for outcome in await asyncio.gather(*payments, return_exceptions=True):
            print(f"refused: {outcome}" if isinstance(outcome, Refused) else "paid")
        await handle(store, ShipOrder(order_id, "post"))
        for event in await store.read_stream(f"Order-{order_id}"):
            print(f"{event.global_position:>6}  {event.stream_id}@{event.version}  {event.event_type}  {dict(event.data)}")


if __name__ == "__main__":
    if "EVENTSPINE_POSTGRES_DSN" not in os.environ:
        sys.exit("set EVENTSPINE_POSTGRES_DSN, for example to what `eventspine up` prints")
    asyncio.run(main(os.environ["EVENTSPINE_POSTGRES_DSN"]))
