"""Real servers, started once per run, and a database of its own for each test."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from eventspine import PostgresEventStore, migrate
from tests.event_types import EVENT_TYPES

_TEMPLATE = f"template_{os.getpid()}"
_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-parameter", action="store_true", help="contract suites: all data on every backend, not on the first only"
    )
    parser.addoption(
        "--stack",
        choices=["local", "docker"],
        default="local",
        help="where Postgres and Kafka come from: packages (local) or containers (docker)",
    )


def pytest_configure() -> None:
    """End by SIGTERM as by Ctrl-C: with the servers stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The servers of this run; `endpoints` starts them. They are stopped at its end, also after Ctrl-C."""
    folder = tmp_path_factory.mktemp("stack")
    servers: Any
    if pytestconfig.getoption("--stack") == "docker":
        from tests.docker_stack import DockerStack

        servers = DockerStack(folder)
    else:
        from eventspine.local import LocalStack

        servers = LocalStack(folder)
    try:
        yield servers
    finally:
        servers.down()


@pytest.fixture(scope="session")
def endpoints(stack: Any) -> Any:
    """Where the servers listen: `postgres_dsn`, `kafka_bootstrap`."""
    return stack.up(on_progress=lambda *_: None)


@pytest.fixture(scope="session")
def postgres(endpoints: Any) -> str:
    """DSN of the server's maintenance database."""
    return str(endpoints.postgres_dsn)


@pytest.fixture(scope="session")
def kafka(endpoints: Any) -> str:
    """Kafka's bootstrap servers."""
    return str(endpoints.kafka_bootstrap)


@pytest.fixture(scope="session")
def apicurio_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Apicurio Registry's form of Confluent's API, for the whole run: tests use subjects of their own."""
    from tests.apicurio import ApicurioService

    registry = ApicurioService(tmp_path_factory.mktemp("apicurio"))
    try:
        registry.start()
        yield registry.endpoint
    finally:
        registry.kill()


@pytest.fixture(scope="session")
def redis_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real Redis for the whole run, as a cluster of one; `endpoint` is its DSN. Each test that uses it empties it first."""
    from tests.redis_server import RedisService

    server = RedisService(tmp_path_factory.mktemp("redis"), cluster=True)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def opensearch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real OpenSearch node for the whole run, for the tests that ask for it."""
    from tests.opensearch import OpenSearchService

    node = OpenSearchService(tmp_path_factory.mktemp("opensearch"))
    try:
        node.start()
        yield node
    finally:
        node.kill()


@pytest.fixture(scope="session")
def dynamodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real DynamoDB Local for the whole run; each test makes a table of its own."""
    from tests.dynamodb import DynamoDBService

    os.environ.update(AWS_ACCESS_KEY_ID="local", AWS_SECRET_ACCESS_KEY="local")  # any will do, and there must be some
    server = DynamoDBService(tmp_path_factory.mktemp("dynamodb"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


def dsn_of(dsn: str, database: str) -> str:
    """Return the DSN of another database on the same server."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


@pytest.fixture(scope="session")
def migrated_template(postgres: str) -> Iterator[str]:
    """A migrated database that tests' databases are copied from: 20 ms each instead of a migration."""

    async def create() -> None:
        await on_server(postgres, f"CREATE DATABASE {_TEMPLATE}")
        connection = await asyncpg.connect(dsn_of(postgres, _TEMPLATE))
        await migrate(connection)
        await connection.close()

    asyncio.run(create())
    yield _TEMPLATE
    asyncio.run(on_server(postgres, f"DROP DATABASE IF EXISTS {_TEMPLATE} WITH (FORCE)"))


@pytest.fixture
async def empty_database(postgres: str) -> AsyncIterator[str]:
    """DSN of a database without tables, dropped at the end of the test."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await on_server(postgres, f"CREATE DATABASE {name} TEMPLATE template0")
    yield dsn_of(postgres, name)
    await on_server(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(postgres: str, migrated_template: str) -> AsyncIterator[str]:
    """DSN of a migrated database, dropped at the end of the test."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await on_server(postgres, f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    yield dsn_of(postgres, name)
    await on_server(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    """A pool on the test's database, cut off at the end: a test may leave connections in use."""
    pool = await asyncpg.create_pool(database, min_size=1, max_size=10, command_timeout=60)
    yield pool
    pool.terminate()


@pytest.fixture
async def store(pool: asyncpg.Pool) -> PostgresEventStore:
    """The Postgres store, with the tests' event types registered."""
    store = PostgresEventStore(pool)
    await store.register(EVENT_TYPES)
    return store


@pytest.fixture
def topic_prefix() -> str:
    """Begins the names of this test's topics, groups and transactional ids."""
    return f"test-{uuid4().hex[:12]}."


async def on_server(dsn: str, statement: str) -> None:
    """Run a statement on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
