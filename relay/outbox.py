"""The outbox's relay: publishes messages as the log's relay publishes events, and empties the tables of what is published."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from ..schemas import SettingsError, Unavailable
from ..schemas.cloudevents import Header
from ..schemas.retry import Backoff
from ..store.postgres.outbox import TRIMMED, PostgresOutbox, Slot, StoredMessage
from .cursor import begin, check_history, cursor_topic, read_cursors
from .relay import Relay, relay_id
from .router import Routed
from .state import RelayState
from .topics import TopicSettings

if TYPE_CHECKING:
    from ..schemas.kafka import KafkaAccess

__all__ = ["OutboxRelay", "OutboxRouter", "trim_outbox", "trimmable"]

logger = logging.getLogger(__name__)

_LOOK_S: Final = 0.5

_read_headers = msgspec.json.Decoder(dict[str, str])


class OutboxRouter:
    """Routes messages: topic, key and value as they were sent, headers with `message_id` and `message_position` added.

    `reserved_prefix` begins the names of the log's topics: they hold the log's events alone.
    """

    positions_in_headers: Final = False

    def __init__(self, *, reserved_prefix: str) -> None:
        self._reserved = reserved_prefix or cursor_topic("")

    async def prepare(self, messages: Sequence[StoredMessage], /) -> None:
        """Do nothing: a message's bytes are ready."""

    @property
    def plan(self) -> Callable[[StoredMessage], Routed]:
        return self.route

    @property
    def headers(self) -> Callable[[StoredMessage], list[Header]]:
        return lambda message: self.route(message).headers or []

    def route(self, message: StoredMessage, /) -> Routed:
        """Return the record of a message.

        Raises:
            SettingsError: its topic is one of the log's.
        """
        position, message_id, _, topic, key, value, headers = message
        if topic.startswith(self._reserved):
            raise SettingsError(
                f"topics {self._reserved}… are the log's: send the message to another topic, and discard this one"
            )
        return Routed(
            topic,
            key.encode(),
            value,
            [
                *((name, text.encode()) for name, text in _read_headers.decode(headers).items()),
                ("message_id", message_id.encode()),
                ("message_position", b"%d" % position),
            ],
        )

    async def list_subjects(self) -> None:
        """Do nothing: values name their schemas themselves."""


