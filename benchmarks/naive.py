"""The rivals: each step as a reasonable developer writes it first, one event at a time."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from uuid import uuid4

import asyncpg
from confluent_kafka import Consumer, Producer

SCHEMA = """
CREATE TABLE naive_events (
    position    bigserial PRIMARY KEY,
    id          uuid NOT NULL UNIQUE,
    stream_id   text NOT NULL,
    version     bigint NOT NULL,
    event_type  text NOT NULL,
    event_data  jsonb NOT NULL,
    metadata    jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    published   boolean NOT NULL DEFAULT false,
    UNIQUE (stream_id, version)
);
CREATE INDEX naive_unpublished ON naive_events (position) WHERE NOT published;
CREATE TABLE naive_totals (customer_id text PRIMARY KEY, orders bigint NOT NULL, total_cents bigint NOT NULL)"""


async def append(pool: asyncpg.Pool, stream_id: str, data: dict[str, Any], expected_version: int) -> None:
    """SELECT MAX, compare, INSERT."""
    async with pool.acquire() as connection, connection.transaction():
        version = await connection.fetchval("SELECT coalesce(max(version), 0) FROM naive_events WHERE stream_id = $1", stream_id)
        if version != expected_version:
            raise RuntimeError("conflict")
        await connection.execute(
            "INSERT INTO naive_events (id, stream_id, version, event_type, event_data, metadata) VALUES ($1, $2, $3, $4, $5, $6)",
            uuid4(),
            stream_id,
            version + 1,
            "OrderPlaced",
            json.dumps(data),
            json.dumps({"timestamp": time.time()}),
        )


async def relay(pool: asyncpg.Pool, bootstrap: str, topic: str, *, until: int, poll_s: float = 0.1) -> None:
    """Poll for unpublished rows; produce each, wait for its acknowledgement, mark it."""
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "linger.ms": 0})
    published = 0
    while published < until:
        rows = await pool.fetch("SELECT * FROM naive_events WHERE NOT published ORDER BY position LIMIT 100")
        for row in rows:
            producer.produce(topic, row["event_data"], row["stream_id"])
            producer.flush()
            await pool.execute("UPDATE naive_events SET published = true WHERE position = $1", row["position"])
        published += len(rows)
        if not rows:
            await asyncio.sleep(poll_s)


async def project(pool: asyncpg.Pool, bootstrap: str, topic: str, *, until: int) -> None:
    """Poll a message, upsert its row, commit its offset."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": uuid4().hex, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )
    consumer.subscribe([topic])
    applied = 0
    try:
        while applied < until:
            message = await asyncio.to_thread(consumer.poll, 0.5)
            if message is None or message.error():
                continue
            data = json.loads(message.value() or b"{}")
            await pool.execute(
                "INSERT INTO naive_totals AS t VALUES ($1, 1, $2) ON CONFLICT (customer_id) "
                "DO UPDATE SET orders = t.orders + 1, total_cents = t.total_cents + EXCLUDED.total_cents",
                data["customer_id"],
                data["total_cents"],
            )
            consumer.commit(message=message, asynchronous=False)
            applied += 1
    finally:
        consumer.close()
