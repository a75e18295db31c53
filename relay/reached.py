"""How far a relay has published, partition by partition, as its cursors on Kafka say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from confluent_kafka.admin import AdminClient

from ..schemas.kafka import KafkaAccess, client_settings, translated_kafka
from ..store.postgres.log import PostgresLog
from .cursor import begin, check_history, check_link, cursor_topic, read_cursors
from .offsets import next_offsets
from .state import RelayState

__all__ = ["Reached", "read_reached"]

_SETTLE_WITHIN_S: Final = 5.0


class Reached(NamedTuple):
    """Positions by shard, and those at which the shards of the generation before were closed ([] for the first)."""

    shards: Sequence[int]
    closed: Sequence[int]

    def of(self, partition: int) -> int:
        """Return up to which position a partition's events are published; the same number in every topic."""
        own = self.shards[partition % len(self.shards)]
        return max(own, self.closed[partition % len(self.closed)]) if self.closed else own

    @property
    def least(self) -> int:
        return min(self.shards)


async def read_reached(log: PostgresLog, kafka: str | KafkaAccess, state: RelayState, *, prefix: str, name: str) -> Reached:
    """Read the cursors, and check that the log is the one that was published.

    Raises:
        SettingsError: the relay has never run.
        IntegrityError: the log is another one.
        Unavailable: the number of shards is being changed; or Kafka or Postgres is away.
    """
    view = await state.look("")
    await asyncio.to_thread(_settle, kafka, cursor_topic(prefix))
    keys = [name, f"{name}@{view.generation}", f"{name}@{view.generation - 1}"]
    cursors = await asyncio.to_thread(read_cursors, kafka, cursor_topic(prefix), keys)
    begun = [begin(cursors, name, shard, view.generation) for shard in range(view.shards)]
    closed = begun[0][1]
    for cursor in [*(own for own, _ in begun), *closed]:
        check_history(cursor, await log.event_id_at(cursor.position))
        check_link(cursor, await log.digest_of_link(cursor.link) if cursor.link else None)
    return Reached([own.position for own, _ in begun], [each.position for each in closed])


def _settle(kafka: str | KafkaAccess, topic: str) -> None:
    """Wait until what is in a topic can be read; see `next_offsets`.

    Not for long: behind a transaction whose producer died nothing can be read, and older cursors will do.
    """
    admin, deadline = AdminClient(client_settings(kafka)), time.monotonic() + _SETTLE_WITHIN_S
    with translated_kafka("to look at the relay's cursors"):
        partitions = [(topic, number) for number in admin.list_topics(topic, timeout=30).topics[topic].partitions]
        wanted = next_offsets(admin, partitions, committed=False)
        while any(end < wanted[each] for each, end in next_offsets(admin, partitions, committed=True).items()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
