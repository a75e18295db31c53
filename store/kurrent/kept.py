"""Checkpoints and snapshots of a client: each a stream of its own, of which the server shows the last event only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar
from uuid import uuid4

import msgspec

from ...schemas import ConcurrencyError, Unavailable
from ...schemas.opaque import JSON
from ...schemas.retry import Backoff, wait_or_raise
from ..protocol import ANY, ExpectedVersion
from .asking import END, read_seen, stream_request
from .batching import Batches
from .connection import KurrentConnection
from .messages import message_class

__all__ = ["Kept", "Slots", "patiently"]

_Proposed = message_class("Proposed")

_TYPE: Final = "$eventspine-kept"  # a system's type: what reads and subscribes to the log leaves it out
_read_json = msgspec.json.Decoder(dict[str, Any])

Result = TypeVar("Result")


class Kept(NamedTuple):
    """What is kept under a name, and since when."""

    version: int
    document: dict[str, Any]
    created_at: datetime


class Slots:
    """Keeps one document under each name. Names have a blank, so that no stream of a user's is called like one."""

    def __init__(self, connection: KurrentConnection, batches: Batches, *, retry_s: float) -> None:
        self._connection = connection
        self._batches = batches
        self._retry_s = retry_s
        self._saving = asyncio.Lock()

    async def load(self, name: str) -> Kept | None:
        """Return what is kept under a name, None if nothing is.

        Raises:
            Unavailable: the server is away.
        """
        async for seen in read_seen(self._connection, stream_request(name, END, backwards=True, limit=1)):
            return Kept(seen.revision + 1, _read_json.decode(seen.data), seen.created_at)
        return None

    async def save(self, name: str, document: bytes, supersedes: Callable[[dict[str, Any]], bool]) -> None:
        """Keep a document, unless there is one that it does not supersede. Writers that race decide anew, each on what it finds.

        Raises:
            InvalidEvent: the document or the name is too long.
            Unavailable: the server is away; it may or may not be kept.
        """
        async with self._saving:
            while True:
                kept = await self.load(name)
                if kept is not None and not supersedes(kept.document):
                    return
                if kept is None:
                    await self._send(f"$${name}", "$metadata", b'{"$maxCount":1}', ANY)
                try:
                    await self._send(name, _TYPE, document, 0 if kept is None else kept.version)
                except ConcurrencyError:
                    continue
                return

    async def _send(self, name: str, event_type: str, content: bytes, expected: ExpectedVersion) -> None:
        message = _Proposed(
            id={"string": str(uuid4())}, metadata={"type": event_type, "content-type": JSON}, custom_metadata=b"", data=content
        )
        await patiently(lambda: self._batches.send(name, expected, [message]), self._retry_s)


async def patiently(work: Callable[[], Awaitable[Result]], retry_s: float) -> Result:
    """Do it again while the server is away, for `retry_s` seconds."""
    backoff = Backoff(give_up_after_s=retry_s)
    while True:
        try:
            return await work()
        except Unavailable as error:
            await wait_or_raise(backoff, error)
