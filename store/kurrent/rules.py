"""What a stream's metadata says of how it is read: `$maxAge`, `$maxCount`, `$tb`, and whether the stream is deleted.

All of it is kept in memory, for every stream that has any, and follows the log: so neither reads nor appends ask for it. What
another process of this door writes is known here as soon as the log tells it: some milliseconds later.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from .names import stream_id_of

__all__ = ["DELETED", "METADATA_TYPE", "TOMBSTONE_TYPE", "Rules", "StreamRules", "Told"]

METADATA_TYPE: Final = "$metadata"
TOMBSTONE_TYPE: Final = "$streamDeleted"
DELETED: Final = 2**63 - 1
_read_json = msgspec.json.Decoder(dict[str, Any])


class Told(NamedTuple):
    """An event that says something of a stream: a `$metadata` event of `$$name`, or the tombstone in it."""

    position: int
    name: str
    event_type: str
    content: bytes


class StreamRules(NamedTuple):
    """How a stream is read. `first_version`: what lies before it is truncated. `metadata` is all that was said, as JSON."""

    position: int = 0
    max_age_s: float | None = None
    max_count: int | None = None
    first_version: int = 1
    deleted: bool = False
    tombstoned: bool = False
    metadata: bytes = b"{}"

    def first_readable(self, last_version: int) -> int:
        """Return the first version that is given out, of a stream at a version."""
        if self.max_count is None:
            return self.first_version
        return max(self.first_version, last_version - self.max_count + 1)

    def expired(self, created_at: datetime, now: datetime) -> bool:
        return self.max_age_s is not None and (now - created_at).total_seconds() > self.max_age_s


_NONE: Final = StreamRules()
_OF_METADATA: Final = StreamRules(max_count=1)


class Rules:
    """The rules of all streams that have any, up to a position of the log."""

    def __init__(self) -> None:
        self._by_name: dict[str, StreamRules] = {}

    def of(self, name: str) -> StreamRules:
        """Return a stream's rules. Of metadata itself, the last one counts; it is deleted with its stream for good."""
        if name.startswith("$$"):
            told = self._by_name.get(name.removeprefix("$$"))
            return _OF_METADATA._replace(tombstoned=True) if told is not None and told.tombstoned else _OF_METADATA
        return self._by_name.get(name, _NONE)

    def learn(self, told: Iterable[Told]) -> None:
        """Take in what was recorded. The same twice, or an older one later, changes nothing."""
        for each in told:
            tombstone = each.event_type == TOMBSTONE_TYPE
            name = each.name if tombstone else each.name.removeprefix("$$")
            known = self._by_name.get(name, _NONE)
            if tombstone:
                self._by_name[name] = known._replace(tombstoned=True)
            elif each.position > known.position and each.name.startswith("$$"):
                self._by_name[name] = _parsed(each)._replace(tombstoned=known.tombstoned)


def _parsed(told: Told) -> StreamRules:
    try:
        said = _read_json.decode(told.content)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return StreamRules(position=told.position)
    before = _count(said, "$tb") or 0
    return StreamRules(
        position=told.position,
        max_age_s=_count(said, "$maxAge"),
        max_count=_count(said, "$maxCount"),
        first_version=1 if before == DELETED else before + 1,
        deleted=before == DELETED,
        metadata=told.content,
    )


def _count(said: dict[str, Any], name: str) -> int | None:
    value = said.get(name)
    return value if type(value) is int and 0 <= value <= DELETED else None


def without_deletion(rules: StreamRules, last_version: int) -> bytes:
    """Return the metadata of a deleted stream that is written to again: what was recorded up to a version stays away."""
    return msgspec.json.encode({**_read_json.decode(rules.metadata), "$tb": last_version})


def with_deletion(rules: StreamRules) -> bytes:
    """Return the metadata of a stream that is deleted."""
    try:
        said = _read_json.decode(rules.metadata)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        said = {}
    return msgspec.json.encode({**said, "$tb": DELETED})


def stream_of_metadata(name: str) -> str:
    """Return the id of the stream that keeps a stream's metadata."""
    return stream_id_of(f"$${name}")
