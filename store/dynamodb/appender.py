"""The append queue: concurrent appends share transactions, which are tried again until each append has an outcome."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

from ...schemas import EventspineError, Unavailable
from ...schemas.retry import Backoff, wait_or_raise
from ..postgres.batch import AppendRequest, EncodedEvent, Outcome
from .layout import LOG_HEAD, LogHead, event_key, head_key, id_key
from .table import Cancelled, Item, Table
from .writing import Plan, blamed, decide, expects_version, head_of, plan, take

__all__ = ["Appender", "with_place"]

logger = logging.getLogger(__name__)

_JITTER_S: Final = 0.002
_MOST_JITTER_S: Final = 0.05

_REFUSED: Final = frozenset({"ValidationError", "ItemCollectionSizeLimitExceeded"})


class Appender:
    """Sends appends in transactions: the first goes at once, those that arrive while it is under way go together in the next.

    One transaction is under way at a time: all of them write the log's head, so two would only stand in each other's way.

    What a crash or a lost answer leaves unknown is found out by the events' ids: each is an item that can be put only once.
    """

    def __init__(
        self,
        table: Table,
        *,
        max_waiting_bytes: int,
        retry_s: float,
        same: Callable[[Item, EncodedEvent], bool],
        unmet: Callable[[AppendRequest, LogHead], Awaitable[int]],
    ) -> None:
        self._table = table
        self._max_waiting_bytes = max_waiting_bytes
        self._retry_s = retry_s
        self._same = same
        self._unmet = unmet
        self._head: LogHead | None = None  # as it was last seen; the transaction finds out whether it still is
        self._waiting: deque[AppendRequest] = deque()
        self._held_bytes = 0
        self._room = asyncio.Condition()
        self._sender: asyncio.Task[None] | None = None
        self.on_appended: Callable[[], None] = lambda: None

    @property
    def held_bytes(self) -> int:
        """Bytes of the requests that wait or are under way."""
        return self._held_bytes

    async def send(self, request: AppendRequest) -> Sequence[Outcome]:
        """Send a request with the next transaction, and return its outcomes, one for each part. Waits while the queue is full.

        Raises:
            Unavailable: DynamoDB was away for `retry_s` seconds.
            EventspineError: DynamoDB refuses the request.
        """
        async with self._room:
            await self._room.wait_for(lambda: self._held_bytes < self._max_waiting_bytes)
            self._held_bytes += request.bytes
        request.done = asyncio.get_running_loop().create_future()
        self._waiting.append(request)
        if self._sender is None:
            self._sender = asyncio.create_task(self._work(), name="eventspine-append")
        try:
            return await request.done
        finally:
            self._held_bytes -= request.bytes
            async with self._room:
                self._room.notify_all()

    async def _work(self) -> None:
        """Send batch after batch until nobody waits. Every request taken gets its outcomes or an error."""
        batch: list[AppendRequest] = []
        try:
            while self._waiting:
                batch = take(self._waiting)
                if batch:
                    await self._settle(batch)
        except asyncio.CancelledError:  # the loop is closing
            for request in (*batch, *self._waiting):
                if request.done is not None:
                    request.done.cancel()
            raise
        finally:
            self._sender = None
            if self._waiting and not asyncio.get_running_loop().is_closed():
                self._sender = asyncio.create_task(self._work(), name="eventspine-append")

    async def _settle(self, batch: list[AppendRequest]) -> None:
        """Give each request of a batch its outcomes, or the error that ends it."""
        try:
            await self._attempt(batch)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, Unavailable):
                for request in batch:  # DynamoDB refuses something in it: alone, the others pass
                    await self._settle([request])
                return
            for request in batch:
                if request.done is not None and not request.done.done():
                    request.done.set_exception(error)

    async def _attempt(self, batch: list[AppendRequest]) -> None:
        """Try until each request has its outcomes: by a transaction that was done, or by what is recorded."""
        backoff = Backoff(give_up_after_s=self._retry_s)
        contended = Backoff(first_s=_JITTER_S, most_s=_MOST_JITTER_S, give_up_after_s=self._retry_s)
        examined: set[int] = set()
        versions: dict[str, int] | None = None  # read again only when they were in the way: who reads first comes too late
        while True:
            try:
                if versions is None:
                    versions = await self._versions(batch)
                head = self._head or head_of(await self._table.get(LOG_HEAD))
                examined |= {
                    number for number, request in enumerate(batch) if request.condition or _needs_stream(request, versions)
                }
                if examined:
                    batch = await self._examine(batch, examined, head)
                    examined = set()
                    if not batch:
                        return
                    versions = await self._versions(batch)
                planned = plan(batch, head, versions, now=datetime.now(UTC))
                reasons = await self._transact(planned, backoff)
                if reasons is None:
                    for request, outcomes in zip(batch, planned.outcomes, strict=True):
                        _give(request, outcomes)
                    self.on_appended()
                    return
                if refused := {reason.code for reason in reasons.reasons} & _REFUSED:
                    raise EventspineError(f"DynamoDB refused the transaction: {', '.join(sorted(refused))}") from reasons
                examined, newer = blamed(planned.owners, reasons.reasons)
                self._head = newer or self._head
                if examined:
                    versions = None
                    continue
                if newer is not None and not contended.failing:
                    contended.next_delay_s()  # once at once: most often it was one append
                    continue
                await wait_or_raise(contended, Unavailable(f"other transactions are always quicker: {reasons}"))
                self._head = newer
            except Unavailable as error:
                if not backoff.failing:
                    logger.warning("append waits for DynamoDB: %s", error, extra={"appends": len(batch)})
                self._head = versions = None
                await wait_or_raise(backoff, error)

    async def _transact(self, planned: Plan, backoff: Backoff) -> Cancelled | None:
        """Do a transaction; sent again under its token while nobody knows whether it was done. Return why it was not, or None."""
        token = str(uuid4())
        while True:
            try:
                await self._table.transact(planned.operations, token=token)
            except Cancelled as error:
                return error
            except Unavailable as error:
                if not backoff.failing:
                    logger.warning("append waits for DynamoDB: %s", error)
                await wait_or_raise(backoff, error)
            else:
                self._head = planned.head
                return None

    async def _versions(self, batch: Sequence[AppendRequest]) -> dict[str, int]:
        """Look up the versions of the streams of which none is expected."""
        streams = [part.stream_id for request in batch for part in request.parts if expects_version(part) is None]
        return await self._versions_of(streams) if streams else {}

    async def _versions_of(self, streams: Sequence[str]) -> dict[str, int]:
        items = await self._table.get_many([head_key(stream_id) for stream_id in streams])
        found = {item["PK"].partition("#")[2]: item["version"] for item in items}
        return {stream_id: found.get(stream_id, 0) for stream_id in streams}

    async def _examine(self, batch: list[AppendRequest], numbers: set[int], head: LogHead) -> list[AppendRequest]:
        """Give those of a batch their outcomes that will not be appended; return the others."""
        left = []
        for number, request in enumerate(batch):
            if number in numbers:
                ids = [each.event_id for part in request.parts for each in part.encoded]
                versions = await self._versions_of([part.stream_id for part in request.parts])
                outcomes = decide(request, versions, await self._recorded(ids), self._same)
                if outcomes is None and request.condition is not None:
                    position = await self._unmet(request, head)
                    if position:
                        outcomes = [Outcome("unmet", None, position, None) for _ in request.parts]
                if outcomes is not None:
                    _give(request, outcomes)
                    continue
            left.append(request)
        return left

    async def _recorded(self, ids: Sequence[UUID]) -> dict[UUID, Item]:
        """Return the events with these ids that are recorded, with their places."""
        places = await self._table.get_many([id_key(each) for each in ids])
        items = await self._table.get_many([event_key(place["stream_id"], place["version"]) for place in places])
        return {UUID(item["event_id"]): with_place(item) for item in items}


def with_place(item: Item) -> Item:
    """Return an event's item with `stream_id`, `version`, `position` and `created_at` as values."""
    return item | {
        "stream_id": item["PK"].partition("#")[2],
        "version": int(item["SK"].partition("#")[2]),
        "position": item["GSI1SK"],
        "created_at": datetime.fromisoformat(item["created_at"]),
    }


def _needs_stream(request: AppendRequest, versions: dict[str, int]) -> bool:
    """Whether a part expects a stream that is not there."""
    return any(
        expects_version(part) is None and part.expected.name == "STREAM_EXISTS" and not versions[part.stream_id]  # type: ignore[union-attr]
        for part in request.parts
    )


def _give(request: AppendRequest, outcomes: Sequence[Outcome]) -> None:
    if request.done is not None and not request.done.done():
        request.done.set_result(outcomes)
