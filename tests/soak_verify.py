"""A topic of a million records with four mistakes in it: verify names these and nothing else, in one pass and bounded memory.

`scripts/soak verify [--events N]` runs it: on a real Postgres and a real Kafka of its own, it imports events, relays them, copies
the topic record by record with the mistakes planted, and compares the copy in a process of its own, whose memory is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from eventspine import Event, PostgresEventStore, Relay, migrate
from eventspine.local import LocalStack
from eventspine.relay.router import Router
from eventspine.relay.state import RelayState
from eventspine.relay.topics import Topics, TopicSettings
from eventspine.relay.verify import verify_topics
from eventspine.store.postgres.bulk import import_events
from tests.event_types import EVENT_TYPES, paid, placed

PREFIX = "soak."
TOPIC, COPY = f"{PREFIX}Order", "copy.Order"
PARTITIONS = 6


def events(count: int) -> Iterator[Event]:
    for number in range(count):
        event = placed(f"c{number % 1000}", number) if number % 3 else paid(number, correlation_id=f"c{number}")
        yield Event(event_type=event.event_type, data=event.data, metadata=event.metadata, stream_id=f"Order-{number % 20_000}")


async def publish(dsn: str, kafka: str, count: int) -> None:
    connection = await asyncpg.connect(dsn)
    await migrate(connection)
    await connection.close()
    async with asyncpg.create_pool(dsn, min_size=1, max_size=6) as pool:
        store = PostgresEventStore(pool)
        await store.register(EVENT_TYPES)
        started = time.monotonic()
        await import_events(pool, "soak", events(count), batch_events=5000)
        say(f"imported {count:,} events", started, count)
        relay = Relay(store.log, kafka, topic_prefix=PREFIX, topics=TopicSettings(PARTITIONS))
        started = time.monotonic()
        running = asyncio.create_task(relay.run())
        while relay.position < count:
            assert not running.done(), running.exception()
            await asyncio.sleep(0.2)
        say("relayed", started, count)
        relay.stop()
        await running


def plant(kafka: str, count: int) -> list[tuple[str, int]]:
    """Copy the topic with four mistakes; return them as kind and position."""
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(COPY, PARTITIONS, 1)])[COPY].result(20)
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "copy", "enable.auto.commit": False, "enable.partition.eof": True}
    )
    consumer.assign([TopicPartition(TOPIC, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True, "linger.ms": 20, "compression.type": "lz4"})
    planted: list[tuple[str, int]] = []
    seen = [0] * PARTITIONS
    held: dict[str, Any] = {}
    share = count // PARTITIONS
    drop, duplicate, move, alter = share // 4, share // 3, share // 2, 2 * share // 3
    started, left = time.monotonic(), PARTITIONS

    def copy(message: Any, value: bytes | None = None) -> None:
        while True:
            try:
                producer.produce(COPY, value or message.value(), message.key(), message.partition(), headers=message.headers())
                return
            except BufferError:
                producer.poll(0.1)

    while left:
        for message in consumer.consume(10_000, 0.5):
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                left -= 1
                continue
            partition, position = message.partition() or 0, int(dict(message.headers() or [])["ce_globalposition"] or 0)
            seen[partition] += 1
            here = (partition, seen[partition])
            if here == (0, drop):
                planted.append(("missing", position))
                continue
            if here == (1, duplicate):
                planted.append(("duplicated", position))
                copy(message)
            if here == (2, move):
                planted.append(("reordered", position))
                held["moved"] = message
                continue
            if here == (2, move + share // 10):
                copy(held.pop("moved"))
            if here == (3, alter):
                planted.append(("altered", position))
                value = bytearray(message.value() or b"")
                value[-1] ^= 1
                copy(message, bytes(value))
                continue
            copy(message)
    consumer.close()
    assert producer.flush(60) == 0
    say("copied with four mistakes", started, count)
    return planted


async def compare(dsn: str, kafka: str, topic: str) -> dict[str, Any]:
    gc.freeze()  # as the command does
    gc.set_threshold(200_000, 50, 100)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool:
        log, state = PostgresEventStore(pool).log, RelayState(pool, f"{PREFIX}relay")
        report = await verify_topics(
            log,
            kafka,
            router=Router(log, prefix=PREFIX, source="/eventspine"),
            state=state,
            topics=Topics(kafka, state, TopicSettings(PARTITIONS)),
            prefix=PREFIX,
            name="relay",
            copies={TOPIC: topic},
        )
    return {
        "findings": [list(each) for each in report.findings],
        "faults": report.faults,
        "records": report.records,
        "seconds": report.seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def say(what: str, started: float, count: int) -> None:
    seconds = time.monotonic() - started
    print(f"{what} in {seconds:.1f} s, {count / seconds:,.0f}/s", flush=True)


def in_a_process(dsn: str, kafka: str, topic: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.soak_verify", "--compare", dsn, kafka, topic]
    told: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rate = told["records"] / told["seconds"]
    print(f"{topic}: {told['records']:,} records in {told['seconds']:.1f} s, {rate:,.0f}/s, peak {told['peak_mib']:.0f} MiB RSS")
    for finding in told["findings"]:
        print("   ", *finding)
    return told


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--compare", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compare:
        print(json.dumps(asyncio.run(compare(*arguments.compare))))
        return 0
    with tempfile.TemporaryDirectory(prefix="soak-verify-") as folder:
        stack = LocalStack(Path(folder))
        try:
            endpoints = stack.up(on_progress=lambda line: print(line, flush=True))
            dsn, kafka = endpoints.postgres_dsn, endpoints.kafka_bootstrap
            asyncio.run(publish(dsn, kafka, arguments.events))
            planted = plant(kafka, arguments.events)
            good, bad = in_a_process(dsn, kafka, TOPIC), in_a_process(dsn, kafka, COPY)
        finally:
            stack.down()
    named = sorted((finding[0], finding[4]) for finding in bad["findings"])
    right = good["faults"] == 0 and good["findings"] == [] and named == sorted(planted)
    print("as planted, and nothing else" if right else f"WRONG: planted {sorted(planted)}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
