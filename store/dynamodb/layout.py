"""How a log lies in one table. Numbers in sort keys have twenty digits, so that their order is that of the numbers.

    PK                SK                   attributes
    STREAM#{id}       VERSION#{version}    an event: event_id, event_type, schema_version, metadata (JSON), tags, payload,
                                           created_at; GSI1PK = LOG#{block}, GSI1SK = position
    STREAM#{id}       HEAD                 version: of the stream's last event
    STREAM#{id}       SNAPSHOT             state (JSON), version, schema_version, created_at
    EVENT#{event id}  EVENT                stream_id, version: where the event is
    LOG               HEAD                 position, created_at: of the log's last event
    LOG#{block}      {position}           parts: of one transaction, "{version} {events} {stream}" each, from that position on
    CHECKPOINT#{id}   CHECKPOINT           position
    SCHEMAS           …                    see eventspine.store.dynamodb.pins

A block holds a thousand positions, so that neither the log nor the index has one partition for all time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from .table import Item

__all__ = [
    "BLOCK_POSITIONS",
    "LOG_HEAD",
    "LogHead",
    "block",
    "checkpoint_key",
    "event_key",
    "head_key",
    "id_key",
    "part_text",
    "places_of",
    "snapshot_key",
    "sort_key",
    "stream_key",
    "version_key",
]

BLOCK_POSITIONS: Final = 1000
LOG_HEAD: Final[Item] = {"PK": "LOG", "SK": "HEAD"}


class LogHead(NamedTuple):
    """The last event's position, and when it was recorded; None for an empty log."""

    position: int
    created_at: datetime | None


def sort_key(number: int) -> str:
    """Return a number with twenty digits."""
    return f"{number:020d}"


def version_key(version: int) -> str:
    return f"VERSION#{version:020d}"


def stream_key(stream_id: str) -> str:
    return f"STREAM#{stream_id}"


def event_key(stream_id: str, version: int) -> Item:
    return {"PK": stream_key(stream_id), "SK": version_key(version)}


def head_key(stream_id: str) -> Item:
    return {"PK": stream_key(stream_id), "SK": "HEAD"}


def snapshot_key(stream_id: str) -> Item:
    return {"PK": stream_key(stream_id), "SK": "SNAPSHOT"}


def id_key(event_id: object) -> Item:
    return {"PK": f"EVENT#{event_id}", "SK": "EVENT"}


def checkpoint_key(subscription_id: str) -> Item:
    return {"PK": f"CHECKPOINT#{subscription_id}", "SK": "CHECKPOINT"}


def block(position: int) -> str:
    """Return the partition of a position."""
    return f"LOG#{(position - 1) // BLOCK_POSITIONS}"


def part_text(version: int, events: int, stream_id: str) -> str:
    """Return how the log notes the events of one stream in a transaction."""
    return f"{version} {events} {stream_id}"


def places_of(first: int, parts: Iterable[str]) -> Iterator[tuple[int, str, int]]:
    """Yield position, stream and version of each event of a transaction."""
    position = first
    for part in parts:
        version, events, stream_id = part.split(" ", 2)
        for number in range(int(events)):
            yield position, stream_id, int(version) + number
            position += 1


def definition(table: str) -> dict[str, Any]:
    """Return the table as CreateTable takes it."""
    return {
        "TableName": table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [
            {"AttributeName": "PK", "AttributeType": "S"},
            {"AttributeName": "SK", "AttributeType": "S"},
            {"AttributeName": "GSI1PK", "AttributeType": "S"},
            {"AttributeName": "GSI1SK", "AttributeType": "N"},
        ],
        "KeySchema": [{"AttributeName": "PK", "KeyType": "HASH"}, {"AttributeName": "SK", "KeyType": "RANGE"}],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": "GSI1",
                "KeySchema": [{"AttributeName": "GSI1PK", "KeyType": "HASH"}, {"AttributeName": "GSI1SK", "KeyType": "RANGE"}],
                "Projection": {"ProjectionType": "ALL"},
            }
        ],
    }
