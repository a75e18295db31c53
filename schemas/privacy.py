"""Personal data: encrypted with a key for each person, so that destroying the key erases it from a log that is never changed.

A schema marks what is personal, and names the field that says whose it is:

    {"type": "record", "name": "CustomerRegistered", "subject": "customer_id", "fields": [
        {"name": "customer_id", "type": "string"},
        {"name": "email", "type": "string", "personal": true},
        {"name": "phone", "type": ["null", "string"], "default": null, "personal": true}]}

A personal value is stored as a text: `enc:1:` and, in URL-safe base64, a nonce of 12 bytes and what AES-256-GCM makes of the
value, bound to subject, event and field. The nonce is an HMAC of these and the value: the same event has the same bytes whenever
it is encrypted, so that a retry is recognised, and no two values share a nonce.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from .codec import Codec
from .errors import DecodeError, InvalidEvent, SettingsError
from .event import Event
from .event_type import EventType
from .postgres import Connection, load_sql, translated

__all__ = ["ERASED", "KeyRing", "encrypt", "protect_events", "reveal_events"]

ERASED: Final = "[erased]"
"""What a personal text reads as once its subject was erased; a field that can be null reads as None."""

_PREFIX = "enc:1:"
_SQL = "eventspine.schemas"
_LOAD_KEYS = load_sql(_SQL, "sql/load_subject_keys")
_MAKE_KEYS = load_sql(_SQL, "sql/make_subject_keys")
_MAX_KEYS = 50_000


class KeyRing:
    """The keys of subjects, from Postgres, kept in memory for `keep_s` seconds: so long an erased subject can still be readable
    in a process that read about it just before."""

    def __init__(self, pool: asyncpg.Pool, *, keep_s: float = 60.0) -> None:
        self._pool = pool
        self._keep_s = keep_s
        self._kept: dict[str, tuple[float, bytes | None]] = {}

    async def load(
        self, subjects: set[str], *, make: bool = False, connection: Connection | None = None
    ) -> dict[str, bytes | None]:
        """Return the key of each subject; None = erased. Unknown subjects are left out, or with `make` get a new key.

        With `connection`, new keys are part of the transaction that is open on it. They are not kept in memory: it may roll back.
        """
        database = connection or self._pool
        now = time.monotonic()
        keys = {subject: kept[1] for subject in subjects if (kept := self._kept.get(subject)) and kept[0] > now}
        missing = sorted(subjects - keys.keys())
        if missing:
            async with translated():
                found = {row["subject"]: row["key"] for row in await database.fetch(_LOAD_KEYS, missing)}
                new = [subject for subject in missing if subject not in found] if make else []
                if new:
                    await database.execute(_MAKE_KEYS, new, [secrets.token_bytes(32) for _ in new])
                    found |= {row["subject"]: row["key"] for row in await database.fetch(_LOAD_KEYS, new)}
            if len(self._kept) + len(found) > _MAX_KEYS:
                self._kept.clear()
            if connection is None:
                self._kept |= {subject: (now + self._keep_s, key) for subject, key in found.items()}
            keys |= found
        return keys

    def forget(self, subject: str) -> None:
        """Drop a key from memory."""
        self._kept.pop(subject, None)


async def protect_events(
    codec: Codec, keys: KeyRing, events: Sequence[Event], connection: Connection | None = None
) -> list[Event]:
    """Return the events with their personal values encrypted; subjects that are new get a key.

    Raises:
        InvalidEvent: an event does not say whose data it holds, or that subject was erased.
    """
    typed = [(event, _personal_type(codec, event)) for event in events]
    subjects = {_subject_of(event, event_type) for event, event_type in typed if event_type is not None}
    if not subjects:
        return list(events)
    known = await keys.load(subjects, make=True, connection=connection)
    return [event if event_type is None else _protect(event, event_type, known) for event, event_type in typed]


async def reveal_events(
    codec: Codec, keys: KeyRing, events: Sequence[Event], connection: Connection | None = None
) -> list[Event]:
    """Return the events with their personal values readable, or as erased where the key is gone."""
    typed = [(event, _personal_type(codec, event)) for event in events]
    subjects = {str(event.data.get(event_type.subject)) for event, event_type in typed if event_type is not None}
    if not subjects:
        return list(events)
    known = await keys.load(subjects, connection=connection)
    return [event if event_type is None else _reveal(event, event_type, known) for event, event_type in typed]


def encrypt(key: bytes, subject: str, event_id: UUID, field: str, value: str) -> str:
    """Return a value as it is stored."""
    bound = f"{subject}\0{event_id}\0{field}".encode()
    nonce = hmac.digest(key, b"nonce\0" + bound + b"\0" + value.encode(), hashlib.sha256)[:12]
    return _PREFIX + base64.urlsafe_b64encode(nonce + _cipher(key).encrypt(nonce, value.encode(), bound)).decode()


def decrypt(key: bytes, subject: str, event_id: UUID, field: str, stored: str) -> str:
    """Return a stored value as it was given.

    Raises:
        DecodeError: it was not stored for this subject, event and field, or was altered.
    """
    from cryptography.exceptions import InvalidTag

    bound = f"{subject}\0{event_id}\0{field}".encode()
    try:
        sealed = base64.urlsafe_b64decode(stored.removeprefix(_PREFIX))
        return str(_cipher(key).decrypt(sealed[:12], sealed[12:], bound), "utf-8")
    except (InvalidTag, ValueError) as error:
        raise DecodeError(
            f"the personal field {field!r} of event {event_id} can't be decrypted: it or its key was altered"
        ) from error


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise SettingsError('personal fields need one more package: pip install "eventspine[privacy]"') from error
    return AESGCM(key)


def _personal_type(codec: Codec, event: Event) -> EventType | None:
    if not isinstance(event, Event) or (event.version and not event.schema_version):  # recorded, and opaque
        return None
    event_type = codec.event_type(event.event_type, event.schema_version)
    return event_type if event_type is not None and event_type.personal else None


def _subject_of(event: Event, event_type: EventType) -> str:
    subject = event.data.get(event_type.subject) if isinstance(event.data, Mapping) else None
    if not isinstance(subject, str) or not subject:
        raise InvalidEvent(
            f"its personal fields belong to whom data[{event_type.subject!r}] names; it must be a text that is not empty",
            event_type=event.event_type,
        )
    return subject


def _protect(event: Event, event_type: EventType, keys: Mapping[str, bytes | None]) -> Event:
    subject = _subject_of(event, event_type)
    key = keys.get(subject)
    if key is None:
        raise InvalidEvent(
            f"the personal data of {subject!r} was erased; a new person gets a new id", event_type=event.event_type
        )
    data = dict(event.data)
    for field in event_type.personal:
        value = data.get(field)
        if isinstance(value, str):  # whatever else it is: the codec says if it may be
            data[field] = encrypt(key, subject, event.event_id, field, value)
    return msgspec.structs.replace(event, data=data)


def _reveal(event: Event, event_type: EventType, keys: Mapping[str, bytes | None]) -> Event:
    subject = str(event.data.get(event_type.subject))
    key = keys.get(subject)
    data = dict(event.data)
    for field, nullable in event_type.personal.items():
        stored = data.get(field)
        if isinstance(stored, str) and stored.startswith(_PREFIX):
            if key is None:
                data[field] = None if nullable else ERASED
            else:
                data[field] = decrypt(key, subject, event.event_id, field, stored)
    return msgspec.structs.replace(event, data=data)
