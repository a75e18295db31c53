"""Where partitions begin and end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

__all__ = ["first_offsets", "next_offsets"]

PartitionId = tuple[str, int]


def first_offsets(admin: AdminClient, partitions: Iterable[PartitionId]) -> dict[PartitionId, int]:
    """Return the first offset that each partition has. Blocks.

    Raises:
        KafkaException: as the client says it.
    """
    return _ask(admin, partitions, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED)  # type: ignore[no-untyped-call]


def next_offsets(admin: AdminClient, partitions: Iterable[PartitionId], *, committed: bool) -> dict[PartitionId, int]:
    """Return the offset behind the last record of each partition, or with `committed` behind the last that can be read. Blocks.

    A commit is acknowledged before each partition says so: what is committed may not be readable for a moment.

    Raises:
        KafkaException: as the client says it.
    """
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    return _ask(admin, partitions, OffsetSpec.latest(), level)  # type: ignore[no-untyped-call]


def _ask(admin: AdminClient, partitions: Iterable[PartitionId], spec: Any, level: IsolationLevel) -> dict[PartitionId, int]:
    asked = {TopicPartition(*each): spec for each in partitions}
    if not asked:
        return {}
    told = admin.list_offsets(asked, isolation_level=level, request_timeout=30)
    return {(each.topic, each.partition): int(future.result(40).offset) for each, future in told.items()}
