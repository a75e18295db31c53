"""kurrentdb.protocol.v2.streams.StreamsService: appends to several streams, all or none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec
from grpc import StatusCode

from ...schemas.opaque import JSON
from ..protocol import ANY, NO_STREAM, STREAM_EXISTS, ExpectedVersion
from .access import Access
from .appends import Appended, Appends
from .calls import Call, Method, stream_in, unary
from .events import Proposed
from .faults import Deleted, Fault, WrongVersion, bad_request, expected_code
from .messages import message_class
from .reading import is_links
from .requests import parsed

__all__ = ["Part", "SessionsService"]

_SessionPart = message_class("SessionPart")
_SessionResponse = message_class("SessionResponse")
_RecordsRequest = message_class("RecordsRequest")
_RecordsResponse = message_class("RecordsResponse")
_Status = message_class("Status")
_StreamFault = message_class("StreamFault")
_RevisionConflict = message_class("RevisionConflict")
_RecordTooLarge = message_class("RecordTooLarge")
_ConsistencyViolations = message_class("ConsistencyViolations")

_ERRORS = "type.googleapis.com/kurrentdb.protocol.v2.streams.errors."
_FORMATS = {0: JSON, 1: JSON, 2: "application/x-protobuf", 3: "application/avro", 4: "application/octet-stream"}
_EXPECTED: dict[int, ExpectedVersion] = {-1: NO_STREAM, -2: ANY, -4: STREAM_EXISTS}
_MAX_STREAMS = 100


class Part(NamedTuple):
    """What a session appends to one stream."""

    name: str
    expected: ExpectedVersion
    proposed: list[Proposed]


class SessionsService:
    """The calls that append to several streams."""

    name = "kurrentdb.protocol.v2.streams.StreamsService"

    def __init__(self, appends: Appends, access: Access) -> None:
        self._access = access
        self._appends = appends

    @property
    def methods(self) -> dict[str, Method]:
        return {"AppendSession": stream_in(self.session), "AppendRecords": unary(self.records)}

    async def session(self, contents: AsyncIterator[bytes], call: Call) -> bytes:
        parts: list[Part] = []
        size = 0
        async for content in contents:
            message = parsed(_SessionPart, content)
            wanted = _expected(message.expected_revision) if message.HasField("expected_revision") else ANY
            part = Part(_name(message.stream), wanted, [_proposed(each) for each in message.records])
            if any(each.name == part.name for each in parts):
                text = f"Stream '{part.name}' is in this session twice."
                raise _fault(StatusCode.ABORTED, text, "StreamAlreadyInAppendSession", part.name)
            await self._access.check(call, part.name, "$w")
            size += sum(each.size for each in part.proposed)
            if size > self._appends.max_append_bytes * 4 or len(parts) >= _MAX_STREAMS:
                limit = f"{_MAX_STREAMS} streams, {4 * self._appends.max_append_bytes} bytes"
                raise Fault(StatusCode.ABORTED, f"A session appends {limit} at most.")
            parts.append(part)
        if not parts:
            raise Fault(StatusCode.FAILED_PRECONDITION, "The session appends nothing.")
        try:
            appended = await self._append(parts)
        except WrongVersion as wrong:
            expected, actual = expected_code(wrong.expected), wrong.actual - 1
            conflict = _RevisionConflict(stream=wrong.name, expected_revision=expected, actual_revision=actual)
            raise _detailed(wrong.code, wrong.text, "StreamRevisionConflict", conflict) from None
        output = [
            {"stream": part.name, "stream_revision": each.version - 1, "position": each.position}
            for part, each in zip(parts, appended, strict=True)
        ]
        return bytes(_SessionResponse(output=output, position=max(each.position for each in appended)).SerializeToString())

    async def records(self, content: bytes, call: Call) -> bytes:
        message = parsed(_RecordsRequest, content)
        expected: dict[str, ExpectedVersion] = {}
        for check in message.checks:
            expected[_name(check.stream_state.stream)] = _expected(check.stream_state.expected_state)
        by_name: dict[str, list[Proposed]] = {}
        for each in message.records:
            by_name.setdefault(_name(each.stream), []).append(_proposed(each))
        if not by_name:
            raise Fault(StatusCode.FAILED_PRECONDITION, "The request appends nothing.")
        for name in by_name:
            await self._access.check(call, name, "$w")
        others = expected.keys() - by_name.keys()
        if others:
            raise bad_request(f"{sorted(others)} are checked and not appended to, which this server does not do")
        parts = [Part(name, expected.get(name, ANY), proposed) for name, proposed in by_name.items()]
        try:
            appended = await self._append(parts)
        except WrongVersion as wrong:
            names = [check.stream_state.stream for check in message.checks]
            state = {"stream": wrong.name, "expected_state": expected_code(wrong.expected), "actual_state": wrong.actual - 1}
            index = names.index(wrong.name) if wrong.name in names else 0
            found = _ConsistencyViolations(violations=[{"check_index": index, "stream_state": state}])
            raise _detailed(wrong.code, wrong.text, "AppendConsistencyViolation", found) from None
        revisions = [{"stream": part.name, "revision": each.version - 1} for part, each in zip(parts, appended, strict=True)]
        position = max(each.position for each in appended)
        return bytes(_RecordsResponse(revisions=revisions, position=position).SerializeToString())

    async def _append(self, parts: Sequence[Part]) -> list[Appended]:
        limit = self._appends.max_append_bytes
        for part in parts:
            for each in part.proposed:
                if each.size > limit:
                    text = f"A record of stream '{part.name}' has {each.size} bytes; {limit} is the limit."
                    details = _RecordTooLarge(stream=part.name, record_id=str(each.event_id), size=each.size, max_size=limit)
                    raise _detailed(StatusCode.INVALID_ARGUMENT, text, "AppendRecordSizeExceeded", details)
        try:
            return await self._appends.append_session(parts)
        except Deleted as deleted:
            raise _fault(deleted.code, deleted.text, "StreamTombstoned", deleted.name) from None


def _name(name: str) -> str:
    if not name:
        raise bad_request("no stream is named")
    if is_links(name):
        raise bad_request(f"{name!r} is made of links to other streams' events; append to those")
    return name


def _expected(revision: int) -> ExpectedVersion:
    if revision in _EXPECTED:
        return _EXPECTED[revision]
    if not 0 <= revision < 2**63 - 1:
        raise bad_request(f"the expected revision {revision} means nothing")
    return revision + 1


def _proposed(record: Any) -> Proposed:
    event_type = record.schema.name
    if not event_type or "\0" in event_type:
        raise bad_request("a record's schema has a name, without NUL characters")
    try:
        event_id = UUID(record.record_id) if record.HasField("record_id") else uuid4()
    except ValueError as error:
        raise bad_request(f"{record.record_id[:80]!r} is no UUID") from error
    metadata = {name: _value(value) for name, value in record.properties.items()}
    content_type = _FORMATS.get(record.schema.format, "application/octet-stream")
    return Proposed(event_id, event_type, content_type, record.data, msgspec.json.encode(metadata) if metadata else b"")


def _value(value: Any) -> Any:
    match value.WhichOneof("kind"):
        case None | "null_value":
            return None
        case "struct_value":
            return {name: _value(each) for name, each in value.struct_value.fields.items()}
        case "list_value":
            return [_value(each) for each in value.list_value.values]
        case kind:
            return getattr(value, kind)


def _fault(code: StatusCode, text: str, kind: str, name: str) -> Fault:
    return _detailed(code, text, kind, _StreamFault(stream=name))


def _detailed(code: StatusCode, text: str, kind: str, details: Any) -> Fault:
    """Return a fault with the detail by which clients of this service tell errors apart."""
    detail = {"type_url": f"{_ERRORS}{kind}ErrorDetails", "value": details.SerializeToString()}
    status = _Status(code=code.value[0], message=text, details=[detail])
    return Fault(code, text, (("grpc-status-details-bin", status.SerializeToString()),))
