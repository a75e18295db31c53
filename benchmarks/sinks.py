"""`python -m benchmarks.sinks DSN…`: events a second from memory into each read model in turn, in batches of 10,000.

Each run takes 100,000 events into 20,000 rows, and 100,000 into new rows. It leaves its rows there: name databases made for it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import NoReturn

from benchmarks.bench import Rows, Totals, data
from eventspine import Event, Projection
from eventspine.consumers.engine import Engine
from eventspine.consumers.parked import Kept, Parked
from eventspine.consumers.places import Item, Partition
from eventspine.read_model import open_admin, open_sink

_EVENTS, _BATCH, _RUNS = 100_000, 10_000, 5
_PARTITION = Partition("events.Order", 0)


def _item(number: int) -> Item:
    event = Event(event_type="OrderPlaced", data=data(number), stream_id=f"Order-{number}", version=1, global_position=number + 1)
    return Item(_PARTITION, number, number + 1, 0, "OrderPlaced", event.stream_id, event)


async def _measure(dsn: str, projection: Projection, items: list[Item]) -> tuple[float, float, float]:
    """Return events a second, a batch being staged while the one before is written; and µs of staging, of CPU in all."""

    async def nothing_parked(rows: Sequence[Parked]) -> NoReturn:
        raise RuntimeError(f"{len(rows)} events are parked")

    async with open_admin(dsn) as admin, open_sink(dsn) as sink:
        await sink.prepare(projection)
        await admin.reset(projection)
        await sink.prepare(projection)
        engine = Engine(projection, sink, keep=lambda item: Kept(b"{}", b"", b""), read=nothing_parked)
        await engine.claim({_PARTITION: ""})
        writing: asyncio.Task[None] | None = None
        staging_s, cpu, started = 0.0, time.process_time(), time.perf_counter()
        for first in range(0, len(items), _BATCH):
            await asyncio.sleep(0)
            before = time.perf_counter()
            staged = engine.stage(items[first : first + _BATCH])
            staging_s += time.perf_counter() - before
            if writing is not None:
                await writing
            assert staged is not None
            writing = asyncio.create_task(engine.write(staged))
        assert writing is not None
        await writing
        took = time.perf_counter() - started
    return len(items) / took, staging_s * 1e6 / len(items), (time.process_time() - cpu) * 1e6 / len(items)


async def main() -> None:
    items = [_item(number) for number in range(_EVENTS)]
    for projection in (Totals(), Rows()):
        seen: dict[str, list[tuple[float, float, float]]] = {dsn: [] for dsn in sys.argv[1:]}
        for _ in range(_RUNS):
            for dsn, figures in seen.items():
                figures.append(await _measure(dsn, projection, items))
        for dsn, figures in seen.items():
            rates, staging, cpu = (sorted(each) for each in zip(*figures, strict=True))
            kind = dsn.partition(":")[0]
            print(f"{projection.name:7} {kind:11} {median(rates):8,.0f} events/s ({rates[0]:,.0f} – {rates[-1]:,.0f}), "
                  f"staging {median(staging):.1f} µs, CPU of the process {median(cpu):.1f} µs")  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
