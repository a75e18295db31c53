"""What relays keep in Postgres: who publishes which shard, the topics as they were found, and parked events.

None of it is needed for what was published to be right: a cursor is on Kafka, and Kafka's producer epoch says who may publish.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg

from ..schemas import SettingsError, Unavailable
from ..schemas.postgres import load_sql, translated

__all__ = ["MAX_REASON_CHARS", "Parked", "PinnedTopic", "RelayState", "ShardReport", "View"]

_SQL = "eventspine.relay"
_MAKE_RELAY = load_sql(_SQL, "sql/make_relay")
_MAKE_SHARDS = load_sql(_SQL, "sql/make_shards")
_BEAT = load_sql(_SQL, "sql/beat")
_TAKE = load_sql(_SQL, "sql/take_shards")
_LOOK = load_sql(_SQL, "sql/look")
_RELEASE = load_sql(_SQL, "sql/release_shards")
_LEAVE = load_sql(_SQL, "sql/leave")
_PIN_TOPIC = load_sql(_SQL, "sql/pin_topic")
_PINNED_TOPICS = load_sql(_SQL, "sql/pinned_topics")
_PARK = load_sql(_SQL, "sql/park")
_PARKED_STREAMS = load_sql(_SQL, "sql/parked_streams")
_PUBLISHED_LATE = load_sql(_SQL, "sql/published_late")
_TO_RETRY = load_sql(_SQL, "sql/parked_to_retry")
_UNPARK = load_sql(_SQL, "sql/unpark")
_LIST_PARKED = load_sql(_SQL, "sql/list_parked")
_RETRY = load_sql(_SQL, "sql/retry_parked")
_DISCARD = load_sql(_SQL, "sql/discard_parked")
_PAUSE = load_sql(_SQL, "sql/pause")
_SET_SHARDS = load_sql(_SQL, "sql/set_shards")
_STATUS = load_sql(_SQL, "sql/status")

MAX_REASON_CHARS = 2000


class View(NamedTuple):
    """How the relay is cut and paused, how many of its workers live, which shards the asking worker holds, whether a retry of
    parked events was asked for, how many are parked, and how many were ever given up."""

    shards: int
    generation: int
    paused: str | None
    workers: int
    held: list[int]
    retry: bool
    parked: int
    discards: int


class ShardReport(NamedTuple):
    """How a shard is doing, as its owner tells it."""

    shard: int
    state: str
    position: int
    published: int
    rate: float


class PinnedTopic(NamedTuple):
    """A topic as the relay first saw it."""

    partitions: int
    kafka_id: str

    @property
    def rebuilding(self) -> bool:
        """Whether it is being built anew; `kafka_id` holds then how it is to be made, see `eventspine.relay.rebuild`."""
        return self.kafka_id.startswith("{")


class Parked(NamedTuple):
    """An event that can't be published; `tries` 0 = it was not tried, because one before it in its stream is parked."""

    position: int
    stream_id: str
    reason: str
    tries: int


