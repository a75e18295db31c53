"""gRPC methods from our handlers: raw bytes in and out, and every failure as a status that clients know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from ...schemas import EventspineError, InvalidEvent, Unavailable
from .faults import Fault, bad_request

__all__ = ["Call", "Method", "fault_of", "stream_in", "streams", "unary"]

logger = logging.getLogger(__name__)

Call = Any  # grpc.aio.ServicerContext: grpc has no types
Method = Any  # grpc.RpcMethodHandler


def unary(handle: Callable[[bytes, Call], Awaitable[bytes]]) -> Method:
    """A method of one request and one answer."""

    async def method(content: bytes, call: Call) -> bytes:
        try:
            return await handle(content, call)
        except Exception as error:
            raise await _abort(call, error) from error

    return grpc.unary_unary_rpc_method_handler(method)


def stream_in(handle: Callable[[AsyncIterator[bytes], Call], Awaitable[bytes]]) -> Method:
    """A method of many requests and one answer."""

    async def method(contents: AsyncIterator[bytes], call: Call) -> bytes:
        try:
            return await handle(contents, call)
        except Exception as error:
            raise await _abort(call, error) from error

    return grpc.stream_unary_rpc_method_handler(method)


def streams(handle: Callable[[Any, Call], AsyncGenerator[bytes, None]], *, takes_stream: bool = False) -> Method:
    """A method of many answers. Each is written when the client has room for it: one that stops reading stops the handler."""

    async def method(content: Any, call: Call) -> None:
        answers = handle(content, call)
        try:
            async for answer in answers:
                try:
                    await call.write(answer)
                except Exception:  # grpc's own, of several kinds: the client is gone, and nobody can be told
                    return
        except Exception as error:
            raise await _abort(call, error) from error
        finally:
            await answers.aclose()

    return (grpc.stream_stream_rpc_method_handler if takes_stream else grpc.unary_stream_rpc_method_handler)(method)


def fault_of(error: Exception) -> Fault:
    """Return the status that an error is told as."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, InvalidEvent):
        return bad_request(str(error))
    if isinstance(error, Unavailable):
        return Fault(grpc.StatusCode.UNAVAILABLE, f"{error}; try again")
    if isinstance(error, EventspineError):
        logger.error("a call failed: %s", error)
        return Fault(grpc.StatusCode.INTERNAL, str(error))
    logger.error("a call failed", exc_info=error)
    return Fault(grpc.StatusCode.INTERNAL, "the server failed; its log says why")


async def _abort(call: Call, error: Exception) -> Exception:
    if isinstance(error, (grpc.aio.AbortError, asyncio.CancelledError)) or (call.cancelled() or call.done()):
        return error
    fault = fault_of(error)
    await call.abort(fault.code, fault.text, fault.trailers)
    return error  # never: abort raises
