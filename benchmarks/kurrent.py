"""The EventStoreDB door beside the native API: 64 concurrent appends of one event each, and a read of the whole log.

    .venv/bin/python -m benchmarks.kurrent [--events 20000] [--profile]

`benchmarks/run kurrent` does it several times, without the profile.

The client is a process of its own, with raw gRPC and no client library: what is measured is the door.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import os
import pstats
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import grpc

from benchmarks.bench import Figure, say
from eventspine import Event, PostgresEventStore, migrate
from eventspine.local.postgres import PostgresService
from eventspine.schemas import OPAQUE, Opaque
from eventspine.store.kurrent import KurrentServer
from eventspine.store.kurrent.messages import message_class

_STREAMS = "/event_store.client.streams.Streams"
_CONCURRENT = 64
_DATA = json.dumps({"customer_id": "c1", "total_cents": 1990, "note": "n" * 100}).encode()


def client(port: int, events: int, results: Any) -> None:
    results.put(asyncio.run(_measure(port, events)))


async def _measure(port: int, events: int) -> tuple[float, float]:
    request, response, read = message_class("AppendRequest"), message_class("AppendResponse"), message_class("ReadRequest")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        append = channel.stream_unary(f"{_STREAMS}/Append", response_deserializer=response.FromString)
        numbers = count()

        async def work() -> None:
            while (number := next(numbers)) < events:
                target = {"stream_identifier": {"stream_name": b"Order-%d" % number}, "no_stream": {}}
                told = {"type": "Bench", "content-type": "application/json"}
                proposed = {"id": {"string": str(uuid4())}, "metadata": told, "data": _DATA}
                frames = [request(options=target).SerializeToString(), request(proposed_message=proposed).SerializeToString()]
                assert (await append(iter(frames))).WhichOneof("result") == "success"

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(_CONCURRENT)))
        appends = events / (time.perf_counter() - began)
        options = {"all": {"start": {}}, "count": 2**62, "no_filter": {}, "uuid_option": {"string": {}}}
        began = time.perf_counter()
        seen = 0
        call = channel.unary_stream(f"{_STREAMS}/Read")(read(options=options).SerializeToString())
        while await call.read() is not grpc.aio.EOF:
            seen += 1
        assert seen >= events
        return appends, seen / (time.perf_counter() - began)


async def _native(store: PostgresEventStore, events: int) -> tuple[float, float]:
    numbers = count()

    async def work() -> None:
        while (number := next(numbers)) < events:
            event = Event(event_type="Bench", data=Opaque("application/json", _DATA))
            await store.append(f"Native-{number}", "Native", [event], 0)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(_CONCURRENT)))
    appends = events / (time.perf_counter() - began)
    began, position = time.perf_counter(), 0
    while page := await store.read_all(position, 1000):
        position = page[-1].global_position
    return appends, position / (time.perf_counter() - began)


async def measure_kurrent(runs: int, scale: float) -> list[Figure]:
    """Measure; `scale` 1 is 20,000 events a run."""
    appends = Figure("append through the door, 64 at once", "events/s", "the native API", limit=3_000)
    reads = Figure("read `$all` through the door", "events/s", "the native API, decoded", limit=25_000)
    for run in range(1, runs + 1):
        say(f"kurrent, run {run} of {runs}")
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)  # noqa: PTH101 - Postgres runs as another user
            for figure, ours, native in zip((appends, reads), *await measure(int(20_000 * scale), Path(folder)), strict=True):
                figure.ours.append(ours)
                figure.rival.append(native)
    return [appends, reads]


async def measure(events: int, folder: Path, *, profile: bool = False) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return appends/s and reads/s, through the door and native."""
    postgres = PostgresService(folder / "postgres")
    postgres.start(None, lambda _: None)
    try:
        server = await asyncpg.connect(postgres.endpoint)
        await server.execute("CREATE DATABASE bench")
        await server.close()
        dsn = urlunsplit(urlsplit(postgres.endpoint)._replace(path="/bench"))
        async with asyncpg.create_pool(dsn, min_size=4, max_size=10) as pool:
            async with pool.acquire() as connection:
                await migrate(connection)
            store = PostgresEventStore(pool)
            profiler = cProfile.Profile() if profile else None
            async with KurrentServer(store).listening(port=0) as port:
                results: Any = multiprocessing.get_context("spawn").Queue()
                process = multiprocessing.get_context("spawn").Process(target=client, args=(port, events, results))
                process.start()
                if profiler:
                    profiler.enable()
                appends, reads = await asyncio.to_thread(results.get)
                if profiler:
                    profiler.disable()
                process.join()
            await store.register([OPAQUE])
            native = await _native(store, events)
    finally:
        postgres.stop()
    if profiler:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    return (appends, reads), native


async def main(events: int, profile: bool, folder: Path) -> None:
    (appends, reads), (native_appends, native_reads) = await measure(events, folder, profile=profile)
    print(f"{'':<24}{'through the door':>18}{'native':>12}")
    print(f"{'appends/s, 64 at once':<24}{appends:>18,.0f}{native_appends:>12,.0f}")
    print(f"{'read $all, events/s':<24}{reads:>18,.0f}{native_reads:>12,.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        asyncio.run(main(arguments.events, arguments.profile, Path(temporary)))
