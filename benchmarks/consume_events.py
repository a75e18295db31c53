"""The events of the consumers' benchmark: about 400 bytes of framed Avro, ten to a stream, published by our own relay."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing

import asyncpg
from confluent_kafka import Consumer, TopicPartition

from benchmarks.bench import reached
from benchmarks.processes import command
from benchmarks.relay_events import notes
from benchmarks.topics import PARTITIONS, create_topic
from eventspine import Event, EventType, PostgresEventStore
from eventspine.local import Endpoints
from eventspine.schemas.reader import compile_reader

CATEGORY = "Account"
PER_STREAM = 10

CHARGED = EventType.from_schema(
    {
        "type": "record",
        "name": "Charged",
        "fields": [
            {"name": "charge", "type": "string"},
            {"name": "account", "type": "string"},
            {"name": "number", "type": "long"},
            {"name": "cents", "type": "long"},
            {"name": "sent_ns", "type": "long"},
            {"name": "note", "type": "string"},
        ],
    }
)
_NOTES = notes(358)


def account(number: int, accounts: int) -> str:
    """Whose charge it is: all accounts in turn, in no order that an index would like."""
    return f"a-{number * 7919 % accounts:06d}"


def is_poison(of_account: str) -> bool:
    """One account in a hundred."""
    return of_account.endswith("07")


def event(number: int, accounts: int) -> Event:
    """Charge `number`, 0, 1, …, that is appended now."""
    return Event(
        event_type="Charged",
        data={
            "charge": f"c-{number:012d}",
            "account": account(number, accounts),
            "number": number,
            "cents": number % 1000,
            "sent_ns": time.time_ns(),
            "note": _NOTES[number % len(_NOTES)],
        },
    )


async def open_store(pool: asyncpg.Pool) -> PostgresEventStore:
    store = PostgresEventStore(pool)
    await store.register([CHARGED])
    return store


async def fill(store: PostgresEventStore, events: int) -> None:
    """Append events as fast as it goes, `PER_STREAM` to a stream."""
    accounts = events // PER_STREAM
    numbers = iter(range(events))

    async def work() -> None:
        for number in numbers:
            stream = f"{CATEGORY}-{account(number, accounts)}"
            await store.append(stream, CATEGORY, [event(number, accounts)], expected_version=number // accounts)

    await asyncio.gather(*(work() for _ in range(512)))


async def publish(dsn: str, endpoints: Endpoints, prefix: str, events: int) -> str:
    """Publish the log by our relay, and return the topic."""
    create_topic(endpoints.kafka_bootstrap, topic := f"{prefix}{CATEGORY}")
    async with command(dsn, endpoints, prefix, ["relay", "run"]) as relay:
        await reached(relay.position, lambda position: position >= events, limit_s=600)
    return topic


def last_numbers(bootstrap: str, topic: str) -> list[int]:
    """Return the number of each partition's last event: who has applied those has applied all."""
    settings = {"bootstrap.servers": bootstrap, "group.id": "bench", "isolation.level": "read_committed"}
    read = compile_reader(CHARGED.parsed, offset=5)
    assert read is not None
    numbers = []
    with closing(Consumer(settings | {"enable.auto.commit": False, "enable.partition.eof": True})) as consumer:
        for partition in range(PARTITIONS):
            end = consumer.get_watermark_offsets(TopicPartition(topic, partition), 10)[1]
            consumer.assign([TopicPartition(topic, partition, max(0, end - 50))])  # marks of transactions are behind it
            last = b""
            while (message := consumer.poll(30)) is not None and message.error() is None:
                last = message.value() or b""
            numbers.append(int(read(last)["number"]))
    return numbers
