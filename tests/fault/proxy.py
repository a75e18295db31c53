"""A TCP proxy in front of the Kafka broker that knows where each request begins, so that a test can strike at a step.

Source: https://kafka.apache.org/protocol: a request is a 4-byte length, then api key (2 bytes), api version (2),
correlation id (4); a response is a 4-byte length, then the correlation id (4).
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

PRODUCE: Final = 0
FETCH: Final = 1
INIT_PRODUCER_ID: Final = 22
END_TXN: Final = 26

Moment = Literal["before", "unanswered", "answered"]


@dataclass
class Trap:
    """Strike at the n-th request of a kind: before the broker gets it, when it was forwarded but its answer is held back, or
    when the answer has gone to the client. Springs once."""

    api_key: int
    moment: Moment
    strike: Callable[[], None]
    skip: int = 0
    sprung: bool = False

    def springs(self, api_key: int, moment: Moment) -> bool:
        if self.sprung or api_key != self.api_key or moment != self.moment:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.sprung = True
        self.strike()
        return True


class KafkaProxy:
    """Forwards to a broker on 127.0.0.1, and puts its own port into the answers that tell clients where the broker is."""

    def __init__(self, broker_port: int) -> None:
        self.trap: Trap | None = None
        self.port = 0
        self.requests: Counter[int] = Counter()
        self._broker_port = broker_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection at once, without goodbye."""
        for writer in list(self._writers):
            writer.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[KafkaProxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._serving)

    def _accept(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(client_reader, client_writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        try:
            broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            client_writer.transport.abort()
            return
        writers = {client_writer, broker_writer}
        self._writers |= writers
        asked: dict[int, int] = {}
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._requests(client_reader, broker_writer, asked))
                directions.create_task(self._responses(broker_reader, client_writer, asked))
        except* (OSError, asyncio.IncompleteReadError):  # either side has gone
            pass
        finally:
            self._writers -= writers
            for writer in writers:
                writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, int]) -> None:
        while True:
            frame = await _frame(reader)
            api_key, _, correlation_id = struct.unpack_from(">hhi", frame, 4)
            if self.trap and self.trap.springs(api_key, "before"):
                raise ConnectionResetError
            asked[correlation_id] = api_key
            self.requests[api_key] += 1
            writer.write(frame)
            await writer.drain()

    async def _responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, int]) -> None:
        broker = b"127.0.0.1" + struct.pack(">i", self._broker_port)
        proxy = b"127.0.0.1" + struct.pack(">i", self.port)
        while True:
            frame = await _frame(reader)
            api_key = asked.pop(struct.unpack_from(">i", frame, 4)[0])
            frame = frame.replace(broker, proxy)  # in Metadata, FindCoordinator, and since KIP-951 in Produce and Fetch too
            if self.trap and self.trap.springs(api_key, "unanswered"):
                raise ConnectionResetError
            writer.write(frame)
            await writer.drain()
            if self.trap and self.trap.springs(api_key, "answered"):
                raise ConnectionResetError


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(struct.unpack(">i", size)[0])


@asynccontextmanager
async def kafka_proxy(bootstrap: str) -> AsyncIterator[KafkaProxy]:
    """Run a proxy in front of the broker at `host:port`."""
    proxy = KafkaProxy(int(bootstrap.rpartition(":")[2]))
    async with proxy.running():
        yield proxy
