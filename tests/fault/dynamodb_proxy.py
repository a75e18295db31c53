"""A proxy in front of DynamoDB that knows where each request ends, so that a test can break, refuse or change what passes."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.fault.proxy import Proxy

__all__ = ["BREAK_AFTER", "BREAK_BEFORE", "PASS", "DynamoDBProxy", "Fault", "conflict", "refusal"]

Answer = dict[str, Any]
Fault = Answer | Callable[[Answer], Answer] | str
"""What becomes of a request: an answer of ours (a refusal), what changes the server's answer, or one of the words below."""

PASS = "pass"
BREAK_BEFORE = "break before"  # the connection breaks, and the server never gets the request
BREAK_AFTER = "break after"  # the server did it, and its answer is lost

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_TARGET = re.compile(rb"\r\nx-amz-target: *DynamoDB_[0-9]+\.([A-Za-z]+)\r\n", re.IGNORECASE)


def refusal(code: str, **more: Any) -> Answer:
    """Return the answer by which DynamoDB refuses a request."""
    return {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "refused by the test", **more}


def conflict(request: Answer) -> Answer:
    """Return the answer to a transaction that met another one on its first item."""
    others = [{"Code": "None"}] * (len(request["TransactItems"]) - 1)
    return refusal("TransactionCanceledException", CancellationReasons=[{"Code": "TransactionConflict"}, *others])


class DynamoDBProxy(Proxy):
    """Asks `strike(operation, request)` about each request. `asked` counts operations; queries of the index are `QueryIndex`."""

    def __init__(self, server_port: int, strike: Callable[[str, Answer], Fault] = lambda *_: PASS) -> None:
        super().__init__(server_port)
        self.strike = strike
        self.asked: Counter[str] = Counter()

    async def _serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        writers = {client_writer, server_writer}
        self._writers |= writers
        try:
            while True:
                await self._exchange(client_reader, client_writer, server_reader, server_writer)
        except (OSError, asyncio.IncompleteReadError):  # either side has gone, or we break it
            pass
        finally:
            self._writers -= writers
            for writer in writers:
                writer.transport.abort()

    async def _exchange(
        self,
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        head, body = await _read_message(client_reader)
        target = _TARGET.search(head)
        assert target is not None, head
        operation, request = target[1].decode(), json.loads(body)
        if "IndexName" in request:
            operation += "Index"
        self.asked[operation] += 1
        fault = self.strike(operation, request)
        if fault == BREAK_BEFORE:
            raise ConnectionResetError
        if isinstance(fault, dict):
            client_writer.write(_response(400, fault))
            return
        server_writer.write(head + body)
        head, body = await _read_message(server_reader)
        if fault == BREAK_AFTER:
            raise ConnectionResetError
        client_writer.write(_response(200, fault(json.loads(body))) if callable(fault) else head + body)


async def _read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return head, await reader.readexactly(int(length[1])) if length else b""


def _response(status: int, answer: Answer) -> bytes:
    body = json.dumps(answer).encode()
    return b"HTTP/1.1 %d X\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )
