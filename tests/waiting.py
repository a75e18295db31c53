"""Wait for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def wait_for(
    look: Callable[[], Awaitable[T]], until: Callable[[T], object] = bool, *, timeout_s: float = 20.0, every_s: float = 0.02
) -> T: ...


@overload
async def wait_for(
    look: Callable[[], T], until: Callable[[T], object] = bool, *, timeout_s: float = 20.0, every_s: float = 0.02
) -> T: ...


async def wait_for(
    look: Callable[[], Any], until: Callable[[Any], object] = bool, *, timeout_s: float = 20.0, every_s: float = 0.02
) -> Any:
    """Look again and again until `until` likes what was seen, and return it.

    Raises:
        AssertionError: it did not come within `timeout_s`; tells what was seen last.
    """
    started = time.monotonic()
    while True:
        seen = look()
        if inspect.isawaitable(seen):
            seen = await seen
        if until(seen):
            return seen
        if time.monotonic() - started > timeout_s:
            waited_for = inspect.getsource(look if until is bool else until).strip()
            raise AssertionError(f"waited {timeout_s} s for {waited_for!r}; last seen: {seen!r}")
        await asyncio.sleep(every_s)
