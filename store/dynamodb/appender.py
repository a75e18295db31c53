"""Appends to DynamoDB: they share transactions, which are tried again until each append has an outcome."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

from ...schemas import EventspineError, Unavailable
from ...schemas.retry import Backoff, wait_or_raise
from ..append_queue import AppendQueue
from ..batch import AppendRequest, EncodedEvent, Outcome
from .layout import LOG_HEAD, LogHead, event_key, head_key, id_key
from .table import Cancelled, Item, Table
from .writing import Plan, blamed, decide, expects_version, head_of, plan, take

__all__ = ["Appender", "with_place"]

logger = logging.getLogger(__name__)

_JITTER_S: Final = 0.002
_MOST_JITTER_S: Final = 0.05

_REFUSED: Final = frozenset({"ValidationError", "ItemCollectionSizeLimitExceeded"})


class _Contended(Unavailable):
    """Others were always quicker."""


class Appender:
    """Sends appends to DynamoDB in transactions, by an `AppendQueue`.

    One transaction is under way at a time: all of them write the log's head, so two would only stand in each other's way.
    What a crash or a lost answer leaves unknown is found out by the events' ids: each is an item that can be put only once.

    `same` tells whether an event is recorded as it is given, `unmet` where the first event stands that a condition forbids
    (0: nowhere).
    """

    def __init__(
        self,
        table: Table,
        *,
        max_waiting_bytes: int,
        retry_s: float,
        same: Callable[[Item, EncodedEvent], bool],
        unmet: Callable[[AppendRequest, LogHead], Awaitable[int]],
        on_appended: Callable[[], None],
    ) -> None:
        self._table = table
        self._retry_s = retry_s
        self._same = same
        self._unmet = unmet
        self._on_appended = on_appended
        self._head: LogHead | None = None  # as it was last seen; the transaction finds out whether it still is
        self._queue = AppendQueue(take, self._record, max_waiting_bytes=max_waiting_bytes)
        self.send = self._queue.send

    @property
    def held_bytes(self) -> int:
        """Bytes of the requests that wait or are under way."""
        return self._queue.held_bytes

    async def _record(self, batch: list[AppendRequest]) -> list[Outcome]:
        """Try until each request has its outcomes: by a transaction that was done, or by what is recorded.

        Raises:
            Unavailable: DynamoDB was away, or others were always quicker, for `retry_s` seconds.
            EventspineError: DynamoDB refuses the transaction.
        """
        decided: dict[int, list[Outcome]] = {}
        backoff = Backoff(give_up_after_s=self._retry_s)
        contended = Backoff(first_s=_JITTER_S, most_s=_MOST_JITTER_S, give_up_after_s=self._retry_s)
        examined: set[int] = set()
        versions: dict[str, int] | None = None  # read again only when they were in the way: who reads first comes too late
        while len(decided) < len(batch):
            left = [number for number in range(len(batch)) if number not in decided]
            requests = [batch[number] for number in left]
            try:
                if versions is None:
                    versions = await self._versions(requests)
                head = self._head or head_of(await self._table.get(LOG_HEAD))
                examined |= {each for each in left if batch[each].condition or _needs_stream(batch[each], versions)}
                if examined:
                    found = {each: await self._examine(batch[each], head) for each in examined}
                    examined, versions = set(), await self._versions(requests)
                    settled = {each: outcomes for each, outcomes in found.items() if outcomes is not None}
                    decided |= settled
                    if settled:
                        left = [number for number in left if number not in settled]
                        requests = [batch[number] for number in left]
                    if not left:
                        break
                planned = plan(requests, head, versions, now=datetime.now(UTC))
                cancelled = await self._transact(planned, backoff)
                if cancelled is None:
                    decided |= dict(zip(left, planned.outcomes, strict=True))
                    self._on_appended()
                    break
                if refused := {reason.code for reason in cancelled.reasons} & _REFUSED:
                    raise EventspineError(f"DynamoDB refused the transaction: {', '.join(sorted(refused))}") from cancelled
                blamed_ones, newer = blamed(planned.owners, cancelled.reasons)
                self._head = newer or self._head
                if blamed_ones:
                    if contended.next_delay_s() is None:
                        raise _Contended(f"other appends to these streams are always quicker: {cancelled}")
                    examined = {left[each] for each in blamed_ones}
                elif newer is not None and not contended.failing:
                    contended.next_delay_s()  # once without waiting: most often it was one append
                else:
                    await wait_or_raise(contended, _Contended(f"other transactions are always quicker: {cancelled}"))
                    self._head = newer
            except _Contended:  # it has been tried for long enough
                raise
            except Unavailable as error:
                if not backoff.failing:
                    logger.warning("append waits for DynamoDB: %s", error, extra={"appends": len(batch)})
                self._head = versions = None
                await wait_or_raise(backoff, error)
        return [outcome for number in range(len(batch)) for outcome in decided[number]]

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

    async def _examine(self, request: AppendRequest, head: LogHead) -> list[Outcome] | None:
        """Return the outcomes of a request that is not to be appended, None if it is."""
        ids = [each.event_id for part in request.parts for each in part.encoded]
        versions = await self._versions_of([part.stream_id for part in request.parts])
        outcomes = decide(request, versions, await self._recorded(ids), self._same)
        if outcomes is None and request.condition is not None:
            position = await self._unmet(request, head)
            if position:
                return [Outcome("unmet", None, position, None) for _ in request.parts]
        return outcomes

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
