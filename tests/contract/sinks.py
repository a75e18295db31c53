"""What the suite of sinks runs on: read models, each empty at the start of a test. A fixture of this form adds another one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

import asyncpg
import pytest

from eventspine import Event, PostgresSink, Projection, Table
from eventspine.consumers.admin import ProjectionAdmin
from eventspine.consumers.engine import Engine
from eventspine.consumers.opensearch_client import open_opensearch
from eventspine.consumers.parked import Kept, Parked
from eventspine.consumers.places import Item, Partition, Place
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from eventspine.consumers.postgres_table import row_of
from eventspine.consumers.redis_admin import RedisProjectionAdmin
from eventspine.consumers.redis_client import open_redis
from eventspine.consumers.redis_sink import RedisSink
from eventspine.consumers.redis_table import RedisTable
from eventspine.consumers.sink import Sink
from tests.opensearch import OpenSearchReadModel, wipe

P0, P1 = Partition("events.Order", 0), Partition("events.Order", 1)


class ReadModel(Protocol):
    """A server that keeps read models. `can` names what not every one does: get, increment, insert."""

    can: frozenset[str]

    @property
    def admin(self) -> ProjectionAdmin:
        """What looks after the projections there."""
        ...

    async def sink(self) -> Sink:
        """Open a sink as another process would."""
        ...

    async def rows(self, projection: Projection, table: Table) -> list[dict[str, Any]]:
        """Return all rows of a table, in the order of their keys, with the values that `get` returns."""
        ...


class PostgresReadModel:
    can = frozenset({"get", "increment", "insert"})

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.admin = PostgresProjectionAdmin(pool)
        self._pool = pool

    async def sink(self) -> Sink:
        return PostgresSink(self._pool)

    async def rows(self, projection: Projection, table: Table) -> list[dict[str, Any]]:
        columns = ", ".join(f'"{column}"' for column in table.columns)
        found = [row_of(table, tuple(row))[1] for row in await self._pool.fetch(f'SELECT {columns} FROM "{table.name}"')]
        return sorted(found, key=lambda row: [str(row[column]) for column in table.key])


class RedisReadModel:
    can = frozenset({"get", "increment", "insert"})

    def __init__(self, dsn: str, client: Any, stack: AsyncExitStack) -> None:
        self.admin = RedisProjectionAdmin(client)
        self._dsn = dsn
        self._client = client
        self._stack = stack

    async def sink(self) -> Sink:
        return RedisSink(await self._stack.enter_async_context(open_redis(self._dsn)))

    async def rows(self, projection: Projection, table: Table) -> list[dict[str, Any]]:
        return await redis_rows(self._client, projection, table)


async def redis_rows(client: Any, projection: Projection, table: Table) -> list[dict[str, Any]]:
    """Return all rows of a table in Redis, as anybody would find them."""
    found = []
    columns = RedisTable(projection.name, table)
    keys = [key async for key in client.scan_iter(f"{{{projection.name}}}:{table.name}:*", count=5000)]
    async with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hgetall(key)
        hashes = await pipeline.execute()
    for key, fields in zip(keys, hashes, strict=True):
        texts = {column.decode(): text.decode() for column, text in fields.items()}
        row = columns.row([texts.pop(column, None) for column in table.columns])
        assert row is not None
        assert not texts, f"{key!r} has fields that are no columns: {texts}"
        found.append(row)
    return sorted(found, key=lambda row: [str(row[column]) for column in table.key])


@pytest.fixture
async def postgres_model(pool: asyncpg.Pool) -> ReadModel:
    model = PostgresReadModel(pool)
    await model.admin.prepare()
    return model


@pytest.fixture
async def redis_model(redis_service: Any) -> AsyncIterator[ReadModel]:
    async with AsyncExitStack() as stack:
        client: Any = await stack.enter_async_context(open_redis(redis_service.endpoint))
        await client.flushall()
        yield RedisReadModel(redis_service.endpoint, client, stack)


@pytest.fixture
async def opensearch_model(opensearch: Any) -> AsyncIterator[ReadModel]:
    async with open_opensearch(opensearch.dsn) as server:
        await wipe(server)
        model = OpenSearchReadModel(server)
        await model.admin.prepare()
        yield model


class Run:
    """A consumer of one projection: an engine, whose records are kept in memory.

    `mended` has, by position, what handlers see of an event at a retry.
    """

    def __init__(self, projection: Projection, sink: Sink) -> None:
        self.mended: dict[int, dict[str, Any]] = {}
        self.projection = projection
        self.sink = sink
        self.engine = Engine(projection, sink, keep=self._keep, read=self._read)
        self._next: dict[Partition, tuple[int, int]] = {}

    async def start(self, *partitions: Partition, topic_id: str = "id") -> Run:
        await self.sink.prepare(self.projection)
        await self.engine.claim({each: topic_id if each.topic else "" for each in partitions or (P0,)})
        self._next = {each: place[1:3] for each, place in self.engine.places.items()}
        return self

    async def apply(self, *changes: dict[str, Any], partition: Partition = P0) -> None:
        """Apply what changes say, each as an event, in one batch."""
        await self.apply_items([self.item(change, partition) for change in changes])

    async def apply_items(self, items: Sequence[Item]) -> None:
        staged = self.engine.stage(items)
        if staged is not None:
            await self.engine.write(staged)

    def item(self, change: dict[str, Any], partition: Partition = P0) -> Item:
        offset, position = self._next[partition]
        self._next[partition] = offset + 1, position + 1
        stream = change.get("stream", f"Order-{change['row'].get('id', '')}")
        event = Event(event_type="Changed", data=change, stream_id=stream, version=1, global_position=position + 1)
        return Item(partition, offset, position + 1, 0, "Changed", stream, event, raw=event)

    async def ask(self, what: str, admin: ProjectionAdmin, stream: str = "") -> None:
        """Let somebody ask, and do it."""
        await admin.ask(self.projection.name, what, stream)
        await self.engine.look_at_parked()

    @property
    def place(self) -> Place:
        return self.engine.places[P0]

    @staticmethod
    def _keep(item: Item) -> Kept:
        return Kept(b"{}", item.stream_id.encode(), Event.__module__.encode() + b"\0\xff")

    async def _read(self, rows: Sequence[Parked]) -> list[Item]:
        items = []
        for row in rows:
            data = self.mended[row.position]
            event = Event(event_type="Changed", data=data, stream_id=row.stream_id, version=1, global_position=row.position)
            items.append(Item(row.partition, 0, row.position, row.late, "Changed", row.stream_id, event, raw=row))
        return items
