"""How long-running commands run: until a signal asks for the end, with a login that is checked at the start."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from .live import show_state, show_while
from .schemas import Unavailable
from .schemas.kafka import KafkaAccess, check_login
from .terminal import messages

__all__ = ["logged_in", "signalled", "until_signalled"]

Run = Callable[[], Coroutine[Any, Any, None]]


def logged_in(kafka: str | KafkaAccess, run: Run) -> Run:
    """Return `run` with a login to Kafka before it, and after it where it gave up.

    While it runs, a refused login is waited for like a broker that is away: a password may be on its way.
    """

    async def checked() -> None:
        await asyncio.to_thread(check_login, kafka)
        try:
            await run()
        except Unavailable:
            await asyncio.to_thread(check_login, kafka)
            raise

    return checked


async def until_signalled(
    run: Run, stop: Callable[[], None], title: str, look: Callable[[], Awaitable[dict[str, object]]], *, quiet: bool = False
) -> None:
    """Run until SIGINT or SIGTERM asks for the end, showing how it goes. The batch under way is finished."""
    if quiet:
        await signalled(run, stop)
        return
    await signalled(lambda: show_while(run(), title, look, messages), stop)
    show_state(title, await look(), messages)


async def signalled(run: Run, stop: Callable[[], None]) -> None:
    """Run; SIGINT and SIGTERM ask for the end."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await run()
