"""What a long-running command shows: one line that lives in a terminal, a line now and then in a log file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from rich.console import Console

from .schemas import Unavailable

__all__ = ["show_state", "show_while"]

_COUNTERS = ("published", "events")


def line_of(title: str, facts: dict[str, object], rate: float | None = None) -> str:
    """Return one line: the title, then each fact by its name; numbers with thousands separated."""
    parts = [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in facts.items()]
    if rate is not None:
        parts.append(f"{rate:,.0f}/s")
    return f"{title}: " + ", ".join(parts)


def show_state(title: str, facts: dict[str, object], console: Console) -> None:
    console.print(line_of(title, facts), markup=False, highlight=False)


async def show_while(
    work: Coroutine[Any, Any, None], title: str, look: Callable[[], Awaitable[dict[str, object]]], console: Console
) -> None:
    """Await `work`; meanwhile show what `look` returns: every half second in a terminal, else when 10 seconds have passed."""
    task = asyncio.create_task(work)
    with console.status(f"{title}: starting") as status:
        shown_at = counted_at = time.monotonic()
        counted: int | None = None
        while not task.done():
            await asyncio.wait({task}, timeout=0.5)
            facts: dict[str, object] = {"state": "waiting"}
            with suppress(Unavailable):  # the work itself says so and retries
                facts = await look()
            now = time.monotonic()
            total = next((value for name in _COUNTERS if isinstance(value := facts.get(name), int)), None)
            rate = None if total is None or counted is None else max(0, total - counted) / (now - counted_at)
            counted, counted_at = total, now
            if console.is_terminal:
                status.update(line_of(title, facts, rate))
            elif now - shown_at >= 10:
                show_state(title, facts, console)
                shown_at = now
    await task
