"""Decisions of an append to DynamoDB, without I/O: which requests share a transaction, what is in it, what its failure means."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from ...schemas import InvalidEvent
from ..batch import AppendRequest, EncodedEvent, Outcome, Part
from ..protocol import Expected
from .layout import LOG_HEAD, LogHead, block, event_key, head_key, id_key, part_text, sort_key
from .table import MAX_TRANSACTION_ITEMS, Item, Reason, put

__all__ = [
    "MAX_EVENTS",
    "Plan",
    "blamed",
    "check_size",
    "decide",
    "event_item",
    "expects_version",
    "head_of",
    "log_operations",
    "plan",
    "take",
]

_LOG_ITEMS: Final = 2  # the head, and the note of the transaction
MAX_EVENTS: Final = (MAX_TRANSACTION_ITEMS - _LOG_ITEMS - 1) // 2
_MAX_BYTES: Final = 3_800_000  # DynamoDB takes 4 MB, with names and keys
_LOG: Final = -1

_NEW = "attribute_not_exists(PK)"


class Plan(NamedTuple):
    """One transaction: its operations, for each the request that it belongs to (-1 = the log), and outcomes if it is done."""

    operations: list[dict[str, Any]]
    owners: list[int]
    outcomes: list[list[Outcome]]
    head: LogHead


def check_size(request: AppendRequest) -> None:
    """Refuse an append that no transaction can hold.

    Raises:
        InvalidEvent: it has too many events or bytes.
    """
    if _items(request) + _LOG_ITEMS > MAX_TRANSACTION_ITEMS:
        raise InvalidEvent(
            f"the append has {request.events} events in {len(request.parts)} streams; a transaction of DynamoDB holds "
            f"{MAX_EVENTS} events of one stream: append in parts, each expecting the version that the part before returned",
            stream_id=request.parts[0].stream_id,
        )
    if request.bytes > _MAX_BYTES:
        raise InvalidEvent(
            f"the append has {request.bytes:,} bytes; a transaction of DynamoDB holds {_MAX_BYTES:,}: append in parts",
            stream_id=request.parts[0].stream_id,
        )


def take(waiting: deque[AppendRequest]) -> list[AppendRequest]:
    """Take from the queue what goes together in one transaction, which can write to a stream only once.

    Appends to one stream stay in the order of their calls. One with a condition goes alone: it is checked against what is
    recorded. Requests whose caller has gone are dropped.
    """
    batch: list[AppendRequest] = []
    later: list[AppendRequest] = []
    streams: set[str] = set()
    ids: set[int] = set()
    items, size = _LOG_ITEMS, 0
    while waiting:
        request = waiting.popleft()
        if request.done is not None and request.done.done():
            continue
        names = {part.stream_id for part in request.parts}
        fits = items + _items(request) <= MAX_TRANSACTION_ITEMS and size + request.bytes <= _MAX_BYTES
        apart = streams.isdisjoint(names) and ids.isdisjoint(request.ids)
        alone = request.condition is not None
        if batch and (alone or not fits or not apart):
            later.append(request)
        else:
            batch.append(request)
            items += _items(request)
            size += request.bytes
        streams |= names
        ids |= request.ids
        if alone or items >= MAX_TRANSACTION_ITEMS - 2:
            break
    waiting.extendleft(reversed(later))
    return batch


def expects_version(part: Part) -> int | None:
    """Return the version that a part's stream must have, None if that has to be looked up."""
    if isinstance(part.expected, Expected):
        return 0 if part.expected is Expected.NO_STREAM else None
    return part.expected


def plan(requests: Sequence[AppendRequest], head: LogHead, versions: Mapping[str, int], *, now: datetime) -> Plan:
    """Lay out requests as one transaction behind a head of the log. `versions` has the streams' where no version is expected."""
    moment = max(now, head.created_at or now)
    position = head.position + 1
    operations: list[dict[str, Any]] = []
    owners: list[int] = []
    outcomes: list[list[Outcome]] = []
    parts: list[str] = []
    for number, request in enumerate(requests):
        outcomes.append([])
        for part in request.parts:
            expected = expects_version(part)
            version = versions[part.stream_id] if expected is None else expected
            outcomes[-1].append(Outcome("appended", version + 1, position, moment))
            parts.append(part_text(version + 1, len(part.encoded), part.stream_id))
            stream_head = head_key(part.stream_id) | {"version": version + len(part.encoded)}
            operations.append(put(stream_head, "version = :v", {":v": version}) if version else put(stream_head, _NEW))
            for place, each in enumerate(part.encoded):
                item = event_item(
                    part.stream_id, version + 1 + place, position, event_id=each.event_id, event_type=each.event_type,
                    schema_version=each.schema_version, metadata=each.metadata_json, payload=each.payload, tags=each.tags,
                    created_at=moment,
                )  # fmt: skip
                operations.append(put(item, _NEW))
                operations.append(
                    put(id_key(each.event_id) | {"stream_id": part.stream_id, "version": version + 1 + place}, _NEW)
                )
                position += 1
            owners += [number] * (1 + 2 * len(part.encoded))
    moved = LogHead(position - 1, moment)
    return Plan([*log_operations(head.position, moved, parts), *operations], [_LOG, _LOG, *owners], outcomes, moved)


