"""The requests of a client that reads, and what comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from ...schemas import EventspineError
from ..query import Query
from .connection import KurrentConnection
from .envelope import Seen, seen_of
from .messages import message_class

__all__ = ["END", "NOT_SYSTEM", "all_request", "filter_for", "read_seen", "stream_request"]

_ReadRequest = message_class("ReadRequest")
_ReadResponse = message_class("ReadResponse")

END: Final = -1
NOT_SYSTEM: Final = {"event_type": {"regex": r"^[^\$].*"}}
_MAX_COUNT = 2**63 - 1
_CHECKPOINT_EVERY = 1000


def stream_request(name: str, revision: int, *, backwards: bool, limit: int | None = None) -> Any:
    """Ask for a stream's events from a revision on, which is included; END is its end."""
    place: dict[str, Any] = {"end": {}} if revision == END else {"revision": revision}
    return _request({"stream": {"stream_identifier": {"stream_name": name.encode()}, **place}}, backwards, limit, None)


def all_request(
    position: int, *, backwards: bool = False, limit: int | None = None, wanted: Any = NOT_SYSTEM, subscription: bool = False
) -> Any:
    """Ask for the log from a position on; END is its end. Forwards the event there is included, backwards and in a
    subscription it is not. A server takes positions of events only."""
    if subscription or position != 0:
        at = {"commit_position": position, "prepare_position": position}
        place: dict[str, Any] = {"end": {}} if position == END else {"position": at} if position else {"start": {}}
    else:
        place = {"start": {}}
    return _request({"all": place}, backwards, limit, wanted, subscription=subscription)


def _request(what: dict[str, Any], backwards: bool, limit: int | None, wanted: Any, *, subscription: bool = False) -> Any:
    options: dict[str, Any] = {**what, "read_direction": int(backwards), "uuid_option": {"string": {}}}
    if subscription:
        options["subscription"] = {}
    else:
        options["count"] = _MAX_COUNT if limit is None else limit
    if wanted is None:
        options["no_filter"] = {}
    else:
        options["filter"] = {**wanted, "max": _CHECKPOINT_EVERY, "checkpoint_interval_multiplier": 1}
    return _ReadRequest(options=options)


def filter_for(query: Query | None) -> Any:
    """Return the server's filter that leaves out most of what a query does not match, and all of the system's own events.

    A filter looks at event types or at streams; what else a query says is looked at here.
    """
    items = query.items if query is not None else ()
    if items and all(item.event_types for item in items):
        return {"event_type": {"prefix": sorted({name for item in items for name in item.event_types})}}
    if items and all(item.categories for item in items):
        return {"stream_identifier": {"prefix": sorted({f"{name}-" for item in items for name in item.categories})}}
    return NOT_SYSTEM


async def read_seen(connection: KurrentConnection, request: Any) -> AsyncIterator[Seen]:
    """Yield the events that a request asks for; none of a stream that is not there, or deleted.

    Raises: what `error_of` returns.
    """
    try:
        async for frame in connection.read(request):
            answer = _ReadResponse.FromString(frame)
            if answer.WhichOneof("content") == "event" and answer.event.HasField("event"):
                yield seen_of(answer.event.event)
    except EventspineError as error:
        if not _is_deleted(error.__cause__):
            raise


def _is_deleted(cause: Any) -> bool:
    return isinstance(cause, grpc.aio.AioRpcError) and dict(cause.trailing_metadata() or ()).get("exception") == "stream-deleted"
