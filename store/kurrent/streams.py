"""event_store.client.streams.Streams: reads, subscriptions, appends, deletions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from ...schemas import InvalidEvent
from ..protocol import ANY, NO_STREAM, STREAM_EXISTS, Expected, ExpectedVersion
from .access import Access, Denied
from .appends import Appended, Appends
from .calls import Call, Method, fault_of, stream_in, streams, unary
from .events import Proposed, id_of, proposed_of
from .faults import Deleted, Fault, TooLarge, WrongVersion, bad_request
from .following import Mark, follow_all, follow_stream
from .frames import event_frame
from .messages import message_class
from .names import stream_id_of
from .reading import Item, Reader, StreamNotFound, is_links
from .requests import ReadRequest, expected_of, name_of, parsed, read_request_of
from .tail import Tail

__all__ = ["StreamsService"]

_ReadResponse = message_class("ReadResponse")
_AppendRequest = message_class("AppendRequest")
_AppendResponse = message_class("AppendResponse")
_BatchAppendRequest = message_class("BatchAppendRequest")
_BatchAppendResponse = message_class("BatchAppendResponse")
_DeleteRequest = message_class("DeleteRequest")
_DeleteResponse = message_class("DeleteResponse")
_Status = message_class("Status")
_WrongVersionDetail = message_class("WrongVersionDetail")
_StreamDeletedDetail = message_class("StreamDeletedDetail")
_TooLargeDetail = message_class("TooLargeDetail")

_ANY_URL = "type.googleapis.com/event_store.client."
_NO_DETAIL = "type.googleapis.com/google.protobuf.Empty"
_MAX_WAITING_APPENDS = 256
_MAX_OPEN_BATCHES = 1000


class StreamsService:
    """The calls on streams."""

    name = "event_store.client.streams.Streams"

    def __init__(self, reader: Reader, appends: Appends, tail: Tail, access: Access) -> None:
        self._access = access
        self._reader = reader
        self._appends = appends
        self._tail = tail

    @property
    def methods(self) -> dict[str, Method]:
        return {
            "Read": streams(self.read),
            "Append": stream_in(self.append),
            "BatchAppend": streams(self.batch_append, takes_stream=True),
            "Delete": unary(self.delete),
            "Tombstone": unary(self.tombstone),
        }

    async def read(self, content: bytes, call: Call) -> AsyncGenerator[bytes, None]:
        request = read_request_of(content)
        if request.name:
            stream_id_of(request.name)
        await self._access.check(call, request.name or "$all", "$r")
        if request.subscription:
            async for frame in self._subscribe(request):
                yield frame
            return
        place = request.place
        if request.name:
            version = 1 if place is None else place
            items = self._reader.stream(
                request.name, version, backwards=request.backwards, limit=request.limit, resolve=request.resolve
            )
        else:
            position = 0 if place is None else place
            items = self._reader.all(
                position, backwards=request.backwards, limit=request.limit, resolve=request.resolve, wanted=request.wanted
            )
        try:
            async for item in items:
                yield event_frame(item, structured=request.structured)
        except StreamNotFound:
            identifier = {"stream_name": request.name.encode()}
            yield _ReadResponse(stream_not_found={"stream_identifier": identifier}).SerializeToString()

    async def _subscribe(self, request: ReadRequest) -> AsyncGenerator[bytes, None]:
        items: AsyncIterator[Item | Mark]
        if request.name:
            await self._reader.last_version(request.name)
            after = 0 if request.place is None else request.place
            items = follow_stream(self._reader, self._tail, request.name, after, resolve=request.resolve)
        else:
            await self._reader.first(request.wanted)
            items = follow_all(
                self._reader, self._tail, request.place,
                resolve=request.resolve, wanted=request.wanted, checkpoint_every=request.checkpoint_every,
            )  # fmt: skip
        yield _ReadResponse(confirmation={"subscription_id": str(uuid4())}).SerializeToString()
        async for item in items:
            if isinstance(item, Mark):
                yield _mark_frame(item, bool(request.name))
            else:
                yield event_frame(item, structured=request.structured)

    async def append(self, contents: AsyncIterator[bytes], call: Call) -> bytes:
        name, expected = "", None
        proposed: list[Proposed] = []
        size = 0
        async for content in contents:
            message = parsed(_AppendRequest, content)
            if message.WhichOneof("content") == "options":
                name = _appendable(name_of(message.options.stream_identifier))
                await self._access.check(call, name, "$w")
                expected = expected_of(message.options, "expected_stream_revision")
                continue
            if expected is None:
                raise bad_request("an append begins with its options")
            proposed.append(proposed_of(message.proposed_message))
            size += proposed[-1].size
            if size > self._appends.max_append_bytes:
                raise TooLarge(self._appends.max_append_bytes)
        if expected is None:
            raise bad_request("an append begins with its options")
        try:
            appended = await self._appends.append(name, expected, proposed)
        except WrongVersion as wrong:
            return bytes(_AppendResponse(wrong_expected_version=_wrong_version(wrong)).SerializeToString())
        return bytes(_AppendResponse(success=_success(appended)).SerializeToString())

    async def batch_append(self, contents: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        """Answer each batch as it is recorded. At most `_MAX_WAITING_APPENDS` wait; then nothing more is read."""
        answers: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        room = asyncio.Semaphore(_MAX_WAITING_APPENDS)
        working: set[asyncio.Task[None]] = set()

        async def work(batch: _Batch, refused: Exception | None) -> None:
            try:
                answers.put_nowait(await self._batch(batch, refused))
            except BaseException as error:
                answers.put_nowait(error)
                raise

        async def read() -> None:
            open_batches: dict[str, _Batch] = {}
            try:
                async for content in contents:
                    message = parsed(_BatchAppendRequest, content)
                    key = str(id_of(message.correlation_id))
                    batch = open_batches.setdefault(key, _Batch(message.correlation_id))
                    batch.take(message, self._appends.max_append_bytes)
                    held = sum(each.size for each in open_batches.values())
                    if held > 16 * self._appends.max_append_bytes or len(open_batches) > _MAX_OPEN_BATCHES:
                        raise bad_request("too many batches are begun and not ended")
                    if message.is_final:
                        del open_batches[key]
                        await room.acquire()
                        # All that may wait before the store has the batch is waited for here: the next one would overtake it.
                        task = asyncio.create_task(work(batch, await self._refusal(batch, call)))
                        working.add(task)
                        task.add_done_callback(working.discard)
                if working:
                    await asyncio.wait(list(working))
                answers.put_nowait(None)
            except Exception as error:
                answers.put_nowait(error)

        reading = asyncio.create_task(read())
        try:
            while (answer := await answers.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
                room.release()
        finally:
            reading.cancel()
            await asyncio.gather(reading, *working, return_exceptions=True)

    async def _refusal(self, batch: _Batch, call: Call) -> Exception | None:
        """Return why a batch is not to be appended, None if it is; its types are looked up."""
        try:
            await self._access.check(call, batch.target()[0], "$w")
            await self._appends.know_types(batch.proposed())
        except Exception as error:
            return error
        return None

    async def _batch(self, batch: _Batch, refused: Exception | None) -> bytes:
        response = _BatchAppendResponse(correlation_id=batch.correlation_id)
        try:
            name, expected = batch.target()
            response.stream_identifier.stream_name = name.encode()
            _set_expected(response, expected)
            if refused is not None:
                raise refused
            async with asyncio.timeout(batch.seconds_left()):
                appended = await self._appends.append(_appendable(name), expected, batch.proposed(), types_known=True)
            response.success.CopyFrom(_success(appended))
        except TimeoutError:
            response.error.CopyFrom(_Status(code=4, message="Timeout", details=[{"type_url": f"{_ANY_URL}Timeout"}]))
        except (Fault, InvalidEvent) as error:
            response.error.CopyFrom(_status(error if isinstance(error, Fault) else bad_request(str(error))))
        except Exception as error:
            response.error.CopyFrom(_status(fault_of(error)))
        return bytes(response.SerializeToString())

    async def delete(self, content: bytes, call: Call) -> bytes:
        options = parsed(_DeleteRequest, content).options
        expected = expected_of(options, "expected_stream_revision")
        name = _appendable(name_of(options.stream_identifier))
        await self._access.check(call, name, "$d")
        return _deleted(await self._appends.delete(name, expected))

    async def tombstone(self, content: bytes, call: Call) -> bytes:
        options = parsed(_DeleteRequest, content).options
        expected = expected_of(options, "expected_stream_revision")
        name = _appendable(name_of(options.stream_identifier))
        await self._access.check(call, name, "$d")
        return _deleted(await self._appends.tombstone(name, expected))


class _Batch:
    """One append as it comes in, in one message or several."""

    def __init__(self, correlation_id: Any) -> None:
        self.correlation_id = correlation_id
        self.size = 0
        self._options: Any = None
        self._messages: list[Any] = []
        self._proposed: list[Proposed] | None = None
        self._too_large: TooLarge | None = None
        self._began = datetime.now(UTC)

    def take(self, message: Any, limit: int) -> None:
        if message.HasField("options"):
            self._options = message.options
        self.size += sum(len(each.data) + len(each.custom_metadata) for each in message.proposed_messages)
        if self.size > limit:  # the rest is read, and not kept: the other appends of the call go on
            self._too_large, self.size = TooLarge(limit), 0
            self._messages.clear()
        if self._too_large is None:
            self._messages += message.proposed_messages

    def target(self) -> tuple[str, ExpectedVersion]:
        if self._options is None:
            raise bad_request("a batch begins with its options")
        return name_of(self._options.stream_identifier), expected_of(self._options, "expected_stream_position")

    def proposed(self) -> list[Proposed]:
        if self._too_large is not None:
            raise self._too_large
        if self._proposed is None:
            self._proposed = [proposed_of(each) for each in self._messages]
        return self._proposed

    def seconds_left(self) -> float | None:
        match self._options.WhichOneof("deadline_option"):
            case "deadline":
                given = self._options.deadline
                until = self._began + timedelta(seconds=min(max(given.seconds, 0), 86_400), microseconds=given.nanos // 1000)
            case "deadline_at":
                at = self._options.deadline_at
                until = datetime.fromtimestamp(min(max(at.seconds, 0), 2**35), UTC)
            case _:
                return None
        return max((until - datetime.now(UTC)).total_seconds(), 0.0)


def _appendable(name: str) -> str:
    if is_links(name):
        raise bad_request(f"{name!r} is made of links to other streams' events; append to those")
    return name


def _mark_frame(mark: Mark, of_stream: bool) -> bytes:
    now = datetime.now(UTC)
    moment = {"seconds": int(now.timestamp()), "nanos": now.microsecond * 1000}
    at = {"commit_position": mark.place, "prepare_position": mark.place}
    if mark.kind == "checkpoint":
        return bytes(_ReadResponse(checkpoint={**at, "timestamp": moment}).SerializeToString())
    reached = {"timestamp": moment, "stream_revision": mark.place - 1} if of_stream else {"timestamp": moment, "position": at}
    return bytes(_ReadResponse(**{mark.kind: reached}).SerializeToString())


def _success(appended: Appended) -> Any:
    current: dict[str, Any] = {"current_revision": appended.version - 1} if appended.version else {"no_stream": {}}
    at = {"commit_position": appended.position, "prepare_position": appended.position}
    return _AppendResponse.Success(**current, **({"position": at} if appended.position else {"no_position": {}}))


def _wrong_version(wrong: WrongVersion) -> dict[str, Any]:
    current: dict[str, Any] = {"current_revision": wrong.actual - 1} if wrong.actual else {"current_no_stream": {}}
    return {**current, **_expected_fields(wrong.expected)}


def _expected_fields(expected: ExpectedVersion) -> dict[str, Any]:
    if isinstance(expected, Expected):
        words = {ANY: "expected_any", STREAM_EXISTS: "expected_stream_exists", NO_STREAM: "expected_no_stream"}
        return {words[expected]: {}}
    return {"expected_revision": expected - 1}


def _set_expected(response: Any, expected: ExpectedVersion) -> None:
    if isinstance(expected, Expected):
        getattr(response, {ANY: "any", STREAM_EXISTS: "stream_exists", NO_STREAM: "no_stream"}[expected]).SetInParent()
    else:
        response.revision = expected - 1


def _status(fault: Fault) -> Any:
    """Return what a batch's error is told as: a code, a text, and the protocol's detail, by which clients tell errors apart."""
    detail = {"type_url": _NO_DETAIL, "value": b""}
    if isinstance(fault, WrongVersion):
        fields = _wrong_version(fault)
        message = _WrongVersionDetail(**fields)
        detail = {"type_url": f"{_ANY_URL}WrongExpectedVersion", "value": message.SerializeToString()}
    elif isinstance(fault, Deleted):
        message = _StreamDeletedDetail(stream_identifier={"stream_name": fault.name.encode()})
        detail = {"type_url": f"{_ANY_URL}StreamDeleted", "value": message.SerializeToString()}
    elif isinstance(fault, Denied):
        detail = {"type_url": f"{_ANY_URL}AccessDenied", "value": b""}
    elif isinstance(fault, TooLarge):
        message = _TooLargeDetail(max_append_size=fault.limit)
        detail = {"type_url": f"{_ANY_URL}MaximumAppendSizeExceeded", "value": message.SerializeToString()}
    return _Status(code=fault.code.value[0], message=fault.text, details=[detail])


def _deleted(position: int) -> bytes:
    return bytes(_DeleteResponse(position={"commit_position": position, "prepare_position": position}).SerializeToString())
