"""The sides of the consumers' benchmark, each from the same topic into an empty table of the same Postgres."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg

from benchmarks import consume_projections
from benchmarks.bench import database, say
from benchmarks.consume_events import CHARGED, PER_STREAM, account, is_poison
from benchmarks.consume_watch import ACCOUNTS, CHARGES, STATEMENTS, Seen, Shape, watch
from benchmarks.jdbc_sink import SETTINGS, Connect, JdbcSink
from benchmarks.meter import Meter
from benchmarks.processes import command
from benchmarks.relay_drain import Cost
from benchmarks.topics import PARTITIONS
from eventspine.consumers.postgres_admin import PostgresProjectionAdmin
from eventspine.local import Endpoints, LocalStack
from eventspine.local.jars import cache_folder

_ROOT = Path(__file__).parents[1]
_RIVALS = Path(__file__).parent / "consume_rivals" / "requirements.lock"
_PROJECTIONS = {ACCOUNTS: "Accounts", CHARGES: "Charges", STATEMENTS: "Statements"}
_TYPES = {"number": "bigint", "cents": "bigint", "balance": "bigint"}


class Mode(NamedTuple):
    """A way to run our consumer."""

    title: str
    arguments: tuple[str, ...] = ()
    processes: int = 1

    @property
    def side(self) -> str:
        return f"eventspine, {self.title}"


ONE = Mode("1 process")
TWO = Mode("2 processes", ("--processes", "2"), 2)
LOG = Mode("from the log", ("--source", "log"))


class Sides:
    """All sides over one filled topic, and the log that it was filled from."""

    def __init__(self, stack: LocalStack, dsn: str, topic: str, events: int, lasts: list[int], registry_url: str) -> None:
        endpoints = stack.endpoints()
        assert endpoints is not None
        assert stack.postgres.pid is not None
        assert stack.kafka.pid is not None
        self._endpoints: Endpoints = endpoints
        self._servers = {"postgres": [stack.postgres.pid], "broker": [stack.kafka.pid]}
        self._dsn = dsn
        self._topic = topic
        self._prefix = topic.rpartition(".")[0] + "."
        self._events = events
        self._lasts = lasts
        self._registry_url = registry_url

    async def ours(self, mode: Mode, shape: Shape) -> Cost:
        """Our consumer, in processes of its own. It is held back until each process has its partitions."""
        async with self._read_model(None) as dsn, asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
            cost = await self._consume(mode, _PROJECTIONS[shape], shape, dsn, pool, self._last_rows(shape), self._events)
            await self._verify(pool, shape)
        return cost

    async def with_poison(self, projection: str) -> Cost:
        """Our consumer, when one stream in a hundred is poison: what it does with the others."""
        accounts = self._events // PER_STREAM
        lasts = [(f"c-{number:012d}", number) for number in self._lasts if not is_poison(account(number, accounts))]
        poison = PER_STREAM * sum(is_poison(account(number, accounts)) for number in range(accounts))
        async with self._read_model(None) as dsn, asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
            cost = await self._consume(ONE, projection, CHARGES, dsn, pool, lasts, self._events - poison)
            found = await pool.fetchval("SELECT count(*) FROM charges")
            aside = await pool.fetchval("SELECT count(*) FROM projection_parked")
            if found != self._events - poison or aside > poison:
                raise RuntimeError(f"{found} rows, {aside} events set aside, of {self._events} events with {poison} of poison")
        return cost

    async def rebuild(self) -> Cost:
        """A rebuild from the log by two processes: from the first look at which a part has rows until all parts are built."""
        arguments = ["projections", "rebuild", "benchmarks.consume_projections:Charges", "--processes", "2", "--no-swap"]
        built = (
            "SELECT coalesce(sum(next_offset) / count(*), 0)::bigint FROM projection_offsets WHERE projection = 'charges@build'"
        )
        async with self._read_model(None) as dsn, asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
            await PostgresProjectionAdmin(pool).prepare()
            settings = {"EVENTSPINE_READ_MODEL_DSN": dsn}
            async with command(self._dsn, self._endpoints, self._prefix, arguments, settings) as rebuild:
                with self._meter(rebuild.pid) as meter:
                    while not (there := await pool.fetchval(built)):
                        rebuild.check()
                        await asyncio.sleep(0.01)
                    first_s = time.time()
                    while await pool.fetchval(built) < self._events:
                        rebuild.check()
                        await asyncio.sleep(0.02)
                    seen = Seen(first_s, time.time(), self._events - there)
            rows = await pool.fetchval('SELECT count(*) FROM "charges@build".charges')
            if rows != self._events:
                raise RuntimeError(f"{rows} rows are built of {self._events} events")
        return self._cost(meter, seen)

    async def _consume(
        self, mode: Mode, projection: str, shape: Shape, dsn: str, pool: asyncpg.Pool, lasts: list[tuple[str, int]], events: int
    ) -> Cost:
        name = getattr(consume_projections, projection).name
        arguments = ["consume", f"benchmarks.consume_projections:{projection}", *mode.arguments]
        admin = PostgresProjectionAdmin(pool)
        await admin.prepare()
        await admin.pause(name, True)
        async with command(self._dsn, self._endpoints, self._prefix, arguments, {"EVENTSPINE_READ_MODEL_DSN": dsn}) as consumer:
            await _all_joined(pool, mode, consumer.check)

            async def check() -> None:
                consumer.check()

            with self._meter(consumer.pid) as meter:
                await admin.pause(name, False)
                seen = await watch(dsn, shape, events, lasts, check)
        return self._cost(meter, seen)

    async def jdbc_sink(self, connect: Connect, shape: Shape) -> Cost:
        """The JDBC sink, by a new connector in a JVM that runs already."""
        assert connect.pid is not None
        async with self._read_model(None) as dsn, asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
            sink = JdbcSink(connect, f"sink-{uuid4().hex[:8]}")
            with self._meter(connect.pid) as meter:
                await sink.start(self._topic, dsn, shape.table, shape.key, list(shape.columns), SETTINGS)
                seen = await watch(dsn, shape, self._events, self._last_rows(shape), sink.check)
            await sink.remove()
            await self._verify(pool, shape)
        return self._cost(meter, seen)

    async def rival(self, name: str, shape: Shape, events: int, *, batch: bool = True) -> Cost:
        """One of `consume_rivals`, for so many events, by batches where it has a choice."""
        python = await asyncio.to_thread(_rivals_python)
        async with self._read_model(shape) as dsn:
            task: dict[str, Any] = {
                "bootstrap": self._endpoints.kafka_bootstrap,
                "topic": self._topic,
                "definition": CHARGED.definition,
                "registry_url": self._registry_url,
                "dsn": dsn,
                "table": shape.table,
                "key": shape.key,
                "columns": shape.columns,
                "events": events,
                "batch": batch,
            }
            process = await asyncio.create_subprocess_exec(
                *[str(python), "-m", f"benchmarks.consume_rivals.{name}", json.dumps(task)],
                cwd=_ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            with self._meter(process.pid) as meter:
                while (said := await process.stdout.readline()) and not said.startswith(b"{"):
                    pass  # what frameworks print
            await process.wait()
        if not said:
            raise RuntimeError(f"{name} has ended with {process.returncode}")
        return self._cost(meter, Seen(**json.loads(said)))

    @asynccontextmanager
    async def _read_model(self, shape: Shape | None) -> Any:
        """A new database, for those who don't make their tables with the table of a shape."""
        async with database(self._endpoints.postgres_dsn) as (dsn, pool):
            if shape is not None:
                columns = ", ".join(f"{column} {_TYPES.get(column, 'text')}" for column in shape.columns)
                await pool.execute(f"CREATE TABLE {shape.table} ({columns}, PRIMARY KEY ({shape.key}))")
                await pool.execute("CREATE TABLE balances (account text PRIMARY KEY, balance bigint)")
            await pool.execute("CHECKPOINT")
            yield dsn

    def _last_rows(self, shape: Shape) -> list[tuple[str, int]]:
        accounts = self._events // PER_STREAM
        by_account = shape is ACCOUNTS
        return [(account(number, accounts) if by_account else f"c-{number:012d}", number) for number in self._lasts]

    async def _verify(self, pool: asyncpg.Pool, shape: Shape) -> None:
        """Check that the table holds what all events come to."""
        first = self._events - self._events // PER_STREAM if shape is ACCOUNTS else 0
        expected = self._events - first, sum(range(first, self._events))
        found = tuple(await pool.fetchrow(f"SELECT count(*), sum(number)::bigint FROM {shape.table}") or ())
        if found != expected:
            raise RuntimeError(f"{shape.table} has {found} (rows, sum of numbers), and should have {expected}")

    def _meter(self, pid: int) -> Meter:
        return Meter({"side": [pid], **self._servers})

    def _cost(self, meter: Meter, seen: Seen) -> Cost:
        side, postgres, broker = (meter.used(group, seen.first_s, seen.last_s) for group in ("side", "postgres", "broker"))
        per_million = 1e6 / seen.events
        return Cost(
            seen.rate, side.cpu_s * per_million, side.peak_bytes / 1e6, postgres.cpu_s * per_million, broker.cpu_s * per_million
        )