class RelayState:
    """The rows of one relay, which is called by its topic prefix and its name."""

    def __init__(self, pool: asyncpg.Pool, relay_id: str, *, lease_s: float = 5.0) -> None:
        self.relay_id = relay_id
        self._pool = pool
        self._lease_s = lease_s

    async def register(self, shards: int) -> None:
        """Make what is missing of the relay's rows. `shards` counts for a new relay; 0 takes what it has, or 1.

        Raises:
            SettingsError: the relay has another number of shards.
        """
        await self.register_new(shards or 1)
        has = (await self.look("")).shards
        if shards and has != shards:
            raise SettingsError(
                f"relay {self.relay_id} has {has} shards, and the settings say {shards}: run `eventspine relay reshard "
                f"{shards}`, or set relay_shards to {has}, or to 0 for what the relay has"
            )

    async def register_new(self, shards: int) -> None:
        """Make the relay's rows with so many shards, if it is new."""
        await self._execute(_MAKE_RELAY, self.relay_id, shards)
        await self._execute(_MAKE_SHARDS, self.relay_id)

    async def look(self, worker_id: str) -> View:
        rows = await self._fetch(_LOOK, self.relay_id, worker_id, self._lease_s)
        if not rows:
            raise SettingsError(f"relay {self.relay_id} has never run: start it with `eventspine relay run`")
        return View(*rows[0])

    async def beat(self, worker_id: str, reports: Sequence[ShardReport]) -> View:
        """Say that a worker is alive and how its shards do, take its fair share of free shards, and return how things stand."""
        columns = [list(column) for column in zip(*reports, strict=True)] if reports else [[], [], [], [], []]
        await self._execute(_BEAT, self.relay_id, worker_id, self._lease_s, *columns)
        await self._execute(_TAKE, self.relay_id, worker_id, self._lease_s)
        return await self.look(worker_id)

    async def release(self, worker_id: str, shards: Iterable[int]) -> None:
        await self._execute(_RELEASE, self.relay_id, worker_id, list(shards))

    async def leave(self, worker_id: str) -> None:
        await self._execute(_LEAVE, self.relay_id, worker_id)

    async def check_held(self, worker_id: str, shard: int) -> None:
        """Raise Unavailable if a shard is not the worker's any more."""
        if shard not in (await self.look(worker_id)).held:
            raise Unavailable(f"shard {shard} of relay {self.relay_id} went to another process")

    async def pinned_topics(self) -> dict[str, PinnedTopic]:
        rows = await self._fetch(_PINNED_TOPICS, self.relay_id)
        return {row["topic"]: PinnedTopic(row["partitions"], row["kafka_id"]) for row in rows}

    async def pin_topic(self, topic: str, partitions: int, kafka_id: str) -> None:
        await self._execute(_PIN_TOPIC, self.relay_id, topic, partitions, kafka_id)

    async def park(self, shard: int, parked: Sequence[Parked]) -> None:
        if parked:
            reasons = [each.reason[:MAX_REASON_CHARS].replace("\0", "") for each in parked]
            streams, tries = [each.stream_id for each in parked], [each.tries for each in parked]
            await self._execute(_PARK, self.relay_id, shard, [each.position for each in parked], streams, reasons, tries)

    async def parked_streams(self) -> dict[str, int]:
        """Return the streams that are parked, and from which position on."""
        return {row["stream_id"]: row["first"] for row in await self._fetch(_PARKED_STREAMS, self.relay_id)}

    async def published_late(self, after: int) -> set[int]:
        """Return the positions, behind one, of the events that were published late."""
        return {row["global_position"] for row in await self._fetch(_PUBLISHED_LATE, self.relay_id, after)}

    async def parked_to_retry(self) -> list[tuple[int, str]]:
        """Return position and stream of the parked events of streams that are to be tried again, in order.

        Those are the ones that somebody asked for, and those whose first event was given up.
        """
        return [(row["global_position"], row["stream_id"]) for row in await self._fetch(_TO_RETRY, self.relay_id)]

    async def unpark(self, positions: Sequence[int], *, late: int = 0) -> None:
        """Forget parked events. If they were published, `late` is the number of the last one's record, in the order given."""
        numbers = range(late - len(positions) + 1, late + 1) if late else [0] * len(positions)
        await self._execute(_UNPARK, self.relay_id, list(positions), list(numbers))

    async def parked(self) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._fetch(_LIST_PARKED, self.relay_id)]

    async def retry(self, stream_id: str | None) -> list[str]:
        """Ask for another try of a stream's parked events, or of all; return the streams."""
        return sorted({row["stream_id"] for row in await self._fetch(_RETRY, self.relay_id, stream_id)})

    async def discard(self, stream_id: str) -> int | None:
        """Give up the first parked event of a stream; return its position, None if there is none."""
        rows = await self._fetch(_DISCARD, self.relay_id, stream_id)
        return int(rows[0]["global_position"]) if rows else None

    async def pause(self, reason: str | None) -> None:
        """Pause the relay, or let it go on (None).

        Raises:
            SettingsError: there is no such relay.
        """
        if not await self._fetch(_PAUSE, self.relay_id, reason):
            raise SettingsError(f"relay {self.relay_id} has never run: start it with `eventspine relay run`")

    async def set_shards(self, shards: int, *, ends: int) -> bool:
        """Begin the generation behind `ends`; tell whether this call did it."""
        done = bool(await self._fetch(_SET_SHARDS, self.relay_id, shards, ends))
        await self._execute(_MAKE_SHARDS, self.relay_id)
        return done

    async def status(self) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._fetch(_STATUS, self.relay_id)]

    async def _execute(self, statement: str, *parameters: object) -> None:
        async with translated():
            await self._pool.execute(statement, *parameters)

    async def _fetch(self, statement: str, *parameters: object) -> list[asyncpg.Record]:
        async with translated():
            rows: list[asyncpg.Record] = await self._pool.fetch(statement, *parameters)
        return rows


class Rate:
    """Counts, and says how many a second, over the last ten seconds or so."""

    def __init__(self) -> None:
        self.count = 0
        self._marks: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def look(self) -> float:
        now = time.monotonic()
        self._marks = [*self._marks[-10:], (now, self.count)]
        then, counted = self._marks[0]
        return (self.count - counted) / max(now - then, 0.001)


def fair_share(shards: int, workers: int) -> int:
    """Return how many shards a worker may hold: all together hold all."""
    return -(-shards // max(workers, 1))


def surplus(held: Iterable[int], share: int) -> list[int]:
    """Return which shards a worker gives back: those beyond its share, the highest first."""
    return sorted(held, reverse=True)[: max(0, len(list(held)) - share)] if (held := list(held)) else []


def stale_topics(pinned: Mapping[str, PinnedTopic], found: Mapping[str, PinnedTopic]) -> list[str]:
    """Return what is said of topics that are not any more as they were: gone, made anew, or with other partitions."""
    said = []
    for topic, before in sorted(pinned.items()):
        now = found.get(topic)
        if now is None:
            said.append(f"topic {topic} is gone")
        elif before.kafka_id and now.kafka_id and before.kafka_id != now.kafka_id:
            said.append(f"topic {topic} was deleted and made anew")
        elif before.partitions != now.partitions:
            said.append(f"topic {topic} has {now.partitions} partitions, and had {before.partitions}")
    return said
