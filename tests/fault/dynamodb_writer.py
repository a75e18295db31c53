"""A process that appends to a DynamoDB table until it is killed, and says what was recorded: `DSN NAME`."""

from __future__ import annotations

import asyncio
import sys
from itertools import count

from eventspine import ANY
from eventspine.store.dynamodb import DynamoDBEventStore, open_table
from tests.event_types import EVENT_TYPES, paid


async def main(dsn: str, name: str) -> None:
    async with open_table(dsn) as table:
        store = DynamoDBEventStore(table)
        await store.register(EVENT_TYPES)

        async def work(stream: int) -> None:
            for n in count():
                copies = await store.append(f"Order-{name}-{stream}", "Order", [paid(n), paid(n)], expected_version=ANY)
                print(*(copy.event_id for copy in copies), flush=True)

        async with asyncio.TaskGroup() as tasks:
            for stream in range(3):
                tasks.create_task(work(stream))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
