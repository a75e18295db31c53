"""Relay and consumers in processes of their own, as users run them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from eventspine.local import Endpoints
from eventspine.relay.cursor import Cursor, cursor_topic, read_cursor
from eventspine.schemas import Unavailable


class Command:
    """A running `eventspine …`."""

    def __init__(self, process: asyncio.subprocess.Process, endpoints: Endpoints, prefix: str) -> None:
        self._process = process
        self._endpoints = endpoints
        self._prefix = prefix

    async def position(self) -> int:
        """The relay's cursor, from Kafka."""
        if self._process.returncode is not None:
            raise RuntimeError(f"ended with {self._process.returncode}")
        try:
            topic = cursor_topic(self._prefix)
            cursor = await asyncio.to_thread(read_cursor, self._endpoints.kafka_bootstrap, topic, "relay", timeout_s=1)
        except Unavailable:  # the topic is not there yet
            return 0
        return cursor.position

    async def drain_rate(self) -> float:
        """Events a second between the relay's first and last transaction, by the times that Kafka keeps with the cursors."""
        return await asyncio.to_thread(_drain_rate, self._endpoints.kafka_bootstrap, cursor_topic(self._prefix))


def _drain_rate(bootstrap: str, topic: str) -> float:
    settings = {"bootstrap.servers": bootstrap, "group.id": "bench", "isolation.level": "read_committed"}
    consumer = Consumer(settings | {"enable.partition.eof": True, "enable.auto.commit": False})
    moments: list[tuple[int, int]] = []
    try:
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        while (message := consumer.poll(30)) is not None and message.error() is None:
            moments.append((message.timestamp()[1], Cursor.from_bytes(message.value() or b"").position))
    finally:
        consumer.close()
    (first_ms, first), (last_ms, last) = moments[0], moments[-1]
    return 1000 * (last - first) / max(1, last_ms - first_ms)


@asynccontextmanager
async def command(dsn: str, endpoints: Endpoints, prefix: str, arguments: list[str]) -> AsyncIterator[Command]:
    environment = {
        "EVENTSPINE_POSTGRES_DSN": dsn,
        "EVENTSPINE_KAFKA_BOOTSTRAP": endpoints.kafka_bootstrap,
        "EVENTSPINE_TOPIC_PREFIX": prefix,
    }
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "eventspine", *arguments],
        env=os.environ | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Command(process, endpoints, prefix)
    finally:
        process.terminate()
        await process.wait()
