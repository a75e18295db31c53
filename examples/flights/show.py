"""What the demo shows at its end: tables in the terminal, a plot in the output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
from rich.console import Console
from rich.table import Table as ScreenTable

from .projections import ON_TIME_MINUTES

__all__ = ["plot", "show_tables"]

AIRPORTS = {"EWR": "Newark", "JFK": "Kennedy", "LGA": "LaGuardia"}
_COLOURS = {"EWR": "#0072B2", "JFK": "#D55E00", "LGA": "#009E73"}  # told apart by colour-blind readers too
_BOARD = """
SELECT airport, sum(scheduled)::bigint AS scheduled, sum(departed)::bigint AS departed, sum(cancelled)::bigint AS cancelled,
       sum(on_time)::float8 / sum(departed) AS on_time, sum(delay_minutes)::float8 / sum(departed) AS delay
  FROM delay_board GROUP BY airport ORDER BY airport"""
_BUSIEST = "SELECT * FROM aircraft_utilisation WHERE arrivals IS NOT NULL ORDER BY air_minutes DESC LIMIT 5"
_BY_HOUR = """
SELECT airport, hour, sum(delay_minutes)::float8 / sum(departed) AS delay,
       100 * coalesce(sum(cancelled), 0)::float8 / sum(scheduled) AS cancelled
  FROM delay_board GROUP BY airport, hour HAVING sum(departed) >= 30 ORDER BY airport, hour"""


async def show_tables(pool: asyncpg.Pool, console: Console) -> None:
    title = f"Departures (read model delay_board); on time: at most {ON_TIME_MINUTES} minutes late"
    board = ScreenTable("airport", title=title, title_justify="left")
    for column in ("scheduled", "departed", "cancelled", "on time", "mean delay"):
        board.add_column(column, justify="right")
    for row in await pool.fetch(_BOARD):
        name = f"{row['airport']} {AIRPORTS.get(row['airport'], '')}"
        numbers = [f"{row[column] or 0:,}" for column in ("scheduled", "departed", "cancelled")]
        board.add_row(name, *numbers, f"{row['on_time']:.1%}", f"{row['delay']:.1f} min")
    console.print(board)

    busiest = ScreenTable("aircraft", title="Most hours in the air (read model aircraft_utilisation)", title_justify="left")
    for column in ("flights", "hours", "miles", "last seen at"):
        busiest.add_column(column, justify="right")
    for row in await pool.fetch(_BUSIEST):
        numbers = [f"{row['arrivals']:,}", f"{row['air_minutes'] / 60:,.0f}", f"{row['miles']:,}"]
        busiest.add_row(row["tail_number"], *numbers, f"{row['last_airport']}, {row['last_seen']:%d %b %H:%M} UTC")
    console.print(busiest)


async def plot(pool: asyncpg.Pool, output: Path, period: str) -> list[Path]:
    """Draw the delay board by hour, as PNG and SVG."""
    rows = await pool.fetch(_BY_HOUR)
    return _draw([dict(row) for row in rows], output, period)


def _draw(rows: list[dict[str, Any]], output: Path, period: str) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (delays, cancellations) = pyplot.subplots(2, 1, figsize=(9, 7), sharex=True, height_ratios=[2, 1])
    for airport, name in AIRPORTS.items():
        mine = [row for row in rows if row["airport"] == airport]
        hours = [row["hour"] for row in mine]
        style = {"color": _COLOURS[airport], "label": name, "marker": "o", "markersize": 4}
        delays.plot(hours, [row["delay"] for row in mine], **style)
        cancellations.plot(hours, [row["cancelled"] for row in mine], **style)
    delays.set_title(f"Delays and cancellations by hour: departures from New York, {period}", loc="left")
    delays.set_ylabel("mean departure delay (minutes;\nearly departures count below 0)")
    delays.axhline(0, color="#999999", linewidth=0.8)
    delays.legend(frameon=False)
    cancellations.set_ylabel("cancelled (% of scheduled)")
    cancellations.set_xlabel("hour of scheduled departure (New York time); hours with fewer than 30 departures are left out")
    for axes in (delays, cancellations):
        axes.set_xticks(range(5, 24, 2))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5")
        axes.set_axisbelow(True)
    cancellations.set_ylim(bottom=0)
    figure.tight_layout()
    output.mkdir(parents=True, exist_ok=True)
    files = [output / f"delays.{ending}" for ending in ("png", "svg")]
    for file in files:
        figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return files
