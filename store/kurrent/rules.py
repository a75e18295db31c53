"""What a stream's metadata says of it: `$maxAge`, `$maxCount`, `$tb`, `$acl`, and whether the stream is deleted.

All of it is kept in memory, for every stream that has any, and follows the log: so neither reads nor appends ask for it. What
another process of this door writes is known here as soon as the log tells it: some milliseconds later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from .names import stream_id_of

__all__ = ["DELETED", "METADATA_TYPE", "SETTINGS", "TOMBSTONE_TYPE", "Acl", "Rules", "StreamRules", "Told"]

METADATA_TYPE: Final = "$metadata"
TOMBSTONE_TYPE: Final = "$streamDeleted"
SETTINGS: Final = "$settings"  # the stream whose last event holds the defaults of `$acl`
DELETED: Final = 2**63 - 1
_RIGHTS = ("$r", "$w", "$d", "$mr", "$mw")
_read_json = msgspec.json.Decoder(dict[str, Any])

Acl = Mapping[str, tuple[str, ...]]  # right -> users and groups; a right that is not there was left to the defaults
_NO_ACL: Final[Acl] = MappingProxyType({})


class Told(NamedTuple):
    """An event that says something of streams: a `$metadata` event of `$$name`, a tombstone in one, or one of `$settings`."""

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
    acl: Acl = _NO_ACL
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
        self._settings_position = 0
        self._default_acls: dict[bool, Acl] = {False: _NO_ACL, True: _NO_ACL}  # by whether the name begins with $

    def of(self, name: str) -> StreamRules:
        """Return a stream's rules. Of metadata itself, the last one counts; it is deleted with its stream for good."""
        if name.startswith("$$"):
            told = self._by_name.get(name.removeprefix("$$"))
            return _OF_METADATA._replace(tombstoned=True) if told is not None and told.tombstoned else _OF_METADATA
        return self._by_name.get(name, _NONE)

    def named_in(self, name: str, right: str) -> tuple[str, ...] | None:
        """Return who has a right on a stream, as its metadata says, or else the settings; None if neither says anything."""
        for acl in (self._by_name.get(name, _NONE).acl, self._default_acls[name.startswith("$")]):
            if right in acl:
                return acl[right]
        return None

    def learn(self, told: Iterable[Told]) -> None:
        """Take in what was recorded. The same twice, or an older one later, changes nothing."""
        for each in told:
            if each.name == SETTINGS and each.event_type != TOMBSTONE_TYPE:
                self._learn_settings(each)
                continue
            tombstone = each.event_type == TOMBSTONE_TYPE
            name = each.name if tombstone else each.name.removeprefix("$$")
            known = self._by_name.get(name, _NONE)
            if tombstone:
                self._by_name[name] = known._replace(tombstoned=True)
            elif each.position > known.position and each.name.startswith("$$"):
                self._by_name[name] = _parsed(each)._replace(tombstoned=known.tombstoned)

    def _learn_settings(self, told: Told) -> None:
        if told.position <= self._settings_position:
            return
        self._settings_position = told.position
        said = _parsed_json(told.content)
        self._default_acls = {False: _acl(said.get("$userStreamAcl")), True: _acl(said.get("$systemStreamAcl"))}


def _parsed(told: Told) -> StreamRules:
    said = _parsed_json(told.content)
    before = _count(said, "$tb") or 0
    return StreamRules(
        position=told.position,
        max_age_s=_count(said, "$maxAge"),
        max_count=_count(said, "$maxCount"),
        first_version=1 if before == DELETED else before + 1,
        deleted=before == DELETED,
        acl=_acl(said.get("$acl")),
        metadata=told.content,
    )


def _parsed_json(content: bytes) -> dict[str, Any]:
    """Return a JSON object; an empty one if it is none."""
    try:
        return _read_json.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}


def _acl(said: Any) -> Acl:
    """Return what `$acl` says. A right that is given in no form that is known is given to nobody."""
    if not isinstance(said, dict):
        return _NO_ACL
    acl: dict[str, tuple[str, ...]] = {}
    for right in _RIGHTS:
        match said.get(right):
            case None:
                continue
            case str(name):
                acl[right] = (name,)
            case list(names):
                acl[right] = tuple(each for each in names if isinstance(each, str))
            case _:
                acl[right] = ()
    return acl


def _count(said: dict[str, Any], name: str) -> int | None:
    value = said.get(name)
    return value if type(value) is int and 0 <= value <= DELETED else None


def without_deletion(rules: StreamRules, last_version: int) -> bytes:
    """Return the metadata of a deleted stream that is written to again: what was recorded up to a version stays away."""
    return msgspec.json.encode({**_read_json.decode(rules.metadata), "$tb": last_version})


def with_deletion(rules: StreamRules) -> bytes:
    """Return the metadata of a stream that is deleted."""
    return msgspec.json.encode({**_parsed_json(rules.metadata), "$tb": DELETED})


def stream_of_metadata(name: str) -> str:
    """Return the id of the stream that keeps a stream's metadata."""
    return stream_id_of(f"$${name}")
