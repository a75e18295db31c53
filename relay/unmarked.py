"""Transactions that Kafka ended without telling the partitions.

A commit is decided in the coordinator's log, then each partition gets a marker. Kafka 4.4 takes a partition that has no leader
for one that was deleted, gives its marker up, and notes the commit as complete: a broker without replicas that is killed between
the two does so while it starts (`KRaftMetadataCache.getPartitionLeaderEndpoint` is empty then, where it was `Node.noNode` in
3.9). Readers of committed records stop before such a transaction, for ever. The next marker of the same producer ends it, as
committed or aborted, whatever was decided; and who reads the cursor before that reads an older one, and publishes again.

So what was decided is asked for before a producer begins (KIP-664), and told to the partitions again, before the cursor is read.
See docs/decisions/0017-forgotten-markers.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields
from confluent_kafka.admin import AdminClient

from ..schemas.kafka import KafkaAccess, client_settings, translated_kafka
from .offsets import next_offsets
from .topic_reader import PartitionId

__all__ = ["ABORTED", "state_of", "unmarked"]

ABORTED: Final = "CompleteAbort"


_TOPIC: Final = (("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), ("tags", TaggedFields))


class _DescribedTransactions(Response):  # type: ignore[misc]  # the client has no types
    """Source: Kafka's DescribeTransactionsResponse.json, version 0."""

    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "transaction_states",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", CompactString("utf-8")),
                ("transaction_state", CompactString("utf-8")),
                ("transaction_timeout_ms", Int32),
                ("transaction_start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                ("topics", CompactArray(*_TOPIC)),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeTransactionsV0(RequestStruct):  # type: ignore[misc]
    """Source: Kafka's DescribeTransactionsRequest.json, version 0."""

    API_KEY = 65
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _DescribedTransactions
    SCHEMA = Schema(("transactional_ids", CompactArray(CompactString("utf-8"))), ("tags", TaggedFields))


class _DescribeTransactions(Request[_DescribeTransactionsV0]):  # type: ignore[misc]
    API_KEY = 65

    def __init__(self, transactional_id: str) -> None:
        self._transactional_id = transactional_id

    def build(self, request_struct_class: type[_DescribeTransactionsV0]) -> _DescribeTransactionsV0:
        return request_struct_class([self._transactional_id], {})


async def state_of(send: Callable[..., Awaitable[Any]], coordinator: int, transactional_id: str) -> str:
    """Return the state of an id's last transaction, as `CompleteCommit`; "" where Kafka knows none, or can't tell (before 3.0).

    `send(node, request)` asks the node that coordinates the id.
    """
    try:
        told = await send(coordinator, _DescribeTransactions(transactional_id))
    except IncompatibleBrokerVersion:
        return ""
    ((error, _, state, *_),) = told.transaction_states
    return "" if error else str(state)


def unmarked(kafka: str | KafkaAccess, partitions: Collection[PartitionId]) -> list[PartitionId]:
    """Return the partitions that hold records of a transaction that has not ended there, whoever's it is. Blocks.

    Raises:
        Unavailable, SettingsError: Kafka is away, or refuses it.
    """
    with translated_kafka("to see whether transactions have ended"):
        admin = AdminClient(client_settings(kafka))
        ends = next_offsets(admin, partitions, committed=False)
        readable = next_offsets(admin, partitions, committed=True)
    return sorted(each for each in partitions if readable[each] < ends[each])