def blamed(owners: Sequence[int], reasons: Sequence[Reason]) -> tuple[set[int], LogHead | None]:
    """Return which requests a failed transaction blames, and the log's head if it is another one than was thought."""
    found: set[int] = set()
    head = None
    for owner, reason in zip(owners, reasons, strict=False):
        if reason.code == "ConditionalCheckFailed":
            if owner != _LOG:
                found.add(owner)
            else:
                head = head_of(reason.item)
    return found, head


def head_of(item: Item | None) -> LogHead:
    """Return the log's head as an item holds it."""
    if item is None:
        return LogHead(0, None)
    return LogHead(item["position"], datetime.fromisoformat(item["created_at"]))


def decide(
    request: AppendRequest,
    versions: Mapping[str, int],
    recorded: Mapping[UUID, Item],
    same: Callable[[Item, EncodedEvent], bool],
) -> list[Outcome] | None:
    """Return the outcomes of a request, given its streams' versions and those of its events that are recorded; None: append it.

    `recorded` are event items by id, with their `stream_id`, `version` and `position`.
    """
    outcomes = []
    for part in request.parts:
        found = [recorded.get(each.event_id) for each in part.encoded]
        first = found[0]
        expected, current = expects_version(part), versions.get(part.stream_id, 0)
        if (
            first is not None
            and all(
                item is not None
                and item["stream_id"] == part.stream_id
                and (item["version"], item["position"]) == (first["version"] + place, first["position"] + place)
                and same(item, each)
                for place, (item, each) in enumerate(zip(found, part.encoded, strict=True))
            )
            and (expected is None or first["version"] == expected + 1)
        ):
            outcomes.append(Outcome("duplicate", first["version"], first["position"], first["created_at"]))
        elif (expected is not None and expected != current) or (part.expected is Expected.STREAM_EXISTS and current == 0):
            outcomes.append(Outcome("conflict", current, None, None))
        elif any(item is not None for item in found):
            outcomes.append(Outcome("taken", None, None, None))
        else:
            outcomes.append(Outcome("appended", None, None, None))
    kinds = {outcome.outcome for outcome in outcomes}
    if kinds == {"appended"}:
        return None
    if kinds == {"duplicate"}:
        return outcomes
    # A retry finds all parts recorded or none: parts of which some are recorded belong to another append.
    instead = {"duplicate": "taken", "appended": "skipped"}
    return [outcome._replace(outcome=instead.get(outcome.outcome, outcome.outcome)) for outcome in outcomes]


def _items(request: AppendRequest) -> int:
    return len(request.parts) + 2 * request.events


def event_item(
    stream_id: str,
    version: int,
    position: int,
    *,
    event_id: UUID,
    event_type: str,
    schema_version: int,
    metadata: str,
    payload: bytes,
    tags: Sequence[str],
    created_at: datetime,
) -> Item:
    """Return the item of an event."""
    item = event_key(stream_id, version) | {
        "event_id": str(event_id),
        "event_type": event_type,
        "schema_version": schema_version,
        "metadata": metadata,
        "payload": payload,
        "created_at": created_at.astimezone(UTC).isoformat(),
        "GSI1PK": block(position),
        "GSI1SK": position,
    }
    return item | {"tags": list(tags)} if tags else item


def log_operations(position: int, head: LogHead, parts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the operations on the log of a transaction behind a position: its new head, if it still ends there, and the note."""
    assert head.created_at is not None
    moved = LOG_HEAD | {"position": head.position, "created_at": head.created_at.astimezone(UTC).isoformat()}
    held = put(moved, "#p = :p", {":p": position}) if position else put(moved, _NEW)
    if position:
        held["Put"]["ExpressionAttributeNames"] = {"#p": "position"}
    return [held, put({"PK": block(position + 1), "SK": sort_key(position + 1), "parts": list(parts)})]
