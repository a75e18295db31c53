"""The flights demo: a few days through the whole path, the proof's own reliability, and demos that are stopped or killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from io import StringIO
from itertools import pairwise
from pathlib import Path

import asyncpg
import psutil
import pytest
from rich.console import Console

from eventspine import IntegrityError, PostgresEventStore
from eventspine.examples.flights.data import cut_of, event_id_of, read_flights, steps_of
from eventspine.examples.flights.demo import run_demo
from eventspine.examples.flights.proof import prove
from tests.event_types import placed
from tests.waiting import wait_for

_DEMO = """
import asyncio, pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background has Ctrl-C switched off
from eventspine.examples.flights.demo import run_demo
dsn, kafka, prefix, output, days = sys.argv[1:]
work = run_demo(postgres_dsn=dsn, kafka_bootstrap=kafka, topic_prefix=prefix, output=pathlib.Path(output), days=int(days))
sys.exit(0 if asyncio.run(work) else 1)
"""


class Demo:
    """Runs the demo on the test's servers; keeps what it says."""

    def __init__(self, database: str, kafka: str, topic_prefix: str, output: Path) -> None:
        self.said = ""
        self.output = output
        self._database = database
        self._kafka = kafka
        self._topic_prefix = topic_prefix

    async def run(self, days: int) -> bool:
        screen = StringIO()
        try:
            return await run_demo(
                postgres_dsn=self._database,
                kafka_bootstrap=self._kafka,
                output=self.output,
                days=days,
                topic_prefix=self._topic_prefix,
                console=Console(file=screen, width=160),
            )
        finally:
            self.said = screen.getvalue()

    def start(self, days: int) -> psutil.Popen:
        """Run it in a process of its own."""
        arguments = [self._database, self._kafka, self._topic_prefix, str(self.output), str(days)]
        with (self.output / "demo.log").open("wb") as log:
            return psutil.Popen([sys.executable, "-c", _DEMO, *arguments], stdout=log, stderr=subprocess.STDOUT)


@pytest.fixture
def demo(database: str, kafka: str, topic_prefix: str, tmp_path: Path) -> Demo:
    return Demo(database, kafka, topic_prefix, tmp_path)


