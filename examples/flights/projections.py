"""Two read models of the flights. Each runs in processes of its own: `eventspine consume …`."""

from __future__ import annotations

from ...consumers import Projection, Table, TableWriter, on
from ...schemas import Event

__all__ = ["AircraftUtilisation", "DelayBoard"]

ON_TIME_MINUTES = 15


class DelayBoard(Projection):
    """How each airport of New York did, by the hour of the scheduled departure."""

    categories = ("Aircraft",)
    board = Table(
        "delay_board",
        columns={
            "airport": "text",
            "hour": "integer",
            "scheduled": "bigint",
            "departed": "bigint",
            "cancelled": "bigint",
            "on_time": "bigint",
            "delay_minutes": "bigint",
        },
        key=("airport", "hour"),
    )

    @on("FlightScheduled")
    def scheduled(self, event: Event, board: TableWriter) -> None:
        board.increment(airport=event.data["origin"], hour=event.data["local_hour"], scheduled=1)

    @on("FlightDeparted")
    def departed(self, event: Event, board: TableWriter) -> None:
        delay = event.data["delay_minutes"]
        on_time = int(delay <= ON_TIME_MINUTES)
        place = {"airport": event.data["origin"], "hour": event.data["local_hour"]}
        board.increment(**place, departed=1, delay_minutes=delay, on_time=on_time)

    @on("FlightCancelled")
    def cancelled(self, event: Event, board: TableWriter) -> None:
        board.increment(airport=event.data["origin"], hour=event.data["local_hour"], cancelled=1)


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
        tail_number = event.stream_id.partition("-")[2]
        aircraft.increment(tail_number=tail_number, departures=1)
        aircraft.upsert(tail_number=tail_number, last_airport=event.data["origin"], last_seen=event.timestamp)

    @on("FlightArrived")
    def arrived(self, event: Event, aircraft: TableWriter) -> None:
        tail_number = event.stream_id.partition("-")[2]
        miles, minutes = event.data["miles"], event.data["air_minutes"] or 0
        aircraft.increment(tail_number=tail_number, arrivals=1, air_minutes=minutes, miles=miles)
        aircraft.upsert(tail_number=tail_number, last_airport=event.data["dest"], last_seen=event.timestamp)
