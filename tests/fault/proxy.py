"""TCP proxies that cut, slow down and hold what passes. The one in front of Kafka knows where each request begins, so that a test
can strike at a step.

Source: https://kafka.apache.org/protocol: a request is a 4-byte length, then api key (2 bytes), api version (2),
correlation id (4); a response is a 4-byte length, then the correlation id (4).
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit, urlunsplit

PRODUCE: Final = 0
FETCH: Final = 1
OFFSET_COMMIT: Final = 8
JOIN_GROUP: Final = 11
HEARTBEAT: Final = 12
INIT_PRODUCER_ID: Final = 22
ADD_PARTITIONS_TO_TXN: Final = 24
END_TXN: Final = 26
WRITE_TXN_MARKERS: Final = 27
CONSUMER_GROUP_HEARTBEAT: Final = 68

Moment = Literal["before", "unanswered", "answered"]


@dataclass
class Trap:
    """Strike at the n-th request of a kind: before the broker gets it, when it was forwarded but its answer is held back, or
    when the answer has gone to the client. Springs once.

    The connection breaks then, unless the trap `holds`: then the request, or the answer, goes on when `release` is called.
    """

    api_key: int
    moment: Moment
    strike: Callable[[], None]
    skip: int = 0
    about: bytes = b""  # what a request must contain, as the name of a topic
    holds: bool = False
    sprung: bool = False
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def springs(self, request: bytes, moment: Moment) -> bool:
        if self.sprung or moment != self.moment or api_key(request) != self.api_key or self.about not in request:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.sprung = True
        self.strike()
        return True

    def release(self) -> None:
        self._released.set()

    async def hold(self) -> None:
        """Wait for the release, or break the connection."""
        if not self.holds:
            raise ConnectionResetError
        await self._released.wait()


@dataclass
class SqlTrap:
    """Strike at what a client says to Postgres, at the moments of a `Trap`: the n-th time that it says `text`, and from there so
    many messages `later` on that connection. Springs once; the connection breaks then.

    asyncpg says the text of a prepared statement at its first use on a connection, and BEGIN and COMMIT each time.
    """

    text: bytes
    moment: Moment
    strike: Callable[[], None]
    skip: int = 0
    later: int = 0
    sprung: bool = False
    _connection: object = None  # the one on which `later` counts

    def springs(self, said: bytes, moment: Moment, connection: object) -> bool:
        if self.sprung or moment != self.moment:
            return False
        if self._connection is None:
            if self.text not in said:
                return False
            if self.skip:
                self.skip -= 1
                return False
            self._connection = connection
        elif self._connection is not connection:
            return False
        if self.later:
            self.later -= 1
            return False
        self.sprung = True
        self.strike()
        return True


class Proxy:
    """Forwards to a server on 127.0.0.1. `pause_s` holds up each read, in either direction; `bytes_per_s` bounds each."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.pause_s = 0.0
        self.bytes_per_s = 0
        self.refuses = False
        self._server_port = server_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Break every connection at once, without goodbye."""
        for writer in list(self._writers):
            writer.transport.abort()

    @property
    def client_ports(self) -> list[int]:
        """The ports that the server sees as its clients'."""
        names = [writer.get_extra_info("sockname") for writer in self._writers]
        return [name[1] for name in names if name and name[1] != self.port]

    def redirect(self, server_port: int) -> None:
        """Forward new connections to another server."""
        self._server_port = server_port

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            self.cut()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(client_reader, client_writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        try:
            if self.refuses:
                raise ConnectionRefusedError
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            client_writer.transport.abort()
            return
        writers = {client_writer, server_writer}
        self._writers |= writers
        asked: dict[int, bytes] = {}
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._requests(client_reader, server_writer, asked))
                directions.create_task(self._responses(server_reader, client_writer, asked))
        except* (OSError, asyncio.IncompleteReadError):  # either side has gone
            pass
        finally:
            self._writers -= writers
            for writer in writers:
                writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, bytes]) -> None:
        await self._copy(reader, writer)

    async def _responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, bytes]) -> None:
        await self._copy(reader, writer)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            await self._forward(chunk, writer)
        raise ConnectionResetError

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        delay_s = self.pause_s + (len(data) / self.bytes_per_s if self.bytes_per_s else 0)
        if delay_s:
            await asyncio.sleep(delay_s)
        writer.write(data)
        await writer.drain()


class KafkaProxy(Proxy):
    """Puts its own port into the answers that tell clients where the broker is."""

    def __init__(self, broker_port: int) -> None:
        super().__init__(broker_port)
        self.trap: Trap | None = None
        self.requests: Counter[int] = Counter()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, bytes]) -> None:
        while True:
            frame = await _frame(reader)
            await self._spring(frame, "before")
            asked[struct.unpack_from(">i", frame, 8)[0]] = frame
            self.requests[api_key(frame)] += 1
            await self._forward(self._altered(frame, frame), writer)

    async def _responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, bytes]) -> None:
        broker = b"127.0.0.1" + struct.pack(">i", self._server_port)
        proxy = b"127.0.0.1" + struct.pack(">i", self.port)
        while True:
            frame = await _frame(reader)
            request = asked.pop(struct.unpack_from(">i", frame, 4)[0])
            frame = frame.replace(broker, proxy)  # in Metadata, FindCoordinator, and since KIP-951 in Produce and Fetch too
            await self._spring(request, "unanswered")
            await self._forward(self._altered(frame, request), writer)
            await self._spring(request, "answered")

    def _altered(self, frame: bytes, request: bytes) -> bytes:
        """Return what goes on in place of a request, or of the answer to it."""
        return frame

    async def _spring(self, request: bytes, moment: Moment) -> None:
        if (trap := self.trap) is not None and trap.springs(request, moment):
            await trap.hold()


class PostgresProxy(Proxy):
    """Knows what a client said last on each connection: asyncpg waits for the answer before it says more."""

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port)
        self.trap: SqlTrap | None = None

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, bytes]) -> None:
        while chunk := await reader.read(65536):
            self._spring(chunk, "before", asked)
            asked[0] = chunk
            await self._forward(chunk, writer)
        raise ConnectionResetError

    async def _responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, bytes]) -> None:
        while chunk := await reader.read(65536):
            said = asked.pop(0, b"")
            self._spring(said, "unanswered", asked)
            await self._forward(chunk, writer)
            self._spring(said, "answered", asked)
        raise ConnectionResetError

    def _spring(self, said: bytes, moment: Moment, connection: object) -> None:
        if said and (trap := self.trap) is not None and trap.springs(said, moment, connection):
            raise ConnectionResetError


def api_key(request: bytes) -> int:
    return int(struct.unpack_from(">h", request, 4)[0])


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(struct.unpack(">i", size)[0])


@asynccontextmanager
async def kafka_proxy(bootstrap: str) -> AsyncIterator[KafkaProxy]:
    """Run a proxy in front of the broker at `host:port`."""
    proxy = KafkaProxy(int(bootstrap.rpartition(":")[2]))
    async with proxy.running():
        yield proxy


@asynccontextmanager
async def postgres_proxy(dsn: str) -> AsyncIterator[tuple[PostgresProxy, str]]:
    """Run a proxy in front of a Postgres server; the DSN leads through it."""
    parts = urlsplit(dsn)
    assert parts.port is not None
    proxy = PostgresProxy(parts.port)
    async with proxy.running():
        user = f"{parts.username}@" if parts.username else ""
        yield proxy, urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{proxy.port}"))
