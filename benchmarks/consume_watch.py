"""When a read model's first and last rows became visible: one yardstick for all sides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import asyncpg

_LIMIT_S = 300.0


class Shape(NamedTuple):
    """A read model: its table, the key that stands for an event there, and all columns that every side writes."""

    title: str
    table: str
    key: str
    columns: tuple[str, ...]


ACCOUNTS = Shape("100,000 keys, updated again and again", "accounts", "account", ("account", "number", "cents"))
CHARGES = Shape("new rows", "charges", "charge", ("charge", "account", "number", "cents"))
STATEMENTS = Shape("new rows that read another table", "lines", "charge", ("charge", "account", "number", "balance"))


class Seen(NamedTuple):
    """Moments of time.time(), and how many events were applied between them."""

    first_s: float
    last_s: float
    events: int

    @property
    def rate(self) -> float:
        return self.events / (self.last_s - self.first_s)


async def nothing_wrong() -> None:
    """Nobody who could have failed."""


async def watch(
    dsn: str, shape: Shape, events: int, lasts: Sequence[tuple[str, int]], check: Callable[[], Awaitable[None]] = nothing_wrong
) -> Seen:
    """Wait until a read model is whole. `lasts` are key and number of each partition's last event, which comes last there.

    What is visible at the first look counts for nobody.

    Raises:
        RuntimeError: it is not whole in time.
    """
    connection = await asyncpg.connect(dsn)
    try:
        return await asyncio.wait_for(_watch(connection, shape, events, lasts, check), _LIMIT_S)
    except TimeoutError as error:
        rows = await connection.fetchval(f"SELECT count(*) FROM {shape.table}")
        raise RuntimeError(f"{shape.table} was not whole in {_LIMIT_S} s: it has {rows} rows of {events} events") from error
    finally:
        await connection.close()


async def _watch(
    connection: asyncpg.Connection,
    shape: Shape,
    events: int,
    lasts: Sequence[tuple[str, int]],
    check: Callable[[], Awaitable[None]],
) -> Seen:
    there = 0
    while not there:
        if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", shape.table):
            there = await connection.fetchval(f"SELECT count(*) FROM {shape.table}")
        await check()
        await asyncio.sleep(0 if there else 0.01)
    first_s = time.time()
    sql = f"SELECT count(*) FROM {shape.table} JOIN unnest($1::text[], $2::bigint[]) AS last (key, value) "
    done = await connection.prepare(sql + f"ON {shape.key} = last.key AND number = last.value")
    keys, numbers = [key for key, _ in lasts], [number for _, number in lasts]
    looks = 0
    while await done.fetchval(keys, numbers) < len(lasts):
        looks += 1
        if looks % 100 == 0:
            await check()
        await asyncio.sleep(0.02)
    return Seen(first_s, time.time(), events - there)
