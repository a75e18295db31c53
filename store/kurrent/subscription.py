"""A subscription of a client to the log: catch up, then follow."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc

from ...schemas import Codec, Event, InvalidEvent, Unavailable
from ...schemas.retry import Backoff, wait_or_raise
from ..query import Query
from .asking import all_request, filter_for
from .connection import KurrentConnection, error_of
from .envelope import envelope_of, event_of, seen_of
from .matching import matches
from .messages import message_class

__all__ = ["KurrentSubscription"]

logger = logging.getLogger(__name__)

_ReadResponse = message_class("ReadResponse")


class KurrentSubscription:
    """See `EventStore.subscribe`. Positions are the truth: after a failure it asks for what is behind the last event.

    The server sends as much as transport takes unread (64 KB); beyond that it waits for the loop's body.
    """

    def __init__(
        self, connection: KurrentConnection, codec: Codec, *, query: Query | None, from_position: int, retry_s: float
    ) -> None:
        if query is not None and not isinstance(query, Query):
            raise InvalidEvent(f"a query is made by Query(QueryItem(…), …), not {type(query).__name__}")
        self._connection = connection
        self._codec = codec
        self._query = query
        self._position = max(from_position, 0)
        self._caught_up = False
        self._closed = False
        self._backoff = Backoff(give_up_after_s=retry_s)
        self._call: Any = None

    @property
    def position(self) -> int:
        """Up to where everything was given out; a checkpoint to go on from, once the last event is dealt with."""
        return self._position

    @property
    def caught_up(self) -> bool:
        """Whether the server said that the end of the log was reached. Servers before 23.10 never do."""
        return self._caught_up

    def __aiter__(self) -> KurrentSubscription:
        return self

    async def __anext__(self) -> Event:
        while not self._closed:
            try:
                answer = _ReadResponse.FromString(await self._frame())
            except Unavailable as error:
                if not self._backoff.failing:
                    logger.warning("subscription waits for the server: %s", error, extra={"from_position": self._position})
                await wait_or_raise(self._backoff, error)
                continue
            self._backoff.reset()
            event = self._take(answer)
            if event is not None:
                return event
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the call."""
        self._closed = True
        self._hang_up()

    async def _frame(self) -> bytes:
        if self._call is None:
            request = all_request(self._position, wanted=filter_for(self._query), subscription=True)
            self._call = self._connection.open_read(request)
        try:
            frame = await self._call.read()
        except grpc.aio.AioRpcError as error:
            self._hang_up()
            raise error_of(error) from error
        except asyncio.CancelledError:  # gRPC has cancelled the call with it: the next one asks again
            self._hang_up()
            raise
        if frame is grpc.aio.EOF:
            call, self._call = self._call, None
            raise Unavailable(f"the server ended the subscription ({(await call.code()).name}: {await call.details()})")
        return bytes(frame)

    def _take(self, answer: Any) -> Event | None:
        """Return the event that an answer holds, if it is wanted."""
        match answer.WhichOneof("content"):
            case "caught_up":
                self._caught_up = True
            case "fell_behind":
                self._caught_up = False
            case "checkpoint":
                self._position = max(self._position, answer.checkpoint.commit_position)
            case "event":
                seen = seen_of(answer.event.event)
                if seen.position <= self._position:
                    return None
                envelope = envelope_of(seen)
                wanted = matches(self._query, seen, envelope)
                event = event_of(self._codec, seen, envelope) if wanted else None
                self._position = seen.position
                return None if event is None else self._codec.upcast([event])[0]
        return None

    def _hang_up(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
