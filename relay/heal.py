"""Publish what is missing in the topics: handed to the relay, which publishes it late, exactly once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import asyncpg

from ..schemas import EventspineError, Fenced
from ..schemas.postgres import Connection, load_sql, translated
from .state import RelayState

__all__ = ["Healed", "heal_missing", "repairing"]

_SQL = "eventspine.relay"
_LOCK = load_sql(_SQL, "sql/lock_repair")
_UNLOCK = load_sql(_SQL, "sql/unlock_repair")
_PARK_MISSING = load_sql(_SQL, "sql/park_missing")
_PARKED_AT = load_sql(_SQL, "sql/parked_at")

_MOST: Final = 20_000
_REASON: Final = "its record is missing in the topic"


class Healed(NamedTuple):
    """How many events were published late, how many still wait for a relay to do it, and the rows of those that could not be."""

    published: int
    waiting: int
    failed: Sequence[dict[str, Any]]


@asynccontextmanager
async def repairing(pool: asyncpg.Pool, relay_id: str) -> AsyncIterator[Connection]:
    """Be the only one that repairs a relay's topics, from before they are looked at until what is missing is noted.

    Two at once would both see an event missing, and the second would hand it over when the first one's record is there already.
    What is noted goes through the connection that holds the lock: when it is lost, so is the right to write.

    Raises:
        Fenced: somebody else is at it.
    """
    async with translated():
        connection: Any = await pool.acquire()
    try:
        async with translated():
            if not await connection.fetchval(_LOCK, relay_id):
                raise Fenced(f"the topics of relay {relay_id} are being repaired by another process: let it end")
        try:
            yield connection
        finally:
            if not connection.is_closed():
                async with translated():
                    await connection.execute(_UNLOCK, relay_id)
    finally:
        async with translated():
            await pool.release(connection)


async def heal_missing(
    connection: Connection,
    state: RelayState,
    positions: Sequence[int],
    *,
    patience_s: float = 30.0,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Healed:
    """Have events published that have no record, each to the end of its partition, in the order of their streams, marked as late.

    They are parked and asked to be tried again: whatever dies, the relay publishes each once, in one transaction with the cursor
    that says so. Waits for it as long as there is progress within `patience_s`; without a relay that runs, not at all. Call it
    within `repairing`, with what was missing then.

    Raises:
        EventspineError: too much is missing to be published behind the rest.
    """
    if len(positions) > _MOST:
        raise EventspineError(
            f"{len(positions):,} events are missing; more than {_MOST:,} are not published behind the rest: publish the topic "
            "anew with `eventspine relay verify --rebuild TOPIC`"
        )
    async with translated():
        await connection.execute(_PARK_MISSING, state.relay_id, list(positions), _REASON)
    left, moved_at = len(positions), time.monotonic()
    while True:
        async with translated():
            rows = [dict(row) for row in await connection.fetch(_PARKED_AT, state.relay_id, list(positions))]
        failed = [row for row in rows if not row["retry"]]
        waiting = len(rows) - len(failed)
        if len(rows) < left:
            left, moved_at = len(rows), time.monotonic()
        on_progress(len(positions) - len(rows))
        view = await state.look("")
        if not waiting or not view.workers or view.paused or time.monotonic() - moved_at > patience_s:
            return Healed(len(positions) - len(rows), waiting, failed)
        await asyncio.sleep(0.1)
