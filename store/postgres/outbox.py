"""The outbox: messages that are no events, recorded with the caller's own rows, and published by a relay of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from uuid_utils.compat import uuid7

from ...schemas import EventspineError, Fenced, IntegrityError, InvalidEvent
from ...schemas.postgres import Connection, load_sql, translated
from .log import AppendSignal, listening

__all__ = ["RESERVED_HEADERS", "TRIMMED", "Message", "PostgresOutbox", "Slot", "StoredMessage", "prepare_messages"]

_SQL = "eventspine.store.postgres"
_SEND = load_sql(_SQL, "sql/outbox_send")
_CHANNEL = load_sql(_SQL, "sql/outbox_channel")
_LAST_POSITION = load_sql(_SQL, "sql/outbox_last_position")
_READ_FOLLOWING = load_sql(_SQL, "sql/outbox_read_following")
_READ_STORED_AT = load_sql(_SQL, "sql/outbox_read_stored_at")
_EVENT_ID_AT = load_sql(_SQL, "sql/outbox_event_id_at")
_SLOTS = load_sql(_SQL, "sql/outbox_slots")
_TRIM = load_sql(_SQL, "sql/outbox_trim")
_CLAIM = load_sql(_SQL, "sql/outbox_claim")
_CLAIMED = load_sql(_SQL, "sql/outbox_claimed")

RESERVED_HEADERS: Final = frozenset({"message_id", "message_position", "ce_publishedafter", "ce_latenumber"})
"""Headers that the relay writes."""

TRIMMED: Final = "trimmed"
"""What `event_id_at` says of a position whose message was published and is gone."""

_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")  # Source: org.apache.kafka.common.internals.Topic
_MAX_KEY_CHARS: Final = 400

_json = msgspec.json.Encoder()


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent to a Kafka topic: a command, or what other systems are told.

    Messages of one topic and key are published in the order in which they were sent. A message without a key gets its
    `message_id` as key: it is ordered with no other. `message_id` is a new UUIDv7 unless given.
    """

    topic: str
    value: bytes
    key: str = ""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    message_id: UUID = msgspec.field(default_factory=uuid7)


class StoredMessage(NamedTuple):
    """A message as it lies in the outbox, with the names that the relay knows an event by.

    `global_position` counts the outbox, `event_id` is the message's id, `stream_id` is `{topic}/{key}`: what stays in order.
    """

    global_position: int
    event_id: str
    stream_id: str
    topic: str
    key: str
    value: bytes
    headers: str


class Slot(NamedTuple):
    """One of the outbox's tables, and the positions that it holds."""

    number: int
    first: int
    last: int


class PostgresOutbox:
    """Sends messages, and is to their relay what `PostgresLog` is to the log's.

    Options: `max_message_bytes` bounds value, key and headers of one message. `slot_messages` is how many messages one of the
    outbox's three tables takes before the next is begun; programs may differ in it.
    """

    def __init__(self, pool: asyncpg.Pool, *, max_message_bytes: int = 1_000_000, slot_messages: int = 100_000) -> None:
        self._pool = pool
        self._max_message_bytes = max_message_bytes
        self._slot_messages = slot_messages

    @property
    def pool(self) -> asyncpg.Pool:
        """The connections; the relay keeps tables of its own beside the outbox."""
        return self._pool

    async def send(self, messages: Sequence[Message], *, connection: Connection | None = None) -> list[int]:
        """Record messages for publication, all or none, in order; return their positions in the outbox.

        With `connection`, they are part of the transaction that is open on it: messages and the caller's rows are recorded
        together or not at all. Nobody else can send until it ends, so send last, behind appends to the log, then commit.

        Without, they are a transaction of their own. When its outcome is lost with the connection, they may be recorded or not;
        sent again, they are published again, with the same `message_id`.

        Raises:
            InvalidEvent: a message that can't be published: what is wrong. Nothing was written.
            EventspineError: the connection has no open transaction, or one that is not READ COMMITTED.
            Unavailable: Postgres is away, or another sender's transaction stayed open for 10 s; with `connection`, do the
                transaction over.
        """
        prepared = prepare_messages(messages, max_message_bytes=self._max_message_bytes)
        if connection is not None and not connection.is_in_transaction():
            raise EventspineError("the connection has no open transaction: `async with connection.transaction():` begins one")
        if not messages:
            return []
        async with translated():
            first: int = await (connection or self._pool).fetchval(_SEND, *prepared, self._slot_messages)
        return list(range(first, first + len(messages)))

    async def last_position(self) -> int:
        """Return the position of the last message, 0 if there was none."""
        async with translated():
            return int(await self._pool.fetchval(_LAST_POSITION))

    async def read_following(self, position: int, limit: int, max_bytes: int) -> tuple[str | None, list[StoredMessage]]:
        """Return the id of the message at a position (None: the outbox ends before), and what follows it, at most `limit`.

        Ends earlier where the values together would exceed `max_bytes`, but never before the first message.

        Raises:
            Fenced: what should be there was published and trimmed: another relay is further.
            IntegrityError: likewise, and no cursor of a relay says so.
        """
        async with translated():
            there, *rows = await self._pool.fetch(_READ_FOLLOWING, position, position + limit, max_bytes)
        last = int(there["headers"])
        gone = bool(position) and there["id"] is None and last >= position
        if not gone and (last <= position or (rows and rows[0]["position"] == position + 1)):
            return there["id"], [StoredMessage(*row) for row in rows]
        if position:
            raise Fenced(f"another relay published the outbox beyond position {position}, and trimmed it")
        raise IntegrityError(
            "the outbox was published and trimmed, but its relay's cursor is not on this Kafka: give the relay the Kafka that it "
            "published to. For another one, let the outbox drain first, then run TRUNCATE outbox in the database"
        )

    async def read_stored_at(self, positions: Sequence[int]) -> list[StoredMessage]:
        """Return the messages at positions, in order."""
        async with translated():
            rows = await self._pool.fetch(_READ_STORED_AT, list(positions))
        return [StoredMessage(*row) for row in rows]

    async def event_id_at(self, position: int) -> str | None:
        """Return the id of the message at a position; `TRIMMED` if it is gone, None if the outbox does not reach that far."""
        async with translated():
            row = await self._pool.fetchrow(_EVENT_ID_AT, position)
        assert row is not None
        return row["id"] or (TRIMMED if row["reached"] else None)

    async def link_before(self, position: int) -> tuple[int, str] | None:
        """Return None: messages have no hash chain."""
        return None

    async def digest_of_link(self, number: int) -> str | None:
        """Return None: messages have no hash chain."""
        return None

    def listen(self) -> AbstractAsyncContextManager[AppendSignal]:
        """Hold a connection that hears of messages. When it is lost, the signal's `wait()` says so."""
        return listening(self._pool, _CHANNEL)

    async def slots(self) -> list[Slot]:
        """Return the tables that hold messages."""
        async with translated():
            return [Slot(*row) for row in await self._pool.fetch(_SLOTS)]

    async def trim(self, slot: int, published: int, relay_id: str) -> bool:
        """Empty a table if all in it lies before `published`, the least position of the relay's cursors, and none is parked; tell
        whether it was done.

        Raises:
            Unavailable: somebody holds the table: try again later.
        """
        async with translated():
            return bool(await self._pool.fetchval(_TRIM, slot, published, relay_id))

    async def claim(self, topic_prefix: str, name: str) -> tuple[str, str]:
        """Return prefix and name of the relay that publishes the outbox: these, if it is the first."""
        async with translated():
            await self._pool.execute(_CLAIM, topic_prefix, name)
            row = await self._pool.fetchrow(_CLAIMED)
        assert row is not None
        return row["topic_prefix"], row["name"]


