"""Metrics of consumers and relays for Prometheus. Read when they are asked for; what asks a server is looked at now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .consumers import Consumer, LogConsumer
from .consumers.counters import Histogram
from .consumers.log_consumer import LOG
from .consumers.places import Partition
from .relay import OutboxRelay, Relay
from .relay.state import RelayState
from .schemas import EventspineError, SettingsError
from .schemas.kafka import KafkaAccess
from .staleness import Lag, LagReader
from .store.postgres.published import Published

__all__ = ["METRICS", "Described", "serving_consumer", "serving_relay"]

logger = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 10.0


class Described(NamedTuple):
    """A metric: its name as it is scraped, its kind, its labels, and what it tells."""

    name: str
    kind: str
    labels: tuple[str, ...]
    tells: str


_OF_PARTITION: Final = ("projection", "topic", "partition")
_OF_SHARD: Final = ("relay", "shard")

METRICS: Final = (
    Described("eventspine_projection_events_total", "counter", ("projection",), "events taken: applied, passed over, set aside"),
    Described("eventspine_projection_batches_total", "counter", ("projection",), "transactions of the read model"),
    Described("eventspine_projection_batch_events", "histogram", ("projection",), "events in a batch"),
    Described(
        "eventspine_projection_batch_seconds",
        "histogram",
        ("projection", "step"),
        "time of a batch by step: consume (waiting included), fold (decode and handlers), write (the transaction)",
    ),
    Described("eventspine_projection_lag_events", "gauge", _OF_PARTITION, "records that wait, with marks of transactions"),
    Described("eventspine_projection_lag_seconds", "gauge", _OF_PARTITION, "age of the first record that waits; 0 if none does"),
    Described("eventspine_projection_position", "gauge", _OF_PARTITION, "global position of the last event taken"),
    Described("eventspine_projection_parked_streams", "gauge", ("projection",), "streams that are set aside"),
    Described("eventspine_projection_rebalances_total", "counter", ("projection",), "times that partitions came or went"),
    Described(
        "eventspine_projection_retries_total", "counter", ("projection",), "times that it began anew: a server away, or fenced"
    ),
    Described(
        "eventspine_projection_state",
        "gauge",
        ("projection", "state"),
        "1 for the state that it is in: starting, consuming, paused, waiting, stopped",
    ),
    Described(
        "eventspine_relay_published_total", "counter", ("relay",), "records published; the outbox's relay has a label of its own"
    ),
    Described("eventspine_relay_shards", "gauge", ("relay",), "shards that this process publishes"),
    Described("eventspine_relay_position", "gauge", _OF_SHARD, "last position published or passed over"),
    Described("eventspine_relay_lag_events", "gauge", _OF_SHARD, "events of the log behind that"),
    Described("eventspine_relay_lag_seconds", "gauge", _OF_SHARD, "age of the first event that waits; 0 if none does"),
    Described("eventspine_relay_parked_events", "gauge", ("relay",), "events that could not be published, and those behind them"),
    Described(
        "eventspine_relay_state",
        "gauge",
        ("relay", "state"),
        "1 for the state that it is in: starting, standby, publishing, paused, waiting, stopped, idle (no outbox)",
    ),
)
_BY_NAME: Final = {each.name: each for each in METRICS}
_CONSUMER_STATES: Final = ("starting", "consuming", "paused", "waiting", "stopped")
_RELAY_STATES: Final = ("starting", "standby", "publishing", "paused", "waiting", "stopped", "idle")

Values = Iterable[tuple[tuple[object, ...], float]]


class _ConsumerMetrics(Collector):
    """Reads what a consumer counts, in the thread of the request. `lags` is exchanged as a whole."""

    def __init__(self, consumer: Consumer | LogConsumer, name: str) -> None:
        self.lags: dict[Partition, Lag] = {}
        self._consumer = consumer
        self._name = name

    def collect(self) -> Iterator[Metric]:
        consumer, name = self._consumer, self._name
        counters, places, lags = consumer.counters, dict(consumer.places), self.lags
        known = {each: lags[each] for each in places if each in lags}
        yield _values("eventspine_projection_events_total", [((name,), counters.events)])
        yield _values("eventspine_projection_batches_total", [((name,), counters.batches)])
        yield _histograms("eventspine_projection_batch_events", [((name,), counters.batch_events)])
        steps = [((name, step), histogram) for step, histogram in counters.seconds.items()]
        yield _histograms("eventspine_projection_batch_seconds", steps)
        yield _values("eventspine_projection_lag_events", [((name, *each), lag.events) for each, lag in known.items()])
        seconds = [((name, *each), lag.seconds) for each, lag in known.items() if lag.seconds is not None]
        yield _values("eventspine_projection_lag_seconds", seconds)
        positions = [((name, *each), place.last_position) for each, place in places.items()]
        yield _values("eventspine_projection_position", positions)
        yield _values("eventspine_projection_parked_streams", [((name,), consumer.parked_streams)])
        yield _values("eventspine_projection_rebalances_total", [((name,), counters.rebalances)])
        yield _values("eventspine_projection_retries_total", [((name,), counters.retries)])
        yield _values("eventspine_projection_state", _states(name, consumer.state, _CONSUMER_STATES))


class _RelayMetrics(Collector):
    """Reads what a relay counts, and the outbox's beside it. `lags` and `parked` are exchanged as a whole."""

    def __init__(self, relay: Relay, name: str, outbox: OutboxRelay) -> None:
        self.lags: dict[int, tuple[int, float]] = {}
        self.parked: int | None = None
        self._relay = relay
        self._name = name
        self._outbox = outbox

    def collect(self) -> Iterator[Metric]:
        name, outbox = self._name, f"{self._name}.outbox"
        shards, lags = dict(self._relay.shards), self.lags
        known = {number: lags[number] for number in shards if number in lags}
        published = [((name,), self._relay.published), ((outbox,), self._outbox.published)]
        yield _values("eventspine_relay_published_total", published)
        yield _values("eventspine_relay_shards", [((name,), len(shards))])
        yield _values("eventspine_relay_position", [((name, number), shard.position) for number, shard in shards.items()])
        yield _values("eventspine_relay_lag_events", [((name, number), lag[0]) for number, lag in known.items()])
        yield _values("eventspine_relay_lag_seconds", [((name, number), lag[1]) for number, lag in known.items()])
        yield _values("eventspine_relay_parked_events", [] if self.parked is None else [((name,), self.parked)])
        states = [*_states(name, self._relay.state, _RELAY_STATES), *_states(outbox, self._outbox.state, _RELAY_STATES)]
        yield _values("eventspine_relay_state", states)


