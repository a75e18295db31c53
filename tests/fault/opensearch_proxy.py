"""A proxy in front of OpenSearch that knows where each request begins and what it writes, so that a test can strike at a step."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from tests.fault.proxy import Proxy

Moment = Literal["before", "half", "unanswered"]
Step = Literal["begin", "documents", "park", "finish", "any"]


@dataclass
class Strike:
    """Break the connection at the n-th request of a step: before OpenSearch gets it, when it got the first half of it,
    or when it has carried it out and its answer is held back. Strikes once.

    With `holds`, the request waits for `release` instead, and goes on then.
    """

    step: Step
    moment: Moment = "before"
    skip: int = 0
    holds: bool = False
    struck: bool = False
    released: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)

    def strikes(self, step: str) -> bool:
        if self.struck or (self.step != step and not (self.step == "any" and step)):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.struck = True
        return True


class OpenSearchProxy(Proxy):
    """Forwards HTTP; a client has one request under way on each connection."""

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port)
        self.strike: Strike | None = None
        self.steps: list[str] = []

    @property
    def dsn(self) -> str:
        return f"opensearch://127.0.0.1:{self.port}"

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, bytes]) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1])) if length else b""
            step = _step(head, body)
            if step:
                self.steps.append(step)
            strike = self.strike
            if strike is None or not strike.strikes(step):
                await self._forward(head + body, writer)
                continue
            if strike.holds:
                strike.held.set()
                await strike.released.wait()
                await self._forward(head + body, writer)
                continue
            if strike.moment == "half":
                lines = body.split(b"\n")[:-1]
                operations = len(lines) // 2
                body = b"".join(line + b"\n" for line in lines[: operations // 2 * 2])
                head = re.sub(rb"(?i)(content-length: *)\d+", rb"\g<1>%d" % len(body), head)
            if strike.moment != "before" and body:
                asked[0] = b""  # the answer is not to be passed on
                await self._forward(head + body, writer)
                await asyncio.sleep(30)  # it breaks when the answer comes
            raise ConnectionResetError

    async def _responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, bytes]) -> None:
        while chunk := await reader.read(65536):
            if 0 in asked:
                raise ConnectionResetError
            await self._forward(chunk, writer)
        raise ConnectionResetError


def _step(head: bytes, body: bytes) -> str:
    if not head.startswith(b"POST /_bulk"):
        return ""
    if b'-writes"' in body:
        return "documents"
    if b'"kind":"parked"' in body:
        return "park"
    if b'"kind":"place"' in body:
        places = re.findall(rb'"next_offset":(\d+).*?"begun_to":(\d+)', body)
        begun = b'"retries":{"' in body or any(int(begun_to) > int(next_offset) for next_offset, begun_to in places)
        return "begin" if begun else "finish"
    return ""


@asynccontextmanager
async def opensearch_proxy(port: int) -> AsyncIterator[OpenSearchProxy]:
    """Run a proxy in front of the node on a port."""
    proxy = OpenSearchProxy(port)
    async with proxy.running():
        yield proxy
