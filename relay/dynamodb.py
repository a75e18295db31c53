"""What relays of a DynamoDB store keep there: one item that all processes of a relay rewrite, and an item for each parked event.

    PK                       SK          attributes
    RELAY#{relay}            STATE       record (JSON, see SharedRecord), revision
    RELAY#{relay}#PARKED     {position}  stream_id, shard, tries, retry, reason, parked_at
    RELAY#{relay}#LATE       {position}  late

The item is read consistently and written under the condition that nobody has written it since. Leases are told by the clocks
of the machines; if those differ by more than a lease, two processes publish one shard by turns, and Kafka's producer epoch keeps
that harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime
from random import uniform
from typing import Any, Final

import msgspec

from ..schemas import SettingsError, Unavailable
from ..store.dynamodb.log import DynamoDBLog
from ..store.dynamodb.table import Item, Table
from .shared import Lease, SharedRecord, beaten, left, pinned, released, status_of, view_of
from .state import MAX_REASON_CHARS, Parked, PinnedTopic, ShardReport, View

__all__ = ["DynamoDBRelayState"]

_TRIES: Final = 20
_AT_ONCE: Final = 50  # of the hundred items of a transaction, two for each event

_read_record = msgspec.json.Decoder(SharedRecord)


class DynamoDBRelayState:
    """See `State`. `clock` tells seconds since 1970."""

    def __init__(self, table: Table, relay_id: str, *, lease_s: float = 5.0, clock: Callable[[], float] = time.time) -> None:
        self.relay_id = relay_id
        self._table = table
        self._lease_s = lease_s
        self._clock = clock
        self._key = f"RELAY#{relay_id}"

    async def register(self, shards: int) -> None:
        """Make the relay's item if it is missing; 0 takes the shards that it has, or 1.

        Raises:
            SettingsError: the relay has another number of shards.
        """
        await self._make(shards or 1)
        has = len((await self._record())[0].leases)
        if shards and has != shards:
            raise SettingsError(
                f"relay {self.relay_id} has {has} shards, and the settings say {shards}: set relay_shards to {has}, or to 0 for "
                "what the relay has"
            )

    async def look(self, worker_id: str) -> View:
        """Return how things stand.

        Raises:
            SettingsError: there is no such relay.
        """
        record, _ = await self._record()
        return await self._view(record, worker_id)

    async def beat(self, worker_id: str, reports: Sequence[ShardReport]) -> View:
        """Say that a worker is alive and how its shards do, take its fair share of free shards, and return how things stand."""
        record = await self._rewrite(lambda record: beaten(record, worker_id, reports, now=self._clock(), lease_s=self._lease_s))
        return await self._view(record, worker_id)

    async def release(self, worker_id: str, shards: Iterable[int]) -> None:
        """Give shards back."""
        numbers = list(shards)
        await self._rewrite(lambda record: released(record, worker_id, numbers, now=self._clock()))

    async def leave(self, worker_id: str) -> None:
        """Forget a worker that ends."""
        await self._rewrite(lambda record: left(record, worker_id))

    async def check_held(self, worker_id: str, shard: int) -> None:
        """Raise Unavailable if a shard is not the worker's any more."""
        if shard not in (await self.look(worker_id)).held:
            raise Unavailable(f"shard {shard} of relay {self.relay_id} went to another process")

    async def pinned_topics(self) -> dict[str, PinnedTopic]:
        """Return the relay's topics as it first saw them."""
        return (await self._record())[0].topics

    async def pin_topic(self, topic: str, partitions: int, kafka_id: str) -> None:
        """Note a topic as it is when the relay first writes to it; one that is noted stays so."""
        await self._rewrite(lambda record: pinned(record, topic, PinnedTopic(partitions, kafka_id)))

    async def park(self, shard: int, parked: Sequence[Parked]) -> None:
        """Park events, or say anew why they are parked. Asking for a retry is over with the try."""
        for each in parked:
            reason = each.reason[:MAX_REASON_CHARS]
            values: Item = {"stream_id": each.stream_id, "shard": shard, "retry": False}
            added, first = {"tries": each.tries}, {"parked_at": datetime.now(UTC).isoformat(timespec="seconds")}
            # Why it was not tried is known from the first time; why it failed, from the last.
            target = values if each.tries else first
            target["reason"] = reason
            await self._table.update(self._parked_key(each.position), values=values, add=added, if_absent=first)

    async def parked_streams(self) -> dict[str, int]:
        """Return the streams that are parked, and from which position on."""
        streams: dict[str, int] = {}
        async for row in self._parked():
            streams.setdefault(row["stream_id"], row["global_position"])
        return streams

    async def published_late(self, after: int) -> set[int]:
        """Return the positions, behind one, of the events that were published late."""
        return {int(item["SK"]) async for item in self._table.query(f"{self._key}#LATE", after=_sort_key(after))}

    async def parked_to_retry(self) -> list[tuple[int, str]]:
        """Return position and stream of the parked events of streams that are to be tried again, in order."""
        rows = [row async for row in self._parked()]
        asked = {row["stream_id"] for row in rows if row["retry"]}
        firsts: dict[str, int] = {}
        for row in rows:
            firsts.setdefault(row["stream_id"], row["tries"])
        asked |= {stream for stream, tries in firsts.items() if tries == 0}
        return [(row["global_position"], row["stream_id"]) for row in rows if row["stream_id"] in asked]

    async def unpark(self, positions: Sequence[int], *, late: int = 0) -> None:
        """Forget parked events. If they were published, `late` is the number of the last one's record, in the order given.

        Who looks sees an event parked, or published late.
        """
        first = late - len(positions) + 1
        for start in range(0, len(positions), _AT_ONCE):
            part = positions[start : start + _AT_ONCE]
            notes = [
                {"PK": f"{self._key}#LATE", "SK": _sort_key(position), "late": first + start + number}
                for number, position in enumerate(part)
                if late
            ]
            await self._table.write(puts=notes, deletes=[self._parked_key(position) for position in part])

    async def parked(self) -> list[dict[str, Any]]:
        """Return what is parked, in order."""
        return [row async for row in self._parked()]

    async def retry(self, stream_id: str | None) -> list[str]:
        """Ask for another try of a stream's parked events, or of all; return the streams."""
        streams = set()
        async for row in self._parked():
            if stream_id in (None, row["stream_id"]):
                await self._table.update(
                    self._parked_key(row["global_position"]), values={"retry": True}, condition="attribute_exists(PK)"
                )
                streams.add(row["stream_id"])
        return sorted(streams)

    async def discard(self, stream_id: str) -> int | None:
        """Give up the first parked event of a stream; return its position, None if there is none."""
        async for row in self._parked():
            if row["stream_id"] == stream_id:
                position: int = row["global_position"]
                await self._table.write(puts=[], deletes=[self._parked_key(position)])
                await self._rewrite(lambda record: msgspec.structs.replace(record, discards=record.discards + 1))
                return position
        return None

    async def pause(self, reason: str | None) -> None:
        """Pause the relay, or let it go on (None).

        Raises:
            SettingsError: there is no such relay.
        """
        await self._rewrite(lambda record: msgspec.structs.replace(record, paused=reason))

    async def status(self) -> list[dict[str, Any]]:
        """Return a row for each shard, with what the log holds behind it."""
        record, _ = await self._record()
        log, now = DynamoDBLog(self._table), self._clock()
        rows = status_of(record, now=now, last_position=await log.last_position())
        for row in rows:
            waiting = await log.read_stored_at([row["position"] + 1])
            row["lag_s"] = max(0.0, now - waiting[0].created_at.timestamp()) if waiting else 0.0
        return rows

    async def _view(self, record: SharedRecord, worker_id: str) -> View:
        rows = [row async for row in self._parked()]
        retry = any(row["retry"] for row in rows)
        return view_of(record, worker_id, now=self._clock(), lease_s=self._lease_s, retry=retry, parked=len(rows))

    async def _make(self, shards: int) -> None:
        record = SharedRecord(tuple(Lease() for _ in range(shards)))
        await self._table.put(self._item(record, 1), if_absent=True)

    async def _record(self) -> tuple[SharedRecord, int]:
        item = await self._table.get({"PK": self._key, "SK": "STATE"})
        if item is None:
            raise SettingsError(f"relay {self.relay_id} has never run: start it with `eventspine dynamodb relay run`")
        return _read_record.decode(item["record"]), int(item["revision"])

    async def _rewrite(self, change: Callable[[SharedRecord], SharedRecord]) -> SharedRecord:
        """Change the record, from what is there. Done again while another process is quicker.

        Raises:
            Unavailable: it always is.
        """
        for tried in range(_TRIES):
            before, revision = await self._record()
            after = change(before)
            if after == before or await self._table.put(self._item(after, revision + 1), if_value=("revision", revision)):
                return after
            await asyncio.sleep(uniform(0, 0.01 * 2 ** min(tried, 6)))  # noqa: S311 - jitter is no secret
        raise Unavailable(f"too many processes write the state of relay {self.relay_id} at once")

    def _item(self, record: SharedRecord, revision: int) -> Item:
        return {"PK": self._key, "SK": "STATE", "record": msgspec.json.encode(record).decode(), "revision": revision}

    def _parked_key(self, position: int) -> Item:
        return {"PK": f"{self._key}#PARKED", "SK": _sort_key(position)}

    async def _parked(self) -> AsyncIterator[dict[str, Any]]:
        async for item in self._table.query(f"{self._key}#PARKED"):
            row = {name: value for name, value in item.items() if name not in ("PK", "SK")}
            yield row | {"global_position": int(item["SK"]), "parked_at": datetime.fromisoformat(item["parked_at"])}


def _sort_key(position: int) -> str:
    return f"{position:020d}"
