"""The topics that the relay writes to, made where they are missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from ..schemas.kafka import client_settings, kafka_error

__all__ = ["TopicSettings", "ensure_topic"]


@dataclass(frozen=True)
class TopicSettings:
    """How topics of events are created. `replication` -1 takes the broker's default.

    Events are kept for ever by default: what Postgres keeps for ever, a new consumer should be able to read for ever.
    """

    partitions: int = 6
    replication: int = -1
    retention_ms: int = -1


def ensure_topic(bootstrap: str, topic: str, *, partitions: int, replication: int, settings: Mapping[str, str]) -> None:
    """Create a topic unless it exists. An existing one is left as it is.

    Raises:
        Unavailable, SettingsError: it could not be created.
    """
    admin = AdminClient(client_settings(bootstrap))
    new = NewTopic(topic, num_partitions=partitions, replication_factor=replication, config=dict(settings))
    try:
        admin.create_topics([new], operation_timeout=20, request_timeout=30)[topic].result(timeout=40)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise kafka_error(error.args[0], f"to create topic {topic}") from error
