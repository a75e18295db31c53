"""Other event stores that run from a package registry: one event to a new stream each."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit
from uuid import uuid4

from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresAggregateRecorder, PostgresApplicationRecorder, PostgresDatastore

from benchmarks.bench import NOTE, database, say

_EMMETT = Path(__file__).parent / "emmett"
_THREADS = (1, 8, 32)
_EMMETT_TASKS = 32
_STATE = f'{{"customer_id":"customer-12345","total_cents":567,"note":"{NOTE}"}}'.encode()


async def eventsourcing_rate(
    postgres_dsn: str, recorder: type[PostgresAggregateRecorder | PostgresApplicationRecorder], events: int
) -> float:
    """Events a second through a recorder of `eventsourcing`, by the best of some numbers of threads.

    The application recorder keeps one order over all events, as a log does; the aggregate recorder only that of each stream.
    """
    async with database(postgres_dsn) as (dsn, _):
        return await asyncio.to_thread(_eventsourcing_rate, dsn, recorder, events)


def _eventsourcing_rate(
    dsn: str, recorder_class: type[PostgresAggregateRecorder | PostgresApplicationRecorder], events: int
) -> float:
    server = urlsplit(dsn)
    with PostgresDatastore(
        dbname=server.path.lstrip("/"),
        host=server.hostname or "",
        port=server.port or 5432,
        user=server.username or "",
        password=server.password or "",
        pool_size=max(_THREADS),
        schema="public",
    ) as datastore:
        recorder = recorder_class(datastore)
        recorder.create_table()

        def append_until_empty(left: Iterator[int], lock: Lock) -> None:
            while True:
                with lock:
                    if next(left, None) is None:
                        return
                recorder.insert_events([StoredEvent(uuid4(), 1, "benchmarks:OrderPlaced", _STATE)])

        def rate(count: int, threads: int) -> float:
            left, lock = iter(range(count)), Lock()
            started = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                for done in [pool.submit(append_until_empty, left, lock) for _ in range(threads)]:
                    done.result()
            return count / (time.perf_counter() - started)

        rate(1000, max(_THREADS))
        return max(rate(events, threads) for threads in _THREADS)


def install_emmett() -> str | None:
    """Install Emmett by `npm ci`, and return its name and version; None where there is no Node.js."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        say("Emmett is left out: there is no node")
        return None
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=_EMMETT, check=True)
    read = "import package_ from './node_modules/@event-driven-io/emmett-postgresql/package.json' with {type: 'json'};"
    command = ["node", "--no-warnings", "--input-type=module", "-e", f"{read} console.log(package_.version)"]
    return "Emmett " + subprocess.run(command, cwd=_EMMETT, check=True, capture_output=True, text=True).stdout.strip()


async def emmett_rate(postgres_dsn: str, events: int) -> float:
    """Events a second through Emmett's store, in a process of its own, as its users run it."""
    async with database(postgres_dsn) as (dsn, _):
        command = ["node", "append.mjs", dsn, str(events), str(_EMMETT_TASKS)]
        process = await asyncio.create_subprocess_exec(*command, cwd=_EMMETT, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"append.mjs ended with {process.returncode}")
        return float(out)


def eventsourcing_title(recorder: type) -> str:
    return f"eventsourcing {version('eventsourcing')}, {recorder.__name__}, best of 1, 8, 32 threads"
