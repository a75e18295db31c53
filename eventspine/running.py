"""How long-running commands run: until a signal asks for the end, with a login that is checked at the start."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.util import find_spec
from itertools import count
from typing import Annotated, Any, Final

import typer

from .live import show_state, show_while
from .schemas import SettingsError, Unavailable
from .schemas.kafka import KafkaAccess, check_login
from .settings import Settings
from .supervisor import SUPERVISED
from .terminal import messages

__all__ = ["MetricsPort", "cycles_collected_by_the_clock", "logged_in", "metrics_address", "signalled", "until_signalled"]

MetricsPort = Annotated[
    int | None, typer.Option(min=0, help="Serve metrics for Prometheus; of several processes, each has the next port.")
]

_STARTED_S: Final = 3.0
_COLLECT_EVERY_S: Final = 10.0
_COLLECT_ALL_EVERY: Final = 60

Run = Callable[[], Coroutine[Any, Any, None]]


def metrics_address(settings: Settings, port: int | None) -> dict[str, Any] | None:
    """Return host and port of this process's metrics, None if there are none: of several processes, each has the next port.

    Raises:
        SettingsError: the packages for metrics are missing.
    """
    first = settings.metrics_port if port is None else port
    if not first:
        return None
    if find_spec("prometheus_client") is None:
        raise SettingsError('metrics need one more package: pip install "eventspine[metrics]"; or set metrics_port to 0')
    return {"host": settings.metrics_host, "port": first + int(os.environ.get(SUPERVISED, "0"))}


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


@asynccontextmanager
async def cycles_collected_by_the_clock() -> AsyncIterator[None]:
    """Look for cycles, which errors leave, every few seconds, not whenever many objects were made.

    Batches are many objects for a short time and no cycles: to look through them while they are there costs a relay a tenth of
    its time, and a consumer, which holds two of them, a third.
    """
    gc.freeze()
    gc.disable()
    collecting = asyncio.create_task(_collect_cycles())
    try:
        yield
    finally:
        collecting.cancel()
        gc.enable()


async def _collect_cycles() -> None:
    """Look through what was made since the last time; through all but rarely, which stops everything for a tenth of a second."""
    await asyncio.sleep(_STARTED_S)
    gc.collect()
    gc.freeze()  # what is there now stays: clients, codecs, statements
    for round_number in count(1):
        await asyncio.sleep(_COLLECT_EVERY_S)
        gc.collect(2 if round_number % _COLLECT_ALL_EVERY == 0 else 1)
