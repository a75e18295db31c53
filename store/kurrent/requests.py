"""What clients ask for, read from the protocol's messages."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ..protocol import ANY, NO_STREAM, STREAM_EXISTS, ExpectedVersion
from .faults import bad_request
from .messages import message_class
from .reading import ALL_FILTER, Filter

__all__ = ["ReadRequest", "expected_of", "filter_of", "name_of", "parsed", "read_request_of"]

_ReadRequest = message_class("ReadRequest")
_MAX = 2**63 - 1


class ReadRequest(NamedTuple):
    """A read or a subscription. `name`: "" for the log. `place`: a version or position, None = the start, -1 = the end."""

    name: str
    place: int | None
    backwards: bool
    resolve: bool
    limit: int
    subscription: bool
    wanted: Filter
    checkpoint_every: int
    structured: bool


def parsed(message: Any, content: bytes) -> Any:
    """Return a message of a class.

    Raises:
        Fault: the bytes are none.
    """
    try:
        return message.FromString(content)
    except Exception as error:  # protobuf's DecodeError, and whatever else its parser finds
        raise bad_request("the request is malformed") from error


def name_of(message: Any) -> str:
    """Return a stream's name.

    Raises:
        Fault: it is empty or no UTF-8.
    """
    try:
        name: str = message.stream_name.decode()
    except UnicodeDecodeError as error:
        raise bad_request("a stream's name is text in UTF-8") from error
    if not name:
        raise bad_request("no stream is named")
    return name


def expected_of(message: Any, which: str) -> ExpectedVersion:
    """Return what is expected of a stream, from the field of a oneof that is set."""
    match message.WhichOneof(which):
        case "revision":
            if message.revision >= _MAX:
                raise bad_request(f"the expected revision {message.revision} is beyond 63 bits")
            return int(message.revision) + 1
        case "no_stream":
            return NO_STREAM
        case "stream_exists":
            return STREAM_EXISTS
        case "any":
            return ANY
    raise bad_request("the request does not say what is expected of the stream")


def filter_of(message: Any) -> tuple[Filter, int]:
    """Return a filter, and after how many events looked at a checkpoint is due.

    Raises:
        Fault: it says neither what it looks at nor how.
    """
    which = message.WhichOneof("filter")
    if which is None:
        raise bad_request("the filter names neither event types nor streams")
    expression = getattr(message, which)
    regex, prefixes = expression.regex or None, list(expression.prefix) or None
    if regex is None and prefixes is None:
        raise bad_request("the filter holds neither a regular expression nor prefixes")
    if regex is not None:
        if "\0" in regex:
            raise bad_request("the filter holds a NUL character")
        regex = _for_postgres(regex)
    window = message.max if message.WhichOneof("window") == "max" else 1
    every = max(window, 1) * max(message.checkpoint_interval_multiplier, 1)
    if which == "event_type":
        return Filter(type_regex=regex, type_prefixes=prefixes), every
    return Filter(stream_regex=regex, stream_prefixes=prefixes), every


def _for_postgres(regex: str) -> str:
    """Return a regular expression in Postgres's form, as an advanced one; most that is not a named group is the same there."""
    return "***:" + re.sub(r"\(\?<[A-Za-z_]\w*>", "(", regex)


def read_request_of(content: bytes) -> ReadRequest:
    """Return what a Read asks for.

    Raises:
        Fault: it is incomplete or contradicts itself.
    """
    options = parsed(_ReadRequest, content).options
    count = options.WhichOneof("count_option")
    which = options.WhichOneof("stream_option")
    if which is None or count is None:
        raise bad_request("a read names a stream or the log, and a count or a subscription")
    subscription = count == "subscription"
    backwards = options.read_direction == 1
    if subscription and backwards:
        raise bad_request("a subscription reads forwards")
    wanted, every, place, name = ALL_FILTER, 0, None, ""
    if which == "stream":
        name = name_of(options.stream.stream_identifier)
        at = options.stream.WhichOneof("revision_option")
        if at == "revision":
            place = min(options.stream.revision, _MAX - 1) + 1
        elif at == "end":
            place = -1
    else:
        at = options.all.WhichOneof("all_option")
        if at == "position":
            place = min(options.all.position.commit_position, _MAX)
        elif at == "end":
            place = -1
        if options.WhichOneof("filter_option") == "filter":
            wanted, every = filter_of(options.filter)
    structured = options.uuid_option.WhichOneof("content") != "string"
    limit = 0 if subscription else min(options.count, _MAX)
    return ReadRequest(name, place, backwards, options.resolve_links, limit, subscription, wanted, every, structured)
