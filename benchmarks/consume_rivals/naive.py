"""The loop that one writes first: for each event, decode, one upsert, one commit of the offset."""

from __future__ import annotations

import asyncio

import asyncpg
from aiokafka import AIOKafkaConsumer

from benchmarks.consume_rivals.job import Tally, job

_BALANCE = "SELECT balance FROM balances WHERE account = $1"
_SET_BALANCE = "INSERT INTO balances VALUES ($1, $2) ON CONFLICT (account) DO UPDATE SET balance = EXCLUDED.balance"


async def main() -> None:
    task = job()
    decode, tally = task.decoder(), Tally(task.events)
    names, values = ", ".join(task.columns), ", ".join(f"${number}" for number, _ in enumerate(task.columns, 1))
    upsert = f"INSERT INTO {task.table} ({names}) VALUES ({values}) {task.update}"
    consumer = AIOKafkaConsumer(
        task.topic,
        bootstrap_servers=task.bootstrap,
        group_id=f"naive-{task.table}",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level="read_committed",
    )
    connection = await asyncpg.connect(task.dsn)
    await consumer.start()
    async for message in consumer:
        data = decode(message.value)
        if task.table == "lines":
            async with connection.transaction():
                data["balance"] = (await connection.fetchval(_BALANCE, data["account"]) or 0) + data["cents"]
                await connection.execute(_SET_BALANCE, data["account"], data["balance"])
                await connection.execute(upsert, *(data[column] for column in task.columns))
        else:
            await connection.execute(upsert, *(data[column] for column in task.columns))
        await consumer.commit()
        tally.committed(1)
        if tally.done:
            break
    tally.report()
    await consumer.stop()
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
