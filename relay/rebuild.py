"""Make a topic anew: deleted, created with its settings, and filled from the log in order, up to where the relay is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource, ConfigSource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.admin._topic import TopicDescription

from ..schemas import SettingsError, StoredEvent, Unavailable
from ..schemas.kafka import KafkaAccess, client_settings, kafka_error, translated_kafka
from ..schemas.partition import partition_of
from ..schemas.postgres import load_sql, translated
from ..store.postgres.log import PostgresLog
from .cursor import cursor_topic
from .heal import repairing
from .publisher import Record, TransactionalPublisher, publishing
from .reached import read_reached
from .replay import Republished, republish
from .router import Router
from .shard import transactional_id
from .state import PinnedTopic, RelayState
from .topic_reader import PartitionId
from .topics import TopicSettings, ensure_topic

__all__ = ["rebuild_topic"]

logger = logging.getLogger(__name__)

_REPIN = load_sql("eventspine.relay", "sql/repin_topic")

_RELEASE_WITHIN_S: Final = 60.0
_APPEAR_WITHIN_S: Final = 60.0


class _Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a topic is to be made, noted in place of its Kafka id before it is deleted, so that a rebuild that was killed goes on.

    `made` is the new topic's id, as soon as it has one; `paused` why the relay was paused before.
    """

    partitions: int
    replication: int
    settings: Mapping[str, str]
    made: str = ""
    paused: str | None = None

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()


async def rebuild_topic(
    log: PostgresLog,
    kafka: str | KafkaAccess,
    *,
    router: Router,
    state: RelayState,
    settings: TopicSettings,
    prefix: str,
    name: str,
    topic: str,
    delivery: str = "exactly-once",
    partitions: int | None = None,
    compression: str = "zstd",
    batch_events: int = 20_000,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[Republished, int], None] = lambda *_: None,
) -> Republished:
    """Delete a topic of the relay's, make it again with its settings, and publish all its events up to the relay's cursors.

    `partitions` None keeps their number. The relay is paused meanwhile, and goes on at the end (unless it was paused before); its
    processes may run. If this is killed, the relay stays paused, and the same call goes on where it was. Events that are parked
    stay so. Records come in order, so none is marked as late; offsets begin at 0, so whoever reads the topic has to start over.

    Raises:
        SettingsError: the relay does not write to that topic, has never run, or Kafka refuses what is asked.
        Fenced: another process repairs this relay's topics.
        Unavailable: the relay's processes do not give up their shards; or Kafka or Postgres is away.
        EventspineError: an event can't be published that is not parked.
    """
    async with repairing(log.pool, state.relay_id):
        pins = await state.pinned_topics()
        pinned = pins.get(topic)
        view = await state.look("")
        if pinned is None:
            raise SettingsError(f"relay {state.relay_id} has published nothing to {topic}: there is nothing to build anew")
        if view.paused == "reshard":
            raise SettingsError("the number of shards is being changed: run `eventspine relay reshard` to its end first")
        others = sorted(each for each, pin in pins.items() if pin.rebuilding and each != topic)
        if others:
            raise SettingsError(f"topic {others[0]} is being built anew, and that was stopped: run `--rebuild {others[0]}` first")
        await state.pause("rebuild")
        say("the relay pauses")
        await _wait_until_free(state)
        if delivery == "exactly-once":
            for shard in range(view.shards):  # who was not heard of can't write into the new topic
                await _fence(kafka, transactional_id(prefix, name, shard), (cursor_topic(prefix), shard))
        reached = await read_reached(log, kafka, state, prefix=prefix, name=name)
        admin = AdminClient(client_settings(kafka))
        plan = await _plan(admin, topic, pinned, settings, partitions, view.paused)
        await _note(log, state, topic, plan.partitions, plan.to_json())
        if not plan.made or (await asyncio.to_thread(_id_of, admin, topic)) != plan.made:
            say(f"{topic} is deleted and made again with {plan.partitions} partitions")
            plan = msgspec.structs.replace(plan, made=await asyncio.to_thread(_make_anew, admin, topic, plan))
            await _note(log, state, topic, plan.partitions, plan.to_json())
        parked = {row["global_position"] for row in await state.parked()}

        def record_of(event: StoredEvent) -> Record | None:
            if event.global_position in parked:
                return None
            routed = router.route(event)
            if routed is None or routed.topic != topic:
                return None
            number = partition_of(routed.key, plan.partitions)
            if event.global_position > reached.of(number):
                return None
            return Record(topic, number, routed.key, routed.value, routed.headers)

        done = await republish(
            log,
            kafka,
            router=router,
            topic=topic,
            transactional_id=f"{prefix}{name}.rebuild.{topic}",
            after=0,
            to=max(reached.of(number) for number in range(plan.partitions)),
            record_of=record_of,
            compression=compression,
            batch_events=batch_events,
            on_progress=on_progress,
        )
        await _note(log, state, topic, plan.partitions, plan.made)
        await state.pause(plan.paused)
        say("the relay stays paused, as it was" if plan.paused else "the relay goes on")
    return done


