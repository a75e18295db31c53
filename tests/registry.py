"""Our registry, served for a test."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from queue import Queue

import asyncpg
import httpx
import uvicorn

from eventspine.schemas.registry import registry_app
from eventspine.schemas.registry_users import Users
from tests.waiting import wait_for

__all__ = ["client", "serving", "serving_in_a_thread"]

_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx would load all of the system's for each client: 0.1 s


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=60, verify=_NO_CERTIFICATES)


@asynccontextmanager
async def serving(pool: asyncpg.Pool, *, users: Users | None = None, port: int = 0) -> AsyncIterator[str]:
    """Serve the registry over a pool's database, and give its URL. Port 0 takes a free one."""
    server = uvicorn.Server(uvicorn.Config(registry_app(pool, users=users), port=port, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    await wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@contextmanager
def serving_in_a_thread(dsn: str) -> Iterator[str]:
    """Serve the registry for many tests, each with an event loop of its own, and give its URL."""
    started: Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Queue()

    async def serve() -> None:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=5) as pool, serving(pool) as url:
            over = asyncio.Event()
            started.put((url, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    url, loop, over = started.get(timeout=60)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60)
