"""Two read models of the flights. Each runs in processes of its own: `eventspine consume …`."""

from __future__ import annotations

from typing import Any

from eventspine import Event, Projection, Table, TableWriter, on

__all__ = ["ON_TIME_MINUTES", "AircraftUtilisation", "DelayBoard"]

ON_TIME_MINUTES = 15


class DelayBoard(Projection):
    """How each airport of New York did, by day and hour of the scheduled departure."""

    categories = ("Aircraft",)
    board = Table(
        "delay_board",
        columns={
            "airport": "text",
            "day": "date",
            "hour": "integer",
            "scheduled": "bigint",
            "departed": "bigint",
            "cancelled": "bigint",
            "on_time": "bigint",
            "delay_minutes": "bigint",
        },
        key=("airport", "day", "hour"),
    )

    @on("FlightScheduled")
    def scheduled(self, event: Event, board: TableWriter) -> None:
        board.increment(**_place(event), scheduled=1)

    @on("FlightDeparted")
    def departed(self, event: Event, board: TableWriter) -> None:
        delay = event.data["delay_minutes"]
        board.increment(**_place(event), departed=1, delay_minutes=delay, on_time=int(delay <= ON_TIME_MINUTES))

    @on("FlightCancelled")
    def cancelled(self, event: Event, board: TableWriter) -> None:
        board.increment(**_place(event), cancelled=1)


class AircraftUtilisation(Projection):
    """What each aircraft did, and where it was seen last."""

    categories = ("Aircraft",)
    aircraft = Table(
        "aircraft_utilisation",
        columns={
            "tail_number": "text",
            "departures": "bigint",
            "arrivals": "bigint",
            "air_minutes": "bigint",
            "miles": "bigint",
            "last_airport": "text",
            "last_seen": "timestamptz",
        },
        key="tail_number",
    )

    @on("FlightDeparted")
    def departed(self, event: Event, aircraft: TableWriter) -> None:
        data, tail_number = event.data, event.stream_id.partition("-")[2]
        aircraft.increment(tail_number=tail_number, departures=1)
        aircraft.upsert(tail_number=tail_number, last_airport=data["origin"], last_seen=data["departed_at"])

    @on("FlightArrived")
    def arrived(self, event: Event, aircraft: TableWriter) -> None:
        data, tail_number = event.data, event.stream_id.partition("-")[2]
        # The data has no time in the air for a flight that was diverted.
        aircraft.increment(tail_number=tail_number, arrivals=1, air_minutes=data["air_minutes"] or 0, miles=data["miles"])
        aircraft.upsert(tail_number=tail_number, last_airport=data["dest"], last_seen=data["arrived_at"])


def _place(event: Event) -> dict[str, Any]:
    return {"airport": event.data["origin"], "day": event.data["day"], "hour": event.data["hour"]}