def prepare_messages(messages: Sequence[Message], *, max_message_bytes: int) -> tuple[list[Any], ...]:
    """Check messages, and lay them out as the first parameters of send_messages(), in their order.

    Raises:
        InvalidEvent: what is wrong with one, or two have the same `message_id`.
    """
    if not isinstance(messages, Sequence) or not all(isinstance(each, Message) for each in messages):
        raise InvalidEvent("send takes a list of Message(topic=…, key=…, value=…)")
    headers = [_check(each, max_message_bytes) for each in messages]
    ids = [each.message_id for each in messages]
    if len(set(ids)) < len(ids):
        raise InvalidEvent("two messages have the same message_id: each is sent once")
    keys = [each.key or str(each.message_id) for each in messages]
    return ids, [each.topic for each in messages], keys, [each.value for each in messages], headers


def _check(message: Message, max_bytes: int) -> str:
    """Check a message and return its headers as JSON."""
    topic, key, value, headers = message.topic, message.key, message.value, message.headers
    if not isinstance(topic, str) or _TOPIC.fullmatch(topic) is None or topic in (".", ".."):
        raise InvalidEvent(f"{topic!r} is no name of a Kafka topic: 1 to 249 letters, digits, '.', '_' or '-'")
    where = f"a message to topic {topic}"
    if not isinstance(value, bytes):
        raise InvalidEvent(f"{where}: its value is {type(value).__name__}; give bytes")
    if not isinstance(message.message_id, UUID):
        raise InvalidEvent(f"{where}: its message_id is {type(message.message_id).__name__}; give a uuid.UUID")
    if not isinstance(key, str) or len(key) > _MAX_KEY_CHARS:
        raise InvalidEvent(f"{where}: its key is no text of at most {_MAX_KEY_CHARS} characters")
    if not isinstance(headers, Mapping):
        raise InvalidEvent(f"{where}: its headers are {type(headers).__name__}; give a mapping of texts")
    _check_texts(where, [key, *headers, *headers.values()])
    if "" in headers or not RESERVED_HEADERS.isdisjoint(headers):
        raise InvalidEvent(f"{where}: a header has no name, or one of the relay's: {', '.join(sorted(RESERVED_HEADERS))}")
    text = _json.encode(dict(headers))
    size = len(value) + len(key.encode()) + len(text)
    if size > max_bytes:
        raise InvalidEvent(
            f"{where} has {size:,} bytes (value, key and headers); {max_bytes:,} is the limit: store large content elsewhere and "
            "send a reference to it"
        )
    return text.decode()


def _check_texts(where: str, texts: Iterable[Any]) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise InvalidEvent(f"{where}: {text!r} in its headers is {type(text).__name__}; names and values are texts")
        if "\0" in text:
            raise InvalidEvent(f"{where}: {text!r} contains a NUL character, which Postgres can't store")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidEvent(f"{where}: {text!r} is not valid Unicode ({error.reason})") from error
