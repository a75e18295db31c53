"""The topics that the relay writes to: made where they are missing, and held to what they were."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewPartitions, NewTopic

from ..schemas import IntegrityError, Unavailable
from ..schemas.kafka import KafkaAccess, answer_of, client_settings, kafka_error
from .source import State
from .state import PinnedTopic, stale_topics

__all__ = ["TopicSettings", "Topics", "ensure_topic", "partitions_of_shard"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

DEFAULT_MAX_MESSAGE_BYTES = 1_048_588  # the broker's


@dataclass(frozen=True)
class TopicSettings:
    """How topics of events are created. `replication` -1 takes the broker's default.

    Events are kept for ever by default: what Postgres keeps for ever, a new consumer should be able to read for ever.
    """

    partitions: int = 6
    replication: int = -1
    retention_ms: int = -1


class FoundTopic(NamedTuple):
    """A topic as Kafka has it."""

    partitions: int
    kafka_id: str
    max_message_bytes: int


def partitions_of_shard(partitions: Mapping[str, int], shard: int, shards: int) -> list[tuple[str, int]]:
    """Return those of topics' partitions that one of so many shards publishes to. `partitions` says how many a topic has."""
    return [(topic, number) for topic, count in partitions.items() for number in range(shard, count, shards)]


class Topics:
    """What the relay knows of its topics.

    A topic's number of partitions is noted in Postgres when the relay first sees it, because it decides where each stream goes. A
    topic that has another number later, or that was deleted, is refused, whoever did it.

    Attributes: `partitions` and `ids` by topic, `max_message_bytes` the least that a known topic takes at once.
    """

    def __init__(self, kafka: str | KafkaAccess, state: State, settings: TopicSettings) -> None:
        self.partitions: dict[str, int] = {}
        self.ids: dict[str, str] = {}
        self.max_message_bytes = DEFAULT_MAX_MESSAGE_BYTES
        self._kafka = kafka
        self._state = state
        self._settings = settings
        self._admin: AdminClient | None = None
        self._rebuilding: set[str] = set()
        self._lock = asyncio.Lock()

    async def check(self) -> None:
        """Look at all topics that this relay has written to.

        Raises:
            IntegrityError: one is gone, was made anew, or has another number of partitions.
        """
        async with self._lock:
            self._admin = None  # a shard's new life begins here: a password may have changed since the last one
            pinned = await self._state.pinned_topics()
            self._rebuilding = {topic for topic, each in pinned.items() if each.rebuilding}
            for topic in self._rebuilding:
                del pinned[topic]
                self.partitions.pop(topic, None)
            found = await asyncio.to_thread(self._describe, pinned)
            said = stale_topics(pinned, {topic: PinnedTopic(each.partitions, each.kafka_id) for topic, each in found.items()})
            if said:
                raise IntegrityError(
                    f"{'; '.join(said)}. Streams that went to one partition would go on in another, or begin in the middle, so "
                    "nothing is published. Publish the log anew with `eventspine relay verify --rebuild TOPIC`, which takes "
                    "the present number of partitions, or put the topic back as it was"
                )
            for topic, each in found.items():
                self._know(topic, each)

    async def ensure(self, topics: Collection[str]) -> None:
        """Make topics that are missing, and note those that are new to this relay.

        Raises:
            Unavailable, SettingsError: one could not be made.
        """
        async with self._lock:
            for topic in sorted(set(topics) - self.partitions.keys()):
                if topic in self._rebuilding:
                    raise Unavailable(f"topic {topic} is being built anew: `eventspine relay verify --rebuild` has to end first")
                found = await asyncio.to_thread(
                    self._make, topic, self._settings.partitions, {"retention.ms": str(self._settings.retention_ms)}
                )
                await self._state.pin_topic(topic, found.partitions, found.kafka_id)
                self._know(topic, found)

    async def ensure_cursors(self, topic: str, shards: int, settings: Mapping[str, str]) -> None:
        """Make the topic of the cursors, with a partition for each shard at least."""
        async with self._lock:
            await asyncio.to_thread(self._ensure_cursors, topic, shards, settings)

    def _ensure_cursors(self, topic: str, shards: int, settings: Mapping[str, str]) -> None:
        if self._make(topic, shards, settings).partitions < shards:
            doing = f"to add partitions to topic {topic}"
            wider = self._client().create_partitions([NewPartitions(topic, shards)])
            _result(self._client(), wider[topic], doing, but=KafkaError.INVALID_PARTITIONS)

    def _make(self, topic: str, partitions: int, settings: Mapping[str, str]) -> FoundTopic:
        """Return a topic, which is made if it is missing: so that one that is there needs no right to make topics."""
        found = self._describe([topic])
        if topic not in found:
            replication = self._settings.replication
            ensure_topic(self._client(), topic, partitions=partitions, replication=replication, settings=settings)
            deadline = time.monotonic() + 30
            while topic not in (found := self._describe([topic])):  # not every broker has heard of it yet
                if time.monotonic() > deadline:
                    raise Unavailable(f"topic {topic} was created and does not appear")
                time.sleep(0.05)
        return found[topic]

    def _know(self, topic: str, found: FoundTopic) -> None:
        self.partitions[topic] = found.partitions
        self.ids[topic] = found.kafka_id
        self.max_message_bytes = min(self.max_message_bytes, found.max_message_bytes)

    def _client(self) -> AdminClient:
        if self._admin is None:  # `or` would make a new one each time: a client is as long as its queue, and so mostly false
            self._admin = AdminClient(client_settings(self._kafka))
        return self._admin

    def _describe(self, topics: Collection[str]) -> dict[str, FoundTopic]:
        """Return the topics that exist."""
        if not topics:
            return {}
        admin, found = self._client(), {}
        resources = {topic: ConfigResource(ResourceType.TOPIC, topic) for topic in topics}
        for topic, asked in admin.describe_topics(TopicCollection(list(topics)), request_timeout=30).items():
            told = _result(admin, asked, f"to look at topic {topic}", but=KafkaError.UNKNOWN_TOPIC_OR_PART)
            if told is not None:
                found[topic] = FoundTopic(len(told.partitions), str(told.topic_id), DEFAULT_MAX_MESSAGE_BYTES)
        if found:
            for resource, configs in admin.describe_configs([resources[topic] for topic in found], request_timeout=30).items():
                try:
                    limit = int(answer_of(admin, configs)["max.message.bytes"].value)
                except KafkaException as error:  # it may lack the right; then the broker says what is too large
                    logger.info("limit of topic %s is not known: %s", resource.name, error.args[0].str())
                else:
                    found[resource.name] = found[resource.name]._replace(max_message_bytes=limit)
        return found


def ensure_topic(
    kafka: str | KafkaAccess | AdminClient, topic: str, *, partitions: int, replication: int, settings: Mapping[str, str]
) -> None:
    """Create a topic unless it exists. An existing one is left as it is.

    Raises:
        Unavailable, SettingsError: it could not be created.
    """
    admin = kafka if isinstance(kafka, AdminClient) else AdminClient(client_settings(kafka))
    new = NewTopic(topic, num_partitions=partitions, replication_factor=replication, config=dict(settings))
    created = admin.create_topics([new], operation_timeout=20, request_timeout=30)[topic]
    _result(admin, created, f"to create topic {topic}", but=KafkaError.TOPIC_ALREADY_EXISTS)


def _result(admin: AdminClient, future: Future[Result], doing: str, *, but: int | None = None) -> Result | None:
    """Wait for what the admin client promised; None if it failed in the way that is expected."""
    try:
        return answer_of(admin, future)
    except KafkaException as error:
        if error.args[0].code() == but:
            return None
        raise kafka_error(error.args[0], doing) from error