async def _all_joined(pool: asyncpg.Pool, mode: Mode, check: Callable[[], None]) -> None:
    """Wait until all partitions are owned, and where there are more processes, until they have shared them out."""
    owned = "SELECT count(*), count(*) FILTER (WHERE epoch > 1) FROM projection_offsets"
    wanted = (1, 0) if mode is LOG else (PARTITIONS, PARTITIONS // 2 if mode.processes > 1 else 0)
    async with asyncio.timeout(60):
        while True:
            check()
            partitions, passed_on = await pool.fetchrow(owned) or (0, 0)
            if partitions >= wanted[0] and passed_on >= wanted[1]:
                return
            await asyncio.sleep(0.1)


def _rivals_python() -> Path:
    """Return the interpreter of the rivals' virtual environment, which is made once for each user and state of its lock."""
    folder = cache_folder() / f"consume-rivals-{hashlib.sha256(_RIVALS.read_bytes()).hexdigest()[:16]}"
    if not folder.exists():
        say("making the virtual environment of FastStream and Quix Streams")
        half = folder.with_suffix(f".{os.getpid()}")
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--relocatable", str(half)], check=True)
        install = [
            *uv,
            "pip",
            "install",
            "--quiet",
            "--require-hashes",
            "--python",
            str(half / "bin" / "python"),
            "-r",
            str(_RIVALS),
        ]
        subprocess.run(install, check=True)
        half.rename(folder)
    return folder / "bin" / "python"
