"""Change the number of a relay's shards: close each at its cursor, then let the next generation begin behind."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

import msgspec

from ..schemas import EventspineError, SettingsError, Unavailable
from ..schemas.kafka import KafkaAccess
from .cursor import TOPIC_SETTINGS, begin, cursor_topic, read_cursors
from .publisher import Record, TransactionalPublisher, publishing
from .shard import transactional_id
from .state import RelayState
from .topics import Topics, partitions_of_shard

__all__ = ["reshard"]

logger = logging.getLogger(__name__)


async def reshard(
    kafka: str | KafkaAccess, state: RelayState, topics: Topics, *, prefix: str, name: str, shards: int, timeout_s: float = 60.0
) -> bool:
    """Give a relay another number of shards; tell whether there was anything to do.

    Its processes may run: they give their shards up, and share the new ones when all old ones are closed. Each old shard is
    closed by a cursor that its own transactional id commits, so that a process that was not heard of can't publish behind it. If
    this is killed, run it again: what is closed stays closed, and nothing is published until the change is done.

    Raises:
        SettingsError: the relay never ran, or the number makes no sense.
        EventspineError: the change before this one is not through yet.
        Unavailable: processes did not give up their shards in time; or Kafka or Postgres is away.
    """
    if shards < 1:
        raise SettingsError(f"{shards} shards: a relay has one at least")
    view = await state.look("")
    if view.shards == shards and view.paused != "reshard":
        return False
    await state.pause("reshard")
    await _wait_until_free(state, timeout_s)
    await topics.ensure_cursors(cursor_topic(prefix), max(view.shards, shards), TOPIC_SETTINGS)
    partitions = {topic: pinned.partitions for topic, pinned in (await state.pinned_topics()).items() if not pinned.rebuilding}
    for number in range(view.shards):
        await _close(kafka, state, prefix, name, number, view.shards, view.generation, partitions)
    if not await state.set_shards(shards, ends=view.generation):
        raise Unavailable("another process changed the number of shards meanwhile: look at `eventspine relay status`")
    return True


async def _wait_until_free(state: RelayState, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while owners := sorted({row["owner"] for row in await state.status() if row["owner"]}):
        if time.monotonic() > deadline:
            raise Unavailable(f"{', '.join(owners)} did not give up their shards in {timeout_s} s: run it again")
        await asyncio.sleep(0.2)


async def _close(
    kafka: str | KafkaAccess,
    state: RelayState,
    prefix: str,
    name: str,
    number: int,
    shards: int,
    generation: int,
    partitions: Mapping[str, int],
) -> None:
    topic, key = cursor_topic(prefix), f"{name}@{generation}"
    async with publishing(lambda: TransactionalPublisher(kafka, transactional_id(prefix, name, number))) as sender:
        await sender.start()
        await sender.end_forgotten([(topic, number)], partitions_of_shard(partitions, number, shards))
        cursors = await asyncio.to_thread(read_cursors, kafka, topic, [name, key, f"{name}@{generation - 1}"])
        if (key, number) in cursors:
            return
        cursor, before = begin(cursors, name, number, generation)
        passed = max((each.position for each in before), default=0)
        if cursor.position < passed or cursor.retrying:
            raise EventspineError(
                f"shard {number} has not come to position {passed} yet, where the change of shards before this one ends: let the "
                "relay run until it has (`eventspine relay resume`), then change the number again"
            )
        if cursor.unparked:  # the shard's last life may have died between Kafka's commit and this
            await state.unpark(cursor.unparked, late=cursor.late)
        closing = msgspec.structs.replace(cursor, generation=generation, shards=shards, unparked=())
        await sender.send([], Record(topic, number, key.encode(), closing.to_bytes(), []))
    logger.info("shard closed", extra={"shard": number, "position": cursor.position})
