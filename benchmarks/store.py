"""The store's figures: appends, other stores, and a log of millions."""

from __future__ import annotations

from eventsourcing.postgres import PostgresAggregateRecorder, PostgresApplicationRecorder

from benchmarks.appends import AppendFigures, measure_appends, warm_server
from benchmarks.bench import Figure, say
from benchmarks.growth import GrowthFigures, measure_growth
from benchmarks.rivals import emmett_rate, eventsourcing_rate, eventsourcing_title, install_emmett

_AHEAD = 10


async def measure_store(postgres_dsn: str, runs: int, scale: float) -> list[Figure]:
    appends, growth = AppendFigures(), GrowthFigures()
    recorders = {
        PostgresApplicationRecorder: int(1_000 * scale),  # it locks its table for each append
        PostgresAggregateRecorder: int(4_000 * scale),
    }
    beside = {
        recorder: Figure("append, 512 tasks", "events/s", eventsourcing_title(recorder), target=_AHEAD) for recorder in recorders
    }
    emmett = install_emmett()
    beside_emmett = Figure("append, 512 tasks", "events/s", f"{emmett or 'Emmett'}, 32 tasks", target=_AHEAD)
    figures = [*appends.all(), *beside.values(), beside_emmett, *growth.all()]
    await warm_server(postgres_dsn, int(150_000 * scale))
    for run in range(1, runs + 1):
        say(f"store, run {run} of {runs}")
        await measure_appends(postgres_dsn, appends, scale)
        ours = appends.naive_512.ours[-1]
        for recorder, events in recorders.items():
            beside[recorder].ours.append(ours)
            beside[recorder].rival.append(await eventsourcing_rate(postgres_dsn, recorder, events))
        if emmett is not None:
            beside_emmett.ours.append(ours)
            beside_emmett.rival.append(await emmett_rate(postgres_dsn, int(6_000 * scale)))
        for figure in figures[: -len(growth.all())]:
            say(figure.row_with_target())
    await measure_growth(postgres_dsn, growth, runs, scale)
    for figure in growth.all():
        say(figure.row_with_target())
    return figures
