"""FastStream as its manual has it: a subscriber of single messages, or of batches, which its handler writes at once.

Offsets are committed behind the handler, by `AckPolicy.ACK`.

Source: https://faststream.ag2.ai/latest/kafka/Subscriber/batch_subscriber/ and …/kafka/ack/
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import asyncpg
from faststream import AckPolicy
from faststream.kafka import KafkaBroker

from benchmarks.consume_rivals.job import Tally, job

_MAX_RECORDS = 2_000


async def main() -> None:
    task = job()
    decode, tally = task.decoder(), Tally(task.events)
    done = asyncio.Event()
    broker = KafkaBroker(task.bootstrap, log_level=logging.WARNING)
    pool = await asyncpg.create_pool(task.dsn, min_size=1, max_size=1)
    types = {column: "bigint" if column in ("number", "cents") else "text" for column in task.columns}
    arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types.values(), 1))
    upsert = f"INSERT INTO {task.table} ({', '.join(types)}) SELECT * FROM unnest({arrays}) {task.update}"

    async def write(values: list[bytes]) -> None:
        rows: dict[Any, list[Any]] = {}  # the last of each key: one statement can't change a row twice
        for value in values:
            data = decode(value)
            rows[data[task.key]] = [data[column] for column in task.columns]
        await pool.execute(upsert, *zip(*rows.values(), strict=True))
        tally.committed(len(values))
        if tally.done:
            done.set()

    async def write_one(value: bytes) -> None:
        await write([value])

    options: dict[str, Any] = {
        "group_id": f"faststream-{task.table}",
        "auto_offset_reset": "earliest",
        "isolation_level": "read_committed",
        "ack_policy": AckPolicy.ACK,
    }
    if task.batch:
        broker.subscriber(task.topic, batch=True, max_records=_MAX_RECORDS, **options)(write)
    else:
        broker.subscriber(task.topic, **options)(write_one)
    async with broker:
        await broker.start()
        await done.wait()
    tally.report()
    await pool.close()


if __name__ == "__main__":
    asyncio.run(main())
