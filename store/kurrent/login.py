"""Who may call: HTTP basic credentials against a users' file, before any handler sees the call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from ...schemas.registry_users import Users
from .calls import Call, Method

__all__ = ["Login"]

_OPEN = ("/event_store.client.gossip.Gossip/Read",)  # clients ask who leads before they log in
_READS = (
    "/event_store.client.streams.Streams/Read",
    "/event_store.client.server_features.ServerFeatures/GetSupportedMethods",
    "/event_store.client.persistent_subscriptions.PersistentSubscriptions/GetInfo",
    "/event_store.client.persistent_subscriptions.PersistentSubscriptions/List",
)


class Login(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Let users of the role `write` call everything, those of `read` what reads, and others nothing."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Method]], details: Any) -> Method:
        handler = await continuation(details)
        if handler is None or details.method in _OPEN:
            return handler
        authorization = next((value for name, value in details.invocation_metadata or () if name == "authorization"), "")
        role = await self._users.role_of(authorization) if isinstance(authorization, str) and authorization else ""
        if role == "write" or (role == "read" and details.method in _READS):
            return handler
        return _refusing(handler, known=bool(role))


def _refusing(handler: Method, *, known: bool) -> Method:
    """Return a method of the same shape that says why it is refused."""
    code = grpc.StatusCode.PERMISSION_DENIED if known else grpc.StatusCode.UNAUTHENTICATED
    text = "Access Denied: this user may only read" if known else "Access Denied: log in with a user's name and password"

    async def refuse(_: Any, call: Call) -> None:
        await call.abort(code, text, (("exception", "access-denied"),))

    if handler.request_streaming:
        make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    else:
        make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(refuse)
