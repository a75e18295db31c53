"""Topics of the relay as an operator changes them."""

from __future__ import annotations

import asyncio

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewPartitions, NewTopic

__all__ = ["add_partitions", "delete_topic", "make_topic", "set_max_message_bytes"]


def _admin(bootstrap: str) -> AdminClient:
    """Return a client, to be kept until its answers are there."""
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})


async def make_topic(bootstrap: str, topic: str, *, partitions: int = 2, **settings: object) -> None:
    """Make a topic; `max_message_bytes=2000` sets `max.message.bytes`."""
    config: dict[str, str] = {name.replace("_", "."): str(value) for name, value in settings.items()}
    admin = _admin(bootstrap)
    made = admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1, config=config)])
    await asyncio.to_thread(made[topic].result, 30)


async def set_max_message_bytes(bootstrap: str, topic: str, limit: int) -> None:
    entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = _admin(bootstrap)
    for future in admin.incremental_alter_configs([resource]).values():
        await asyncio.to_thread(future.result, 30)


async def add_partitions(bootstrap: str, topic: str, partitions: int) -> None:
    admin = _admin(bootstrap)
    added = admin.create_partitions([NewPartitions(topic, partitions)])
    await asyncio.to_thread(added[topic].result, 30)


async def delete_topic(bootstrap: str, topic: str) -> None:
    admin = _admin(bootstrap)
    deleted = admin.delete_topics([topic])
    await asyncio.to_thread(deleted[topic].result, 30)
