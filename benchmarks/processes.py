"""Relay and consumers in processes of their own, as users run them."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import IO

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from eventspine.local import Endpoints
from eventspine.relay.cursor import Cursor, cursor_topic, read_cursor
from eventspine.schemas import Unavailable


class Command:
    """A running `eventspine …`."""

    def __init__(self, process: asyncio.subprocess.Process, endpoints: Endpoints, prefix: str, said: IO[bytes]) -> None:
        self._process = process
        self._said = said
        self._endpoints = endpoints
        self._prefix = prefix

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise where the process has ended."""
        if self._process.returncode is not None:
            self._said.seek(0)
            last = self._said.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"ended with {self._process.returncode}: {last}")

    async def position(self) -> int:
        """The relay's cursor, from Kafka."""
        self.check()
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
async def command(
    dsn: str, endpoints: Endpoints, prefix: str, arguments: list[str], settings: Mapping[str, str] | None = None
) -> AsyncIterator[Command]:
    """Run `eventspine …`; `settings` are further variables of its environment."""
    environment = {
        "EVENTSPINE_POSTGRES_DSN": dsn,
        "EVENTSPINE_KAFKA_BOOTSTRAP": endpoints.kafka_bootstrap,
        "EVENTSPINE_TOPIC_PREFIX": prefix,
    }
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "eventspine", *arguments],
            env=os.environ | environment | dict(settings or {}),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=said,
        )
        try:
            yield Command(process, endpoints, prefix, said)
        finally:
            await _end(process)


@asynccontextmanager
async def module(name: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module of the benchmarks, which is ended with the block. What it prints can be read; what goes wrong is shown."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", f"benchmarks.{name}", *arguments],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
    )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    await process.wait()
