"""Metrics as Prometheus scrapes them, from processes as users run them: they say what the database says."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import asyncpg
import httpx
from prometheus_client.parser import text_string_to_metric_families

from eventspine import PostgresEventStore
from eventspine.metrics import METRICS
from tests.event_types import paid, placed
from tests.integration.test_projection_sources import append, right
from tests.integration.test_relay_and_consumer import relaying
from tests.processes import processes
from tests.waiting import wait_for

_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

Scraped = dict[tuple[str, frozenset[str]], float]


def free_ports() -> int:
    """Return the first of two free ports."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


async def scrape(*ports: int) -> Scraped:
    """Return the sum of the samples of some processes by name and values of labels; {} while one does not answer."""
    samples: Scraped = {}
    async with httpx.AsyncClient(timeout=10, verify=_NO_CERTIFICATES) as client:
        for port in ports:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}/metrics")
            except httpx.TransportError:
                return {}
            assert answer.headers["content-type"].startswith("text/plain")
            for family in text_string_to_metric_families(answer.text):
                for sample in family.samples:
                    key = sample.name, frozenset(sample.labels.values())
                    samples[key] = samples.get(key, 0) + sample.value
    return samples


def value(samples: Scraped, name: str, *labels: str) -> float | None:
    return samples.get((name, frozenset(labels)))


def named(samples: Scraped, name: str) -> dict[frozenset[str], float]:
    return {labels: each for (sample, labels), each in samples.items() if sample == name}


async def scraped(*ports: int, until: Callable[[Scraped], object]) -> Scraped:
    return await wait_for(lambda: scrape(*ports), until, timeout_s=40, every_s=0.1)


async def test_of_processes_that_share_the_partitions_the_sum_is_what_the_database_says(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, database: str, tmp_path: Path
) -> None:
    port = free_ports()
    ports = port, port + 1
    async with processes(database, kafka, topic_prefix, tmp_path) as run, relaying(store, kafka, topic_prefix):
        await append(store, "a", 40)
        consumer = run.command(
            ["consume", "tests.projections:OrderTotals", "--processes", "2", "--metrics-port", str(port)], consume_batch_events=10
        )
        await right(pool)
        await pool.execute("ALTER TABLE order_totals ADD CONSTRAINT no_poison CHECK (customer_id <> 'poison')")
        await store.append("Order-p", "Order", [placed("poison"), paid(1)], 0)
        await append(store, "b", 20)
        total = "eventspine_projection_events_total"
        told = await scraped(
            *ports,
            until=lambda seen: (
                value(seen, total, "order_totals") == 122
                and (value(seen, "eventspine_projection_rebalances_total", "order_totals") or 0) >= 2
                and len(named(seen, "eventspine_projection_lag_seconds")) == 3
                and not any(named(seen, "eventspine_projection_lag_events").values())
            ),
        )
        assert await pool.fetchval("SELECT sum(events) FROM projection_offsets") == 122
        places = await pool.fetch("SELECT topic, partition, last_position FROM projection_offsets")
        assert named(told, "eventspine_projection_position") == {
            frozenset(("order_totals", row["topic"], str(row["partition"]))): row["last_position"] for row in places
        }
        assert set(named(told, "eventspine_projection_lag_seconds").values()) == {0.0}
        assert value(told, "eventspine_projection_parked_streams", "order_totals") == 1
        assert value(told, "eventspine_projection_state", "order_totals", "consuming") == 2
        assert value(told, "eventspine_projection_state", "order_totals", "paused") == 0
        batches = value(told, "eventspine_projection_batches_total", "order_totals")
        assert batches is not None
        assert batches >= 2
        assert value(told, "eventspine_projection_batch_events_count", "order_totals") == batches
        assert value(told, "eventspine_projection_batch_events_sum", "order_totals") == 122
        assert value(told, "eventspine_projection_batch_events_bucket", "order_totals", "+Inf") == batches
        for step in ("consume", "fold", "write"):
            count, seconds = (
                value(told, f"eventspine_projection_batch_seconds_{each}", "order_totals", step) for each in ("count", "sum")
            )
            assert count
            assert seconds
            assert 0 < seconds < 60 * count
        assert value(told, "eventspine_projection_retries_total", "order_totals") is not None
        _check_all_described(told, "eventspine_projection_")
        await consumer.stop()


async def test_lag_is_told_while_it_is_paused_and_from_the_log(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, database: str, tmp_path: Path
) -> None:
    port = free_ports()
    async with processes(database, kafka, topic_prefix, tmp_path) as run:
        await append(store, "a", 5)
        consumer = run.command(["consume", "tests.projections:OrderTotals", "--source", "log"], metrics_port=port)
        await right(pool)
        await pool.execute("INSERT INTO projections (projection, paused) VALUES ('order_totals', true)")
        await scraped(port, until=lambda seen: value(seen, "eventspine_projection_state", "order_totals", "paused") == 1)
        await append(store, "b", 5)
        told = await scraped(
            port, until=lambda seen: value(seen, "eventspine_projection_lag_events", "order_totals", "", "0") == 10
        )
        assert (value(told, "eventspine_projection_lag_seconds", "order_totals", "", "0") or 0) > 0
        assert value(told, "eventspine_projection_events_total", "order_totals") == 10
        second = run.command(["consume", "tests.projections:OrderTotals", "--source", "log", "--metrics-port", str(port)])
        assert await second.ended(60) == 2
        assert f"metrics_port {port} on 127.0.0.1: Address already in use" in second.said.replace("\n", " ")
        await consumer.stop()


async def test_of_a_relay(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, database: str, tmp_path: Path
) -> None:
    port, relay_id = free_ports(), f"{topic_prefix}relay"
    async with processes(database, kafka, topic_prefix, tmp_path) as run:
        await append(store, "a", 30)
        relay = run.command(["relay", "run", "--metrics-port", str(port)])
        told = await scraped(
            port,
            until=lambda seen: (
                value(seen, "eventspine_relay_published_total", relay_id) == 60
                and value(seen, "eventspine_relay_lag_events", relay_id, "0") == 0
                and value(seen, "eventspine_relay_parked_events", relay_id) == 0
            ),
        )
        assert value(told, "eventspine_relay_position", relay_id, "0") == 60
        assert value(told, "eventspine_relay_lag_seconds", relay_id, "0") == 0
        assert value(told, "eventspine_relay_shards", relay_id) == 1
        assert value(told, "eventspine_relay_state", relay_id, "publishing") == 1
        assert value(told, "eventspine_relay_state", f"{relay_id}.outbox", "idle") == 1
        _check_all_described(told, "eventspine_relay_")
        await pool.execute("UPDATE relays SET paused = 'a test'")
        await scraped(port, until=lambda seen: value(seen, "eventspine_relay_state", relay_id, "paused") == 1)
        await append(store, "b", 3)
        await scraped(port, until=lambda seen: value(seen, "eventspine_relay_lag_events", relay_id, "0") == 6)
        await relay.stop()


def _check_all_described(told: Scraped, prefix: str) -> None:
    """Every metric is described, and every one that is described is there."""
    names = {name for name, _ in told if name.startswith(prefix)}
    expected = set()
    for each in METRICS:
        if each.name.startswith(prefix):
            expected |= (
                {f"{each.name}_{part}" for part in ("bucket", "count", "sum")} if each.kind == "histogram" else {each.name}
            )
    assert names == expected
