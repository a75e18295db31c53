"""Appends of a client: all that are called at the same time share one long-lived BatchAppend call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import grpc

from ...schemas import ConcurrencyError, EventIdTaken, EventspineError, InvalidEvent, SettingsError, Unavailable
from ..protocol import ANY, NO_STREAM, STREAM_EXISTS, Expected, ExpectedVersion
from .appends import Appended
from .connection import KurrentConnection, error_of
from .events import id_of
from .messages import message_class

__all__ = ["Batches"]

_BatchAppendRequest = message_class("BatchAppendRequest")
_BatchAppendResponse = message_class("BatchAppendResponse")
_WrongVersionDetail = message_class("WrongVersionDetail")
_REFUSED = (grpc.StatusCode.PERMISSION_DENIED.value[0], grpc.StatusCode.UNAUTHENTICATED.value[0])
_LATE = (grpc.StatusCode.DEADLINE_EXCEEDED.value[0], grpc.StatusCode.UNAVAILABLE.value[0])
_WORDS = {ANY: "any", NO_STREAM: "no_stream", STREAM_EXISTS: "stream_exists"}


class Batches:
    """Sends appends over one call, and opens another when that has failed."""

    def __init__(self, connection: KurrentConnection) -> None:
        self._connection = connection
        self._conversation: _Conversation | None = None

    async def send(self, stream_id: str, expected: ExpectedVersion, messages: Sequence[Any]) -> Appended:
        """Append `Proposed` messages to a stream; return its version and the last one's position.

        Raises:
            ConcurrencyError: the stream is at another version.
            EventIdTaken: some of the events are recorded, and not just these.
            InvalidEvent: the server refuses them.
            Unavailable: they may or may not be recorded; the same again finds out.
            SettingsError: the server refuses the user.
        """
        correlation_id = uuid4()
        request = _BatchAppendRequest(
            correlation_id={"string": str(correlation_id)},
            options={"stream_identifier": {"stream_name": stream_id.encode()}, **_expectation(expected)},
            proposed_messages=messages,
            is_final=True,
        )
        request.options.deadline.seconds = max(1, int(self._connection.timeout_s))
        if self._conversation is None or self._conversation.ended:
            self._conversation = _Conversation(self._connection.open_batches())
        conversation = self._conversation
        try:
            async with asyncio.timeout(self._connection.timeout_s):
                answer = await conversation.ask(correlation_id, request.SerializeToString())
        except TimeoutError as error:
            conversation.end()
            raise Unavailable(f"the server did not answer an append in {self._connection.timeout_s:g} s") from error
        if answer.WhichOneof("result") == "error":
            raise _error(answer.error, stream_id, expected, messages)
        return _appended(answer.success)

    async def aclose(self) -> None:
        if self._conversation is not None:
            self._conversation.end()
            await self._conversation.finished()


class _Conversation:
    """One BatchAppend call. Writing is a task of its own: who is cancelled while gRPC writes ends the call for all others."""

    def __init__(self, call: Any) -> None:
        self.ended = False
        self._call = call
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting: dict[UUID, asyncio.Future[Any]] = {}
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def ask(self, correlation_id: UUID, request: bytes) -> Any:
        """Send a request and return its answer."""
        answer = self._waiting[correlation_id] = asyncio.get_running_loop().create_future()
        self._outgoing.put_nowait(request)
        try:
            return await answer
        finally:
            self._waiting.pop(correlation_id, None)

    def end(self) -> None:
        self.ended = True
        self._call.cancel()

    async def finished(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self) -> None:
        # A call that is over can't be written to; whoever reads from it says why.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            while True:
                await self._call.write(await self._outgoing.get())

    async def _read(self) -> None:
        failure: EventspineError = Unavailable("the server ended the call for appends")
        try:
            while (content := await self._call.read()) is not grpc.aio.EOF:
                answer = _BatchAppendResponse.FromString(content)
                waiting = self._waiting.get(id_of(answer.correlation_id))
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
            if not self.ended and (code := await self._call.code()) is not grpc.StatusCode.OK:
                failure = Unavailable(f"the call for appends ended: {code.name}: {await self._call.details()}")
        except grpc.aio.AioRpcError as error:
            # What is wrong with an append is said in its answer. Whatever else ends the call, gRPC's own INTERNAL of a broken one
            # too, says nothing of the appends that wait: they are sent again.
            said = error_of(error)
            failure = said if isinstance(said, SettingsError) else Unavailable(f"the call for appends broke: {said}")
        finally:
            self.ended = True
            self._tasks[0].cancel()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(failure)


def _expectation(expected: ExpectedVersion) -> dict[str, Any]:
    if isinstance(expected, Expected):
        return {_WORDS[expected]: {}}
    return {"revision": expected - 1} if expected else {"no_stream": {}}


def _appended(success: Any) -> Appended:
    version = success.current_revision + 1 if success.WhichOneof("current_revision_option") == "current_revision" else 0
    return Appended(version, success.position.commit_position)


def _error(status: Any, stream_id: str, expected: ExpectedVersion, messages: Sequence[Any]) -> EventspineError:
    """Return what the error of a batch means."""
    kind, content = ("", b"")
    for detail in status.details:
        kind, content = detail.type_url.rpartition(".")[2], detail.value
    if kind == "WrongExpectedVersion":
        found = _WrongVersionDetail.FromString(content)
        actual = found.current_revision + 1 if found.WhichOneof("current") == "current_revision" else 0
        if expected is ANY or (expected is STREAM_EXISTS and actual):
            # The version can't be wrong: that is how the protocol says that it knows some of the events.
            return EventIdTaken(stream_id, event_ids=sorted(str(id_of(each.id)) for each in messages))
        return ConcurrencyError(stream_id, expected=expected, actual=actual)
    if kind == "StreamDeleted":
        if expected is STREAM_EXISTS:
            return ConcurrencyError(stream_id, expected=expected, actual=0)
        return InvalidEvent("the stream was deleted for ever (a tombstone); choose another", stream_id=stream_id)
    if kind == "MaximumAppendSizeExceeded":
        return InvalidEvent(f"the append is too large for the server: {status.message}", stream_id=stream_id)
    if kind == "AccessDenied" or status.code in _REFUSED:
        return SettingsError(f"the server refuses this user: {status.message}")
    if status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]:
        return InvalidEvent(status.message, stream_id=stream_id)
    if kind == "Timeout" or status.code in _LATE:
        return Unavailable(f"the server did not append in time: {status.message}")
    return EventspineError(f"append to {stream_id!r}: the server failed: {status.message}")