@asynccontextmanager
async def serving_consumer(
    consumer: Consumer | LogConsumer, name: str, published: Published, kafka: str | KafkaAccess, *, host: str, port: int
) -> AsyncIterator[None]:
    """Serve a consumer's metrics over HTTP while the block runs. Lag is looked at every ten seconds.

    Raises:
        SettingsError: the address can't be listened on.
    """
    metrics = _ConsumerMetrics(consumer, name)
    reader = LagReader(kafka, topic_prefix=published.topic_prefix) if isinstance(consumer, Consumer) else None

    async def look() -> None:
        offsets = {each: place.next_offset for each, place in consumer.places.items()}
        if reader is not None and offsets:
            metrics.lags = await asyncio.to_thread(reader.read, offsets)
        elif LOG in offsets:
            metrics.lags = {LOG: Lag(*await published.lag_behind(offsets[LOG]))}

    def forget() -> None:
        metrics.lags = {}

    try:
        async with _serving(metrics, look, forget, host, port):
            yield
    finally:
        if reader is not None:
            await asyncio.to_thread(reader.close)


@asynccontextmanager
async def serving_relay(
    relay: Relay, state: RelayState, outbox: OutboxRelay, published: Published, *, host: str, port: int
) -> AsyncIterator[None]:
    """Serve a relay's metrics over HTTP while the block runs, as `serving_consumer` does.

    Raises:
        SettingsError: the address can't be listened on.
    """
    metrics = _RelayMetrics(relay, state.relay_id, outbox)

    async def look() -> None:
        positions = {number: shard.position for number, shard in relay.shards.items()}
        metrics.lags = {number: await published.lag_behind(position) for number, position in positions.items()}
        metrics.parked = (await state.look("")).parked

    def forget() -> None:
        metrics.lags, metrics.parked = {}, None

    async with _serving(metrics, look, forget, host, port):
        yield


@asynccontextmanager
async def _serving(
    collector: Collector, look: Callable[[], Awaitable[None]], forget: Callable[[], None], host: str, port: int
) -> AsyncIterator[None]:
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise SettingsError(f"metrics_port {port} on {host}: {error.strerror}; choose another port, or 0 for none") from error
    looking = asyncio.create_task(_look_now_and_then(look, forget))
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()


async def _look_now_and_then(look: Callable[[], Awaitable[None]], forget: Callable[[], None]) -> None:
    """Look until cancelled; the first times soon. What can't be known is left out: absence says more than an old number."""
    wait_s = 0.5
    while True:
        try:
            await look()
        except EventspineError as error:
            logger.info("lag is not known: %s", error)
            forget()
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LOOK_EVERY_S)


def _values(name: str, values: Values) -> Metric:
    described = _BY_NAME[name]
    family = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
    metric = family(name.removesuffix("_total"), described.tells, labels=described.labels)
    for labels, value in values:
        metric.add_metric(list(map(str, labels)), value)
    return metric


def _histograms(name: str, values: Iterable[tuple[tuple[str, ...], Histogram]]) -> Metric:
    described = _BY_NAME[name]
    metric = HistogramMetricFamily(name, described.tells, labels=described.labels)
    for labels, histogram in values:
        counted, buckets = 0, []
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), list(histogram.counts), strict=True):
            counted += count
            buckets.append((bound, float(counted)))
        metric.add_metric(list(labels), buckets, sum_value=histogram.total)
    return metric


def _states(name: str, state: str, states: Iterable[str]) -> Values:
    return [((name, each), float(each == state)) for each in states]
