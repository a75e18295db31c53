"""A publisher for asyncio: in a thread of its own, one call at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from .publisher import Publisher, Record

__all__ = ["Publishing", "publishing"]


class Publishing:
    """A publisher and its thread."""

    def __init__(self, publisher: Publisher, thread: ThreadPoolExecutor) -> None:
        self._publisher = publisher
        self._thread = thread

    @property
    def usable(self) -> bool:
        return self._publisher.usable

    async def start(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._publisher.start)

    async def send(self, records: Iterable[Record], cursor: Record, *, durable: bool = False) -> None:
        """Publish records and the cursor; see `Publisher.publish`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._publish, records, cursor, durable)

    def _publish(self, records: Iterable[Record], cursor: Record, durable: bool) -> None:
        self._publisher.publish(records, cursor, durable=durable)


@asynccontextmanager
async def publishing(make: Callable[[], Publisher]) -> AsyncIterator[Publishing]:
    """Make a publisher, and throw it away at the end, when its last call has ended."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="eventspine-publisher")
    publisher = make()
    try:
        yield Publishing(publisher, thread)
    finally:
        await asyncio.get_running_loop().run_in_executor(thread, publisher.discard)
        thread.shutdown(wait=False)
