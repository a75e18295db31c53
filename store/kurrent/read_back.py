"""Read back what appends recorded: those that end at the same time share one read of the log, instead of a call for each."""

from __future__ import annotations

import asyncio

from .asking import all_request, read_seen
from .connection import KurrentConnection
from .envelope import Seen

__all__ = ["ReadBack"]

_AT_ONCE = 256


class ReadBack:
    """Finds events by their positions. The first who asks is served at once; who asks meanwhile, together with the others."""

    def __init__(self, connection: KurrentConnection) -> None:
        self._connection = connection
        self._wanted: dict[int, asyncio.Future[Seen | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def at(self, position: int) -> Seen | None:
        """Return the event at a position; None if it was not among what one read gave: look in its stream then.

        Raises: as `KurrentConnection.read`.
        """
        found = self._wanted.get(position)
        if found is None:
            found = self._wanted[position] = asyncio.get_running_loop().create_future()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(found)  # others may wait for the same

    async def aclose(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        while self._wanted:
            taken = {position: self._wanted.pop(position) for position in sorted(self._wanted)[:_AT_ONCE]}
            try:
                await self._find(taken)
            except Exception as error:
                for found in taken.values():
                    if not found.done():
                        found.set_exception(error)
                        found.exception()  # whoever asked may be gone
            finally:
                for found in taken.values():
                    if not found.done():
                        found.set_result(None)

    async def _find(self, taken: dict[int, asyncio.Future[Seen | None]]) -> None:
        """Read from the first position on, a little more than is looked for: other writers' events are between."""
        request = all_request(min(taken), wanted=None, limit=2 * len(taken) + 8)
        last = max(taken)
        async for seen in read_seen(self._connection, request):
            found = taken.get(seen.position)
            if found is not None and not found.done():
                found.set_result(seen)
            if seen.position >= last:
                return