@pytest.fixture
def started() -> Iterator[list[psutil.Process]]:
    """Processes that are killed at the end of the test, if they still run."""
    processes: list[psutil.Process] = []
    yield processes
    for process in filter(_runs, processes):
        process.kill()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_to_the_proof_and_on(demo: Demo, pool: asyncpg.Pool, kafka: str, topic_prefix: str) -> None:
    """Two days; then three, which continue them; then the proof, with things made wrong one after the other."""
    assert await demo.run(days=2), demo.said
    assert await demo.run(days=3), demo.said
    end = date(2013, 1, 4)
    flights = read_flights(end)
    steps = steps_of(flights, end)
    assert demo.said.splitlines()[0] == f"{len(flights):,} flights, {len(steps):,} events"
    assert "✗" not in demo.said
    assert demo.said.splitlines()[-1] == "proven"
    assert {file.suffix for file in demo.output.iterdir() if file.stem == "delays"} == {".png", ".svg"}

    # The log has the order of time: that of the steps.
    logged = [row["id"] for row in await pool.fetch("SELECT id FROM events ORDER BY global_position")]
    assert logged == [event_id_of(flights[step.flight], step.event_type) for step in steps]

    async def faults() -> list[str]:
        findings = await prove(pool, kafka, f"{topic_prefix}Aircraft", flights, steps, cut_of(end))
        return [finding.said for finding in findings if not finding.holds]

    assert not await faults()
    await pool.execute("UPDATE delay_board SET delay_minutes = delay_minutes + 1 WHERE hour = 8 AND airport = 'JFK'")
    assert [said.partition(":")[0] for said in await faults()] == ["delay_board"]
    await pool.execute("DELETE FROM aircraft_utilisation WHERE tail_number = (SELECT min(tail_number) FROM aircraft_utilisation)")
    assert [said.partition(":")[0] for said in await faults()] == ["delay_board", "aircraft_utilisation"]
    await pool.execute("DELETE FROM projection_offsets WHERE projection = 'delay_board'")
    assert [said.partition(":")[0] for said in await faults()] == ["delay_board", "delay_board", "aircraft_utilisation"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_stopped_in_mid_append_and_continued(
    demo: Demo, pool: asyncpg.Pool, number: signal.Signals, started: list[psutil.Process]
) -> None:
    """When events are on their way through all parts, the demo is stopped. Nobody survives it, and the next one goes on."""
    days = 32
    process = demo.start(days)
    started.append(process)

    async def seen_at_the_end() -> bool:
        assert process.poll() is None, (demo.output / "demo.log").read_text()
        if not await pool.fetchval("SELECT to_regclass('projection_offsets') IS NOT NULL"):
            return False
        projections = await pool.fetch("SELECT projection FROM projection_offsets WHERE events > 0 GROUP BY projection")
        return bool(projections)

    await wait_for(seen_at_the_end, timeout_s=60)
    workers = process.children()
    started += workers
    assert len(workers) == 3
    process.send_signal(number)
    await asyncio.to_thread(process.wait, 60)
    if number == signal.SIGINT:
        assert not [worker for worker in workers if _runs(worker)]
    await wait_for(lambda: not [worker for worker in workers if _runs(worker)], timeout_s=60)

    end = date(2013, 1, 1) + timedelta(days)
    flights = read_flights(end)
    total = len(steps_of(flights, end))
    recorded = await pool.fetchval("SELECT count(*) FROM events")
    assert 0 < recorded < total, "it was not stopped in mid-append; give it more days"
    assert await demo.run(days), demo.said
    assert f"{total - recorded:,} new events" in demo.said


async def test_connections_cut_again_and_again(demo: Demo, postgres: str, pool: asyncpg.Pool) -> None:
    """Postgres ends every connection of the demo and of its workers; all of them connect anew and go on, each by itself."""
    server = await asyncpg.connect(postgres)
    name = await pool.fetchval("SELECT current_database()")
    try:
        running = asyncio.create_task(demo.run(days=10))
        for share in (0.1, 0.3, 0.5):

            async def come_far_enough(share: float = share) -> bool:
                # Each look needs a new connection: the pool's are cut too.
                connection = await asyncpg.connect(database=name, dsn=postgres)
                try:
                    position = await connection.fetchval("SELECT coalesce(max(global_position), 0) FROM events")
                finally:
                    await connection.close()
                return bool(position > share * 20_000) or running.done()

            await wait_for(come_far_enough, timeout_s=60)
            await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        assert await running, demo.said
    finally:
        await server.close()


async def test_a_log_of_others_is_left_alone(demo: Demo, store: PostgresEventStore) -> None:
    await store.append("Order-1", "Order", [placed()], expected_version=0)
    with pytest.raises(IntegrityError, match="a database of its own"):
        await demo.run(days=1)
    assert await store.last_position() == 1


def test_the_year() -> None:
    """All rows, and what they say of themselves; January is the beginning of the year."""
    end, february = date(2014, 1, 1), date(2013, 2, 1)
    flights = read_flights(end)
    steps = steps_of(flights, end)
    assert len(flights) == len({flight.key for flight in flights}) == 336_776
    assert Counter(step.event_type for step in steps) == {
        "FlightScheduled": 336_776,
        "FlightDeparted": 328_521,
        "FlightArrived": 328_063,
        "FlightCancelled": 8_255,
    }
    assert all(before.at <= after.at for before, after in pairwise(steps))
    january = [flight for flight in flights if flight.day < february]
    assert january == flights[: len(january)] == read_flights(february)
    beginning = steps_of(january, february)
    assert beginning == steps[: len(beginning)]
    for flight in flights:
        if flight.departed_at is not None and flight.arrived_at is not None:
            minutes = (flight.arrived_at - flight.departed_at).total_seconds() / 60
            assert (flight.air_minutes or 0) <= minutes <= (flight.air_minutes or 24 * 60) + 240, flight
