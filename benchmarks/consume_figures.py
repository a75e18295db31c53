"""The figures of the consumers' benchmark, and what each is held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from benchmarks.bench import Figure, shown
from benchmarks.consume_latency import Delays
from benchmarks.consume_sides import LOG, ONE, TWO
from benchmarks.consume_watch import ACCOUNTS, CHARGES, STATEMENTS, Shape
from benchmarks.relay_drain import Cost

NAIVE = "naive loop on aiokafka"
SINGLE = "FastStream, single messages"
BATCHES = "FastStream, batches"
QUIX = "Quix Streams, its PostgreSQL sink"
JDBC = "JDBC sink, warm, best of two"
REBUILD = "eventspine, rebuild by 2 processes"
BY_HANDLER = "eventspine, 1% of streams refused by the handler"
BY_POSTGRES = "eventspine, 1% of streams refused by Postgres"

_PAIRS: list[tuple[Shape, str, str, float | None]] = [  # a side, the one beside it, and the target for the first ÷ the second
    (ACCOUNTS, ONE.side, JDBC, 1.3),
    (ACCOUNTS, TWO.side, JDBC, 1.3),
    (ACCOUNTS, ONE.side, NAIVE, 20),
    (ACCOUNTS, ONE.side, SINGLE, 10),
    (ACCOUNTS, ONE.side, BATCHES, 10),
    (ACCOUNTS, ONE.side, QUIX, 10),
    (ACCOUNTS, TWO.side, ONE.side, 1.1),
    (ACCOUNTS, LOG.side, ONE.side, None),
    (CHARGES, ONE.side, JDBC, 1.7),
    (CHARGES, TWO.side, JDBC, 1.7),
    (CHARGES, ONE.side, NAIVE, 20),
    (CHARGES, ONE.side, SINGLE, 10),
    (CHARGES, ONE.side, BATCHES, 10),
    (CHARGES, ONE.side, QUIX, 10),
    (CHARGES, TWO.side, ONE.side, 1.1),
    (CHARGES, LOG.side, ONE.side, None),
    (CHARGES, REBUILD, ONE.side, 3),
    (STATEMENTS, ONE.side, NAIVE, 20),
    (STATEMENTS, TWO.side, ONE.side, 1.1),
    (CHARGES, BY_HANDLER, ONE.side, 0.9),
    (CHARGES, BY_POSTGRES, ONE.side, 0.9),
]


@dataclass
class ConsumeFigures:
    """Everything that is measured, over the runs. `costs` are by read model and side."""

    costs: dict[tuple[Shape, str], list[Cost]] = field(default_factory=dict)
    delays: list[Delays] = field(default_factory=list)

    def add(self, costs: dict[tuple[Shape, str], Cost], delays: Delays) -> None:
        for key, cost in costs.items():
            self.costs.setdefault(key, []).append(cost)
        self.delays.append(delays)

    def all(self) -> list[Figure]:
        figures = []
        for shape, ours, beside, target in _PAIRS:
            title = f"{shape.title}: {ours.removeprefix('eventspine, ')}"
            figure = Figure(title, "events/s", beside.removeprefix("eventspine, "), target=target)
            figure.ours += [cost.rate for cost in self.costs.get((shape, ours), [])]
            figure.rival += [cost.rate for cost in self.costs.get((shape, beside), [])]
            figures.append(figure)
        for title, limit, ours, beside in (("p50", 20, "p50", "append_p50"), ("p99", 60, "p99", "append_p99")):
            figure = Figure(f"append → row, {title}", "ms", "append acknowledged", less_is_better=True, limit=limit)
            figure.ours += [getattr(each, ours) for each in self.delays]
            figure.rival += [getattr(each, beside) for each in self.delays]
            figures.append(figure)
        return figures

    def cost_table(self) -> list[str]:
        """Medians by read model and side, in the order of their measurement."""
        columns = ("events/s", "CPU s", "peak MB", "Postgres: CPU s", "broker: CPU s")
        rows = []
        for (shape, side), costs in self.costs.items():
            medians = [shown(median(column)) for column in zip(*costs, strict=True)]
            rows.append(f"| {shape.title}: {side} | {' | '.join(medians)} |")
        measuring = median(each.measuring for each in self.delays)
        return [
            f"| by million events | {' | '.join(columns)} |",
            f"| --- |{' ---: |' * len(columns)}",
            *rows,
            "",
            f"The trigger that tells of a row's commit adds {shown(measuring)} ms to a transaction of ten rows.",
        ]
