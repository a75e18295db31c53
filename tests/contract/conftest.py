"""What the contract suite runs on: the backends of `EventStore`, each with a log of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol
from uuid import uuid4

import asyncpg
import pytest

from eventspine import EventStore, EventType, PostgresEventStore
from eventspine.schemas.postgres import PgBouncerConnection, learn_types
from eventspine.store.dynamodb import DynamoDBEventStore, open_table
from eventspine.store.dynamodb.create import create_table
from eventspine.store.kurrent import KurrentConnection, KurrentEventStore, KurrentServer
from tests.conftest import dsn_of
from tests.dynamodb import DynamoDBService
from tests.event_types import EVENT_TYPES
from tests.fault.proxy import Proxy
from tests.pgbouncer import PgBouncer, pgbouncer

__all__ = ["pgbouncer"]


class Backend(Protocol):
    """A log of its own, and what the tests do to it besides using it."""

    max_append_events: int

    async def open(self, *event_types: EventType) -> EventStore:
        """Open a store as another process would."""
        ...

    async def register(self, store: EventStore, *event_types: EventType) -> None:
        """Register event types with a store that is open."""
        ...

    async def open_unreachable(self) -> EventStore:
        """Open a store whose server does not answer, and which gives up soon."""
        ...

    async def cut_connections(self) -> int:
        """Cut every connection to the log, in use or not; return how many there were."""
        ...


class PostgresBackend:
    max_append_events = 1000

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.pools: list[asyncpg.Pool] = []

    async def open(self, *event_types: EventType) -> PostgresEventStore:
        self.pools.append(await asyncpg.create_pool(self.dsn, min_size=1, max_size=4, command_timeout=60))
        store = PostgresEventStore(self.pools[-1])
        await store.register(event_types)
        return store

    async def register(self, store: EventStore, *event_types: EventType) -> None:
        assert isinstance(store, PostgresEventStore)
        await store.register(event_types)

    async def open_unreachable(self) -> PostgresEventStore:
        self.pools.append(await asyncpg.create_pool("postgresql://eventspine@127.0.0.1:1/none", min_size=0, timeout=1))
        return PostgresEventStore(self.pools[-1], retry_s=0.1)

    async def cut_connections(self) -> int:
        connection = await asyncpg.connect(dsn_of(self.dsn, "postgres"))
        rows = await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", self.dsn.rpartition("/")[2]
        )
        await connection.close()
        return len(rows)

    def close(self) -> None:
        for pool in self.pools:
            pool.terminate()


@pytest.fixture
async def postgres_backend(database: str) -> AsyncIterator[Backend]:
    backend = PostgresBackend(database)
    yield backend
    backend.close()


class PgBouncerBackend(PostgresBackend):
    """The same through PgBouncer in transaction mode; connections are cut between it and Postgres."""

    def __init__(self, dsn: str, through: str) -> None:
        super().__init__(dsn)
        self._through = through

    async def open(self, *event_types: EventType) -> PostgresEventStore:
        pool = await asyncpg.create_pool(
            self._through, max_size=4, min_size=1, command_timeout=60,
            statement_cache_size=0, connection_class=PgBouncerConnection, init=learn_types,
        )  # fmt: skip
        self.pools.append(pool)
        store = PostgresEventStore(pool)
        await store.register(event_types)
        return store


@pytest.fixture
async def pgbouncer_backend(database: str, pgbouncer: PgBouncer) -> AsyncIterator[Backend]:
    backend = PgBouncerBackend(database, pgbouncer.through(database))
    yield backend
    backend.close()


class DynamoDBBackend:
    """A table of DynamoDB Local; connections are cut by a proxy between."""

    max_append_events = 48

    def __init__(self, service: DynamoDBService, proxy: Proxy) -> None:
        self._dsn = service.dsn(f"test-{uuid4().hex[:12]}", port=proxy.port)
        self._proxy = proxy
        self._open = AsyncExitStack()

    async def create(self) -> None:
        async with open_table(self._dsn) as table:
            await create_table(table)

    async def open(self, *event_types: EventType) -> DynamoDBEventStore:
        store = DynamoDBEventStore(await self._open.enter_async_context(open_table(self._dsn)), poll_s=0.02)
        await store.register(event_types)
        return store

    async def register(self, store: EventStore, *event_types: EventType) -> None:
        assert isinstance(store, DynamoDBEventStore)
        await store.register(event_types)

    async def open_unreachable(self) -> DynamoDBEventStore:
        nowhere = "dynamodb://none?region=eu-central-1&endpoint=http://127.0.0.1:1"
        return DynamoDBEventStore(await self._open.enter_async_context(open_table(nowhere)), retry_s=0.1)

    async def cut_connections(self) -> int:
        there = len(self._proxy.client_ports)
        self._proxy.cut()
        return there

    async def close(self) -> None:
        await self._open.aclose()


@pytest.fixture
async def dynamodb_backend(dynamodb: DynamoDBService) -> AsyncIterator[Backend]:
    assert dynamodb.port is not None
    proxy = Proxy(dynamodb.port)
    async with proxy.running():
        backend = DynamoDBBackend(dynamodb, proxy)
        await backend.create()
        yield backend
        await backend.close()


class KurrentBackend:
    """EventStoreDB's protocol, spoken with a door of ours. Nothing there keeps schemas: a program without event types of its own
    gets those of the first one."""

    max_append_events = 1000

    def __init__(self, resources: AsyncExitStack, proxy: Proxy) -> None:
        self._resources = resources
        self._proxy = proxy
        self._event_types: tuple[EventType, ...] = ()

    async def open(self, *event_types: EventType) -> KurrentEventStore:
        self._event_types = self._event_types or event_types
        store = await self._open(f"esdb://127.0.0.1:{self._proxy.port}?tls=false", retry_s=30.0)
        await store.register(event_types or self._event_types)
        return store

    async def register(self, store: EventStore, *event_types: EventType) -> None:
        assert isinstance(store, KurrentEventStore)
        await store.register(event_types)

    async def open_unreachable(self) -> KurrentEventStore:
        store = await self._open("esdb://127.0.0.1:1?tls=false", retry_s=0.1)
        await store.register(EVENT_TYPES)
        return store

    async def cut_connections(self) -> int:
        connections = len(self._proxy.client_ports)
        self._proxy.cut()
        return connections

    async def _open(self, uri: str, *, retry_s: float) -> KurrentEventStore:
        connection = await self._resources.enter_async_context(KurrentConnection(uri))
        return await self._resources.enter_async_context(KurrentEventStore(connection, retry_s=retry_s))


@pytest.fixture
async def kurrent_backend(pool: asyncpg.Pool) -> AsyncIterator[Backend]:
    async with AsyncExitStack() as resources:
        port = await resources.enter_async_context(KurrentServer(PostgresEventStore(pool)).listening(port=0))
        proxy = Proxy(port)
        await resources.enter_async_context(proxy.running())
        yield KurrentBackend(resources, proxy)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run each test of the suite once on each backend but the first, unless every parameter is wanted: other data takes the
    same way."""
    once = () if config.getoption("--every-parameter") else ("pgbouncer", "dynamodb", "kurrent")
    taken: set[tuple[object, str]] = set()
    further: list[pytest.Item] = []
    for item in items:
        backend = item.callspec.params.get("backend") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
        reason = next((mark.kwargs["reason"] for mark in item.iter_markers("cannot_hold") if mark.args == (backend,)), "")
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif isinstance(item, pytest.Function) and backend in once:
            name = (backend, f"{item.path}::{item.originalname}")
            if name in taken:
                further.append(item)
            taken.add(name)
    if further:
        config.hook.pytest_deselected(items=further)
        items[:] = [item for item in items if item not in further]


@pytest.fixture(params=["postgres", "pgbouncer", "dynamodb", "kurrent"])
def backend(request: pytest.FixtureRequest) -> Backend:
    backend: Backend = request.getfixturevalue(f"{request.param}_backend")
    return backend


@pytest.fixture
async def store(backend: Backend) -> EventStore:
    return await backend.open(*EVENT_TYPES)
