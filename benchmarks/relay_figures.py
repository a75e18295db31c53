"""The figures of the relay's benchmark, and what each is held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from benchmarks.bench import Figure, shown
from benchmarks.relay_drain import AT_LEAST_ONCE, ONCE, TWO_PROCESSES, Cost
from benchmarks.relay_latency import Latency

NAIVE = "naive relay, batches of 100"
PUMP = "bare pump, records in memory"
WARM = "Debezium, warm, best of three drains"
SAME_HEADERS = "Debezium, warm, with our headers"
COLD = "Debezium, first drain of its JVM"
PROMPT = "Debezium, poll 1 ms"
AS_DRAINED = "Debezium, settings of its drain"


def _rate(title: str, beside: str, target: float | None = None) -> Figure:
    return Figure(f"drain, {title}", "events/s", beside, target=target)


def _delay(title: str, beside: str, limit: float | None = None) -> Figure:
    return Figure(f"append → consumer, {title}", "ms", beside, less_is_better=True, limit=limit)


@dataclass
class RelayFigures:
    """Everything that is measured, over the runs. `costs` are by side."""

    warm: Figure = field(default_factory=lambda: _rate(ONCE.title, WARM, 2))
    same_headers: Figure = field(default_factory=lambda: _rate(ONCE.title, SAME_HEADERS))
    cold: Figure = field(default_factory=lambda: _rate(ONCE.title, COLD))
    pump: Figure = field(default_factory=lambda: _rate(ONCE.title, PUMP, 0.5))
    naive: Figure = field(default_factory=lambda: _rate(ONCE.title, NAIVE, 5))
    two_processes: Figure = field(default_factory=lambda: _rate(TWO_PROCESSES.title, WARM))
    plain: Figure = field(default_factory=lambda: _rate(AT_LEAST_ONCE.title, WARM))
    p50: Figure = field(default_factory=lambda: _delay("p50, exactly once", PROMPT, 8))
    p99: Figure = field(default_factory=lambda: _delay("p99, exactly once", PROMPT, 20))
    drain_p50: Figure = field(default_factory=lambda: _delay("p50, exactly once", AS_DRAINED))
    drain_p99: Figure = field(default_factory=lambda: _delay("p99, exactly once", AS_DRAINED))
    plain_p50: Figure = field(default_factory=lambda: _delay("p50, without transactions", PROMPT, 4))
    plain_p99: Figure = field(default_factory=lambda: _delay("p99, without transactions", PROMPT))
    costs: dict[str, list[Cost]] = field(default_factory=dict)

    def all(self) -> list[Figure]:
        return [value for value in vars(self).values() if isinstance(value, Figure)]

    def cost_table(self) -> list[str]:
        """Medians by side, in the order of their measurement."""
        columns = ("events/s", "CPU s", "peak MB", "Postgres: CPU s", "broker: CPU s")
        rows = []
        for side, costs in self.costs.items():
            medians = [shown(median(column)) for column in zip(*costs, strict=True)]
            rows.append(f"| {side} | {' | '.join(medians)} |")
        return [f"| drain, by million events | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}", *rows]

    def add_drains(self, drains: dict[str, Cost]) -> None:
        for side, cost in drains.items():
            self.costs.setdefault(side, []).append(cost)
        for figure, ours, rival in (
            (self.warm, ONCE.side, WARM),
            (self.same_headers, ONCE.side, SAME_HEADERS),
            (self.cold, ONCE.side, COLD),
            (self.pump, ONCE.side, PUMP),
            (self.naive, ONCE.side, NAIVE),
            (self.two_processes, TWO_PROCESSES.side, WARM),
            (self.plain, AT_LEAST_ONCE.side, WARM),
        ):
            figure.ours.append(drains[ours].rate)
            figure.rival.append(drains[rival].rate)

    def add_latencies(self, latencies: dict[str, Latency]) -> None:
        for p50, p99, ours, rival in (
            (self.p50, self.p99, ONCE.side, PROMPT),
            (self.drain_p50, self.drain_p99, ONCE.side, AS_DRAINED),
            (self.plain_p50, self.plain_p99, AT_LEAST_ONCE.side, PROMPT),
        ):
            if ours in latencies:
                p50.ours.append(latencies[ours].p50)
                p99.ours.append(latencies[ours].p99)
                p50.rival.append(latencies[rival].p50)
                p99.rival.append(latencies[rival].p99)
