"""Drains of a backlog, side by side: what each does in events a second, CPU and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple
from uuid import uuid4

import asyncpg

from benchmarks import naive_relay
from benchmarks.debezium import DRAIN, Connect, Debezium
from benchmarks.meter import Meter
from benchmarks.processes import Command, command, module
from benchmarks.topics import Arrived, arrived, create_topic
from eventspine.local import Endpoints, LocalStack
from eventspine.settings import Settings

_CHUNK = 5_000
_PUMPED = 3
_IN_MEMORY = 50_000
_BACKLOG = """
INSERT INTO rival_outbox
SELECT gen_random_uuid(), stream_type, stream_id, event_type, payload{more} FROM events
 WHERE global_position > $1 AND global_position <= $2 ORDER BY global_position"""


class Mode(NamedTuple):
    """A way to run our relay."""

    title: str
    processes: int = 1
    settings: Mapping[str, str] = {}

    @property
    def side(self) -> str:
        return f"eventspine, {self.title}"

    @asynccontextmanager
    async def running(self, dsn: str, endpoints: Endpoints, prefix: str) -> AsyncIterator[list[Command]]:
        environment = {f"EVENTSPINE_{name.upper()}": value for name, value in self.settings.items()}
        async with AsyncExitStack() as stack:
            relays = [command(dsn, endpoints, prefix, ["relay", "run"], environment) for _ in range(self.processes)]
            yield [await stack.enter_async_context(relay) for relay in relays]


ONCE = Mode("exactly once")
TWO_PROCESSES = Mode("exactly once, 2 processes", 2, {"relay_shards": "2", "relay_lease_s": "2"})  # to share them out soon
AT_LEAST_ONCE = Mode("without transactions", 1, {"relay_delivery": "at-least-once"})


class Cost(NamedTuple):
    """What one drain took: events a second; CPU seconds per million events, of the side itself, of Postgres and of the broker."""

    rate: float
    cpu_s: float
    peak_mb: float
    postgres_cpu_s: float
    broker_cpu_s: float


class Drains:
    """The sides over one database, whose log is filled."""

    def __init__(self, stack: LocalStack, dsn: str, pool: asyncpg.Pool, events: int) -> None:
        endpoints = stack.endpoints()
        assert endpoints is not None
        assert stack.postgres.pid is not None
        assert stack.kafka.pid is not None
        self._endpoints: Endpoints = endpoints
        self._bootstrap = endpoints.kafka_bootstrap
        self._servers = {"postgres": [stack.postgres.pid], "broker": [stack.kafka.pid]}
        self._dsn = dsn
        self._pool = pool
        self._events = events
        self._published = ""

    async def ours(self, mode: Mode) -> Cost:
        """Our relay, in processes of its own."""
        prefix = f"b{uuid4().hex}."
        await self._ready(topic := f"{prefix}Order")
        self._published = self._published or topic
        async with mode.running(self._dsn, self._endpoints, prefix) as relays:
            with self._meter(*(relay.pid for relay in relays)) as meter:
                came = await arrived(self._bootstrap, topic, self._events, lambda: _check_all(relays))
        return self._cost(meter, came)

    async def pump(self) -> Cost:
        """The bare pump: the records that our relay has published, in transactions of as many; more of them, for it is fast."""
        events = _PUMPED * self._events
        await self._ready(topic := uuid4().hex)
        batch, ready = Settings().relay_batch_events, min(self._events, _IN_MEMORY)
        numbers = map(str, (events, batch, ready))
        async with module("pump", self._bootstrap, self._published, topic, *numbers) as process:
            with self._meter(process.pid) as meter:
                came = await arrived(self._bootstrap, topic, events, lambda: _check(process))
        return self._cost(meter, came)

    async def naive(self) -> Cost:
        """The naive relay, whose outbox is filled beforehand."""
        await self._pool.execute(naive_relay.SCHEMA)
        await self._pool.execute(naive_relay.FILL)
        await self._pool.execute("VACUUM ANALYZE naive_outbox")
        await self._ready(topic := uuid4().hex)
        async with module("naive_relay", self._dsn, self._bootstrap, topic) as process:
            with self._meter(process.pid) as meter:
                came = await arrived(self._bootstrap, topic, self._events, lambda: _check(process))
        return self._cost(meter, came)

    async def debezium(self, connect: Connect, debezium: Debezium) -> Cost:
        """Debezium, which stands still while its outbox is filled, by transactions of 5,000 rows."""
        backlog = _BACKLOG.format(more="".join(f", {value}" for value in debezium.headers.values()))
        for start in range(0, self._events, _CHUNK):
            await self._pool.execute(backlog, start, min(start + _CHUNK, self._events))
        await self._ready(topic := uuid4().hex)
        assert connect.pid is not None
        with self._meter(connect.pid) as meter:
            await debezium.run(topic, DRAIN)
            came = await arrived(self._bootstrap, topic, self._events)
        await debezium.stop()
        return self._cost(meter, came)

    async def _ready(self, topic: str) -> None:
        create_topic(self._bootstrap, topic)
        await self._pool.execute("CHECKPOINT")

    def _meter(self, *pids: int) -> Meter:
        return Meter({"side": pids, **self._servers})

    def _cost(self, meter: Meter, came: Arrived) -> Cost:
        side, postgres, broker = (meter.used(group, came.first_s, came.last_s) for group in ("side", "postgres", "broker"))
        per_million = 1e6 / came.events
        return Cost(
            came.rate,
            side.cpu_s * per_million,
            side.peak_bytes / 1e6,
            postgres.cpu_s * per_million,
            broker.cpu_s * per_million,
        )


def _check_all(relays: list[Command]) -> None:
    for relay in relays:
        relay.check()


def _check(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        raise RuntimeError(f"it has ended with {process.returncode}")
