"""What a consumer counts while it runs: per batch, so that it costs nothing per event."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from .engine import Engine, Staged

__all__ = ["STEPS", "Counters", "Histogram"]

STEPS: Final = ("consume", "fold", "write")
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_EVENTS: Final = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)


class Histogram:
    """Counts observations by upper bounds; the last of `counts` is for what is above all of them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Counters:
    """Counts since the process began; only the consumer writes them, and anybody may read.

    `events` were taken (applied, passed over or set aside) in `batches`; `seconds` by step: `consume` waits for records and takes
    them, `fold` decodes and runs the handlers, `write` is the transaction. `rebalances` counts how often partitions came or went,
    `retries` how often it began anew because a server was away or another consumer had taken over.
    """

    def __init__(self) -> None:
        self.events = 0
        self.batches = 0
        self.rebalances = 0
        self.retries = 0
        self.batch_events = Histogram(_EVENTS)
        self.seconds = {step: Histogram(_SECONDS) for step in STEPS}

    def took(self, began: float, consumed: float) -> None:
        """Observe a batch that is folded now; both moments are of `time.perf_counter`."""
        self.seconds["consume"].observe(consumed - began)
        self.seconds["fold"].observe(time.perf_counter() - consumed)

    async def write(self, engine: Engine, staged: Staged) -> None:
        """Write a batch, and count it when it is written. Raises as `Engine.write`."""
        began = time.perf_counter()
        await engine.write(staged)
        self.seconds["write"].observe(time.perf_counter() - began)
        self.events += len(staged.new)
        self.batches += 1
        self.batch_events.observe(len(staged.new))