class OutboxRelay:
    """Publishes the outbox of one store to Kafka, every message once and in order, and trims it.

    While the outbox has never held a message, it costs a look at an empty table every 0.5 s, and nothing on Kafka. From the first
    one on it is a `Relay`, with the same promises. Any number of processes may run it. An outbox is published under one name
    for ever: that of the first relay, whatever prefix and name a later one is given. So no two of them publish a message each.

    Every `trim_every_s` the owner of its first shard empties tables of which all is published; see `trim_outbox`. The other
    options are those of `Relay`.

    Attributes: `position`, `published` and `state` as of `Relay`; `state` is "idle" before the first message.
    """

    def __init__(
        self,
        outbox: PostgresOutbox,
        kafka: str | KafkaAccess,
        *,
        name: str = "relay.outbox",
        topic_prefix: str = "events.",
        topics: TopicSettings | None = None,
        delivery: str = "exactly-once",
        compression: str = "zstd",
        batch_events: int = 20_000,
        lease_s: float = 5.0,
        give_up_after_s: float = 300.0,
        trim_every_s: float = 10.0,
    ) -> None:
        self._outbox = outbox
        self._kafka = kafka
        self._name = name
        self._topic_prefix = topic_prefix
        self._topics = topics
        self._delivery = delivery
        self._compression = compression
        self._batch_events = batch_events
        self._lease_s = lease_s
        self._give_up_after_s = give_up_after_s
        self._trim_every_s = trim_every_s
        self._stop = asyncio.Event()
        self._relay: Relay | None = None

    @property
    def position(self) -> int:
        return self._relay.position if self._relay else 0

    @property
    def published(self) -> int:
        return self._relay.published if self._relay else 0

    @property
    def state(self) -> str:
        return self._relay.state if self._relay else "idle"

    def stop(self) -> None:
        """Ask for an end after the batches that are under way."""
        self._stop.set()
        if self._relay is not None:
            self._relay.stop()

    async def run(self) -> None:
        """Publish until `stop()`.

        Raises:
            IntegrityError, SettingsError, EventspineError, Unavailable: as `Relay.run`.
        """
        claimed = await self._first_message()
        if claimed is None:
            return
        prefix, name = claimed
        relay = self._relay = Relay(
            self._outbox,
            self._kafka,
            name=name,
            topic_prefix=prefix,
            router=OutboxRouter(reserved_prefix=prefix),
            topics=self._topics,
            delivery=self._delivery,
            compression=self._compression,
            batch_events=self._batch_events,
            lease_s=self._lease_s,
            give_up_after_s=self._give_up_after_s,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                trimming = tasks.create_task(self._keep_trimming(relay, prefix, name))
                await relay.run()
                trimming.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _first_message(self) -> tuple[str, str] | None:
        """Wait for the outbox's first message, and return under which prefix and name it is published; None if asked to stop."""
        backoff = Backoff(give_up_after_s=self._give_up_after_s)
        while not self._stop.is_set():
            try:
                if await self._outbox.last_position():
                    return await self._outbox.claim(self._topic_prefix, self._name)
                backoff.reset()
            except Unavailable as error:
                if not backoff.failing:
                    logger.warning("the outbox waits: %s", error)
                delay_s = backoff.next_delay_s()
                if delay_s is None:
                    raise
                await self._pause(delay_s)
            else:
                await self._pause(_LOOK_S)
        return None

    async def _keep_trimming(self, relay: Relay, prefix: str, name: str) -> None:
        rows = RelayState(self._outbox.pool, relay_id(prefix, name), lease_s=self._lease_s)
        while not self._stop.is_set():
            await self._pause(self._trim_every_s)
            if self._stop.is_set() or 0 not in relay.shards or relay.state != "publishing":
                continue
            try:
                await trim_outbox(self._outbox, self._kafka, rows, prefix=prefix, name=name, reached=relay.position)
            except Unavailable as error:
                logger.info("the outbox is not trimmed now: %s", error)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()


async def trim_outbox(
    outbox: PostgresOutbox, kafka: str | KafkaAccess, rows: RelayState, *, prefix: str, name: str, reached: int
) -> list[int]:
    """Empty the tables of which all is published, and return which.

    What is published is what the cursors on Kafka say; `reached`, where the relay says that it is, only spares a look at them.
    That the outbox is the one that was published is checked first. A table is emptied in one transaction: a crash leaves nothing
    half done.

    Raises:
        IntegrityError: the outbox is not the one that was published.
        Unavailable: somebody holds a table, or a server is away: try again later.
    """
    slots = await outbox.slots()
    parked = [each["global_position"] for each in await rows.parked()] if len(slots) > 1 else []
    if not trimmable(slots, reached, parked):
        return []
    view = await rows.look("")
    keys = [name, f"{name}@{view.generation}", f"{name}@{view.generation - 1}"]
    cursors = await asyncio.to_thread(read_cursors, kafka, cursor_topic(prefix), keys)
    own = [begin(cursors, name, shard, view.generation)[0] for shard in range(view.shards)]
    for cursor in own:
        found = await outbox.event_id_at(cursor.position) if cursor.position else None
        if found == TRIMMED:  # another process trims, by later cursors
            return []
        check_history(cursor, found)
    published = min(cursor.position for cursor in own)
    emptied = [slot for slot in trimmable(slots, published, parked) if await outbox.trim(slot, published, rows.relay_id)]
    if emptied:
        logger.info("outbox trimmed", extra={"relay": rows.relay_id, "slots": emptied, "published": published})
    return emptied


def trimmable(slots: Sequence[Slot], published: int, parked: Iterable[int]) -> list[int]:
    """Return which tables can be emptied: all is before the cursors, none parked, and the outbox's last message is elsewhere."""
    last = max((slot.last for slot in slots), default=0)
    positions = list(parked)
    return [
        slot.number
        for slot in slots
        if slot.last < min(published, last) and not any(slot.first <= each <= slot.last for each in positions)
    ]
