"""`python -m eventspine.examples.orders`: one order's life, on the store of EVENTSPINE_POSTGRES_DSN."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.resources import files
from uuid import uuid4

from eventspine import EventspineError, EventStore, connect, load_event_types

from .commands import Command, PayOrder, PlaceOrder, Refused, ShipOrder, handle


async def main(dsn: str) -> None:
    order_id = uuid4().hex[:8]
    event_types = load_event_types(files("eventspine.examples.orders") / "schemas")
    async with connect(dsn, event_types=event_types) as store:
        await say(store, PlaceOrder(order_id, "cust-1", 5000))
        await say(store, ShipOrder(order_id, "post"))
        print("two clerks take the payment at the same moment:")
        # Both read version 1 and append at it. One is too late, reads again, and finds the order paid.
        await asyncio.gather(*(say(store, PayOrder(order_id, 5000)) for _ in range(2)))
        await say(store, ShipOrder(order_id, "post"))
        print("the stream:")
        for event in await store.read_stream(f"Order-{order_id}"):
            print(f"{event.global_position:>6}  {event.stream_id}@{event.version}  {event.event_type:<12}  {dict(event.data)}")


async def say(store: EventStore, command: Command) -> None:
    try:
        recorded = await handle(store, command)
    except Refused as refused:
        print(f"  {type(command).__name__}: refused: {refused}")
    else:
        print(f"  {type(command).__name__}: {', '.join(event.event_type for event in recorded)}")


if __name__ == "__main__":
    if "EVENTSPINE_POSTGRES_DSN" not in os.environ:
        sys.exit("set EVENTSPINE_POSTGRES_DSN, for example to what `eventspine up` prints")
    try:
        asyncio.run(main(os.environ["EVENTSPINE_POSTGRES_DSN"]))
    except EventspineError as error:
        sys.exit(f"error: {error}")
