"""A real HTTP server that takes webhooks, and fails as it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class Delivery(NamedTuple):
    headers: dict[str, str]
    body: bytes
    event: dict[str, Any]


class Receiver:
    """Keeps what it took, in order. `answer` says what it answers to a delivery: a status, and headers.

    Attributes: `asked`, every delivery; `taken`, those that were answered with 2xx.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Delivery] = []
        self.taken: list[Delivery] = []
        self.answer: Callable[[Delivery], tuple[int, dict[str, str]]] = lambda _: (204, {})

    async def receive(self, request: Request) -> Response:
        body = await request.body()
        delivery = Delivery(dict(request.headers), body, msgspec.json.decode(body))
        self.asked.append(delivery)
        status, headers = self.answer(delivery)
        if status < 300:
            self.taken.append(delivery)
        return Response(status_code=status, headers=headers)

    def check_order(self) -> None:
        """First deliveries come in the order of their stream; duplicates carry the same key and the same event."""
        seen: dict[str, Delivery] = {}
        last: dict[str, int] = {}
        for each in self.taken:
            key, stream = each.headers["idempotency-key"], each.event["subject"]
            assert key == each.event["id"]
            if key in seen:
                assert seen[key].event == each.event
                continue
            seen[key] = each
            assert int(each.event["streamversion"]) > last.get(stream, 0)
            last[stream] = int(each.event["streamversion"])


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = Starlette(routes=[Route("/hooks", receiver.receive, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
        assert not serving.done(), serving
    receiver.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/hooks"
    try:
        yield receiver
    finally:
        server.should_exit = True
        await serving
