"""The cursor: how far a shard of the relay has published, kept on Kafka itself.

It is a record in a compacted topic, written in the same Kafka transaction as the events, so that what was published and how far
the relay believes to have come can't disagree. Shard 3 writes to partition 3. The key is the relay's name, the value JSON:

    {"position": 42, "event_id": "…", "link": 7, "digest": "…", "generation": 1}

`event_id` is the event at that position, `link` and `digest` the last link of the hash chain at or before it (left out where the
store keeps none). When the number of shards changes, each old shard writes its last cursor once more under the key
`{name}@{generation}` with `"shards"`, how many there were: it is closed, and the shards of the next generation begin behind it.
`"unparked"` are the positions of parked events that were published in the same transaction, `"late"` is how many records the
shard has published late; without transactions, `"retrying"` are positions that are being published late, from that number on.
`"published"` has the last position in each partition, by the id that Kafka gave the topic: the next record there names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from ..schemas import IntegrityError, Unavailable
from ..schemas.kafka import KafkaAccess, client_settings, kafka_error, translated_kafka
from ..store.postgres.outbox import TRIMMED
from .source import Stored

__all__ = [
    "START",
    "TOPIC_SETTINGS",
    "Cursor",
    "begin",
    "check_history",
    "check_link",
    "cursor_topic",
    "next_cursor",
    "read_cursor",
    "read_cursors",
    "with_published",
]

TOPIC_SETTINGS: Final = {"cleanup.policy": "compact", "segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.1"}


class Cursor(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last event looked at by a shard; position 0 and no event id before the first."""

    position: int
    event_id: str
    link: int = 0
    digest: str = ""
    generation: int = 0
    shards: int = 0
    unparked: tuple[int, ...] = ()
    late: int = 0
    retrying: tuple[int, ...] = ()
    published: dict[str, dict[int, int]] = {}

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls, value: bytes) -> Cursor:
        try:
            return msgspec.json.decode(value, type=cls)
        except msgspec.MsgspecError as error:
            raise IntegrityError(f"the relay's cursor on Kafka is unreadable: {value[:200]!r}: {error}") from error


START: Final = Cursor(0, "")

_REWRITTEN: Final = (
    ": the database was restored to an older state or is not the one that was published. Publishing on would give consumers two "
    "histories. Restore the right database, or publish this one under another topic prefix"
)


def cursor_topic(prefix: str) -> str:
    """Return the topic that holds the cursors: a partition for each shard.

    A category can't be called `-cursors` (its name holds no hyphen), so no topic of events has this name.
    """
    return f"{prefix}-cursors"


def check_history(cursor: Cursor, event_id_at_cursor: str | None) -> None:
    """Check that the log still holds, at the cursor's position, the event that was published from there, or has trimmed it.

    Raises:
        IntegrityError: it does not: the database was restored to an older state, or is another one.
    """
    if cursor.position and event_id_at_cursor not in (cursor.event_id, TRIMMED):
        found = f"the log holds event {event_id_at_cursor} there" if event_id_at_cursor else "the log ends before"
        raise IntegrityError(
            f"Kafka has events up to position {cursor.position} (event {cursor.event_id}), but {found}{_REWRITTEN}"
        )


def check_link(cursor: Cursor, digest_of_link: str | None) -> None:
    """Check that the log's hash chain still holds the link that the cursor names: what lies before it was not rewritten.

    Raises:
        IntegrityError: it does not.
    """
    if cursor.link and digest_of_link != cursor.digest:
        found = "is missing" if digest_of_link is None else f"has the digest {digest_of_link}"
        raise IntegrityError(
            f"Kafka has events up to position {cursor.position}, and link {cursor.link} of the log's hash chain had the digest "
            f"{cursor.digest} then, but now it {found}{_REWRITTEN}"
        )


def next_cursor(cursor: Cursor, events: Sequence[Stored]) -> Cursor:
    """Return the cursor behind a batch that follows `cursor` without a gap.

    Raises:
        IntegrityError: a position is missing or out of order.
    """
    for expected, event in enumerate(events, cursor.position + 1):
        if event.global_position != expected:
            raise IntegrityError(
                f"the log has position {event.global_position} where {expected} should follow: it was tampered with"
            )
    if not events:
        return cursor
    return msgspec.structs.replace(cursor, position=events[-1].global_position, event_id=events[-1].event_id)


def with_published(cursor: Cursor, positions: Mapping[tuple[str, int], int], topic_ids: Mapping[str, str]) -> Cursor:
    """Return a cursor that knows up to where partitions are published."""
    if not positions:
        return cursor
    published = dict(cursor.published)
    for (topic, partition), position in positions.items():
        topic_id = topic_ids[topic]
        published[topic_id] = {**published.get(topic_id, {}), partition: position}
    return msgspec.structs.replace(cursor, published=published)


