"""The outbox's relay as a process of its own, with small batches and quick trimming: for tests that kill it."""

from __future__ import annotations

import asyncio
import logging
import sys

from eventspine import OutboxRelay, PostgresOutbox
from eventspine.connect import open_pool


async def main(dsn: str, kafka: str, topic_prefix: str) -> None:
    async with open_pool(dsn) as pool:
        await OutboxRelay(
            PostgresOutbox(pool), kafka, topic_prefix=topic_prefix, batch_events=20, lease_s=1.0, trim_every_s=0.1
        ).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(*sys.argv[1:]))