async def _plan(
    admin: AdminClient, topic: str, pinned: PinnedTopic, settings: TopicSettings, partitions: int | None, paused: str | None
) -> _Plan:
    """Return how the topic is to be made: as it is now, or as a rebuild that was killed has noted."""
    if pinned.rebuilding:
        plan = msgspec.json.decode(pinned.kafka_id, type=_Plan)
        if partitions in (None, plan.partitions):
            return plan
        return msgspec.structs.replace(plan, partitions=partitions, made="")
    found = await asyncio.to_thread(_look_at, admin, topic)
    before = None if paused == "rebuild" else paused
    if found is None:  # somebody deleted it
        retention = {"retention.ms": str(settings.retention_ms)}
        return _Plan(partitions or pinned.partitions, settings.replication, retention, paused=before)
    return msgspec.structs.replace(found, partitions=partitions or found.partitions, paused=before)


async def _note(log: PostgresLog, state: RelayState, topic: str, partitions: int, kafka_id: str) -> None:
    async with translated():
        await log.pool.execute(_REPIN, state.relay_id, topic, partitions, kafka_id)


async def _wait_until_free(state: RelayState) -> None:
    deadline = time.monotonic() + _RELEASE_WITHIN_S
    while owners := sorted({row["owner"] for row in await state.status() if row["owner"]}):
        if time.monotonic() > deadline:
            raise Unavailable(f"{', '.join(owners)} did not give up their shards in {_RELEASE_WITHIN_S} s: run it again")
        await asyncio.sleep(0.1)


async def _fence(kafka: str | KafkaAccess, transactional_id: str, cursor: PartitionId) -> None:
    async with publishing(lambda: TransactionalPublisher(kafka, transactional_id)) as sender:
        await sender.start()
        await sender.end_forgotten([cursor])


def _look_at(admin: AdminClient, topic: str) -> _Plan | None:
    """Return how a topic is made, None if there is none: its partitions, replicas, and what was set for it alone."""
    told = _described(admin, topic)
    if told is None:
        return None
    resource = ConfigResource(ResourceType.TOPIC, topic)
    with translated_kafka(f"to look at the settings of topic {topic}"):
        entries = admin.describe_configs([resource], request_timeout=30)[resource].result(40)
    own = {
        name: str(entry.value)
        for name, entry in entries.items()
        if entry.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value and entry.value is not None
    }
    return _Plan(len(told.partitions), len(told.partitions[0].replicas), own)


def _id_of(admin: AdminClient, topic: str) -> str:
    """Return Kafka's id of a topic, "" if there is none."""
    told = _described(admin, topic)
    return "" if told is None else str(told.topic_id)


def _make_anew(admin: AdminClient, topic: str, plan: _Plan) -> str:
    """Delete a topic, make it again, and return its new id."""
    old = _id_of(admin, topic)
    deadline = time.monotonic() + _APPEAR_WITHIN_S
    if old:
        try:
            admin.delete_topics([topic], operation_timeout=30, request_timeout=40)[topic].result(50)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise kafka_error(error.args[0], f"to delete topic {topic}") from error
    while True:
        # Where an old broker still deletes, this finds the topic there, and is tried again.
        ensure_topic(admin, topic, partitions=plan.partitions, replication=plan.replication, settings=plan.settings)
        new = _id_of(admin, topic)
        if new and new != old:
            return new
        if time.monotonic() > deadline:
            raise Unavailable(f"topic {topic} was deleted and does not come back in {_APPEAR_WITHIN_S} s: run it again")
        time.sleep(0.1)


def _described(admin: AdminClient, topic: str) -> TopicDescription | None:
    try:
        told: TopicDescription = admin.describe_topics(TopicCollection([topic]), request_timeout=30)[topic].result(40)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise kafka_error(error.args[0], f"to look at topic {topic}") from error
    return told