def begin(cursors: Mapping[tuple[str, int], Cursor], name: str, shard: int, generation: int) -> tuple[Cursor, list[Cursor]]:
    """Return where a shard begins, and the closing cursors of the generation before, by old shard ([] for the first generation).

    `cursors` are those on Kafka by key and partition. Partition p of a topic was published by old shard p % (their number), up to
    the position in its closing cursor.

    Raises:
        Unavailable: the shard's generation is closed: the number of shards is being changed.
        IntegrityError: Kafka knows a later generation, or the generation before is not closed.
    """
    own = cursors.get((name, shard), START)
    if (f"{name}@{generation}", shard) in cursors:
        raise Unavailable("the number of the relay's shards is being changed")
    if own.generation > generation:
        raise IntegrityError(
            f"shard {shard} of relay {name} is of generation {own.generation} on Kafka, of generation {generation} in the "
            "database, which was restored to an older state. Restore the right one, or publish it under another topic prefix"
        )
    if generation == 0:
        return own, []
    before = {number: each for (key, number), each in cursors.items() if key == f"{name}@{generation - 1}"}
    shards = max((each.shards for each in before.values()), default=0)
    missing = sorted(set(range(shards)) - before.keys())
    if not shards or missing:
        raise IntegrityError(
            f"the cursors' topic lacks the closing cursors of generation {generation - 1} of relay {name} (shards "
            f"{', '.join(map(str, missing)) or 'unknown'}): it lost records. Publish the log anew under another topic prefix"
        )
    closed = [before[number] for number in range(shards)]
    if own.generation == generation:
        return own, closed
    first = min(closed, key=lambda each: each.position)
    late = max(each.late + len(each.retrying) for each in closed)  # a partition's next shard has to go on with higher numbers
    published: dict[str, dict[int, int]] = {}
    for number, each in enumerate(closed):
        for topic_id, positions in each.published.items():
            mine = {partition: position for partition, position in positions.items() if partition % shards == number}
            published.setdefault(topic_id, {}).update(mine)
    own = msgspec.structs.replace(
        first, generation=generation, shards=0, unparked=(), late=late, retrying=(), published=published
    )
    return own, closed


def read_cursors(
    kafka: str | KafkaAccess, topic: str, keys: Iterable[str], *, timeout_s: float = 30.0
) -> dict[tuple[str, int], Cursor]:
    """Read the cursors' topic to its end (committed records only) and return the furthest cursor of each key and partition.

    That is the last one, except without transactions: there a process that lost its shard may write an older one behind it.

    A shard must do this after `init_transactions()`: that has ended the transaction of whoever published it before, so the last
    stable offset of its partition lies behind its last commit, and nothing that was committed can be missed here.

    Raises:
        Unavailable: the end was not reached in time.
    """
    wanted = {key.encode(): key for key in keys}
    consumer = Consumer(
        client_settings(kafka)
        | {
            "group.id": f"{topic}-reader",  # the client demands one; nothing is ever committed under it
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
        }
    )
    cursors: dict[tuple[str, int], Cursor] = {}
    try:
        with translated_kafka("to read the relay's cursor"):
            partitions = consumer.list_topics(topic, timeout=timeout_s).topics[topic].partitions
            left = set(partitions)
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
            while left:
                message = consumer.poll(timeout_s)
                if message is None:
                    raise Unavailable(f"topic {topic} was not read to its end in {timeout_s} s")
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition() or 0)
                    continue
                if error is not None:
                    raise kafka_error(error, "to read the relay's cursor")
                value, key = message.value(), message.key()
                if key in wanted and value is not None:
                    cursor, place = Cursor.from_bytes(value), (wanted[key], message.partition() or 0)
                    cursors[place] = max(cursor, cursors.get(place, START), key=_how_far)  # the later one if they are equal
    finally:
        consumer.close()
    return cursors


def _how_far(cursor: Cursor) -> tuple[int, int, int, int]:
    """Return what only rises from a cursor of a shard to its next one."""
    return cursor.generation, cursor.position, cursor.late + len(cursor.retrying), -len(cursor.retrying)


def read_cursor(kafka: str | KafkaAccess, topic: str, name: str, *, shard: int = 0, timeout_s: float = 30.0) -> Cursor:
    """Return a shard's last cursor, `START` if it has none; see `read_cursors`."""
    return read_cursors(kafka, topic, [name], timeout_s=timeout_s).get((name, shard), START)
