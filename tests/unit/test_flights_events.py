"""The flights demo's events: what each row becomes, their order, what a log still lacks, and a proof that finds faults."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from itertools import pairwise
from uuid import UUID, uuid4

import pytest

from eventspine import IntegrityError, load_event_types
from eventspine.examples.flights.data import (
    Flight,
    Step,
    cut_of,
    event_id_of,
    event_of,
    flight_of,
    read_flights,
    steps_of,
    still_missing,
)
from eventspine.examples.flights.proof import LogCheck, TopicCheck, fold_aircraft, fold_board
from eventspine.schemas import Codec, PinnedType

END = date(2013, 1, 14)  # nine flights wait past this midnight


@pytest.fixture(scope="module")
def flights() -> list[Flight]:
    return read_flights(END)


@pytest.fixture(scope="module")
def steps(flights: list[Flight]) -> list[Step]:
    return steps_of(flights, END)


def row(**changes: str) -> dict[str, str]:
    """A row of the CSV: JFK to Los Angeles, 20:00 to 23:10, on time."""
    day = {"year": "2013", "month": "1", "day": "5", "hour": "20", "minute": "0", "time_hour": "2013-01-06T01:00:00Z"}
    times = {"dep_time": "2000", "dep_delay": "0", "arr_time": "2310", "arr_delay": "0", "air_time": "340"}
    names = {"carrier": "UA", "flight": "7", "tailnum": "N1", "origin": "JFK", "dest": "LAX", "distance": "2475"}
    return day | times | names | changes


def story(**changes: str) -> list[tuple[str, datetime]]:
    steps = steps_of([flight_of(row(**changes))], date(2014, 1, 1))
    return [(step.event_type, step.at) for step in steps]


def utc(day: int, hour: int, minute: int = 0, month: int = 1) -> datetime:
    return datetime(2013, month, day, hour, minute, tzinfo=UTC)


SCHEDULED = ("FlightScheduled", utc(5, 5))  # midnight in New York
DEPARTED = ("FlightDeparted", utc(6, 1))


@pytest.mark.parametrize(
    ("missing", "then"),
    [
        ((), [SCHEDULED, DEPARTED, ("FlightArrived", utc(6, 7, 10))]),
        (("arr_delay", "air_time"), [SCHEDULED, DEPARTED, ("FlightArrived", utc(6, 7, 10))]),
        (("arr_time", "arr_delay", "air_time"), [SCHEDULED, DEPARTED]),
        (
            ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"),
            [SCHEDULED, ("FlightCancelled", utc(6, 1))],
        ),
    ],
    ids=["arrived", "diverted", "never arrived", "cancelled"],
)
def test_what_is_missing_in_a_row_tells_what_happened(missing: tuple[str, ...], then: list[tuple[str, datetime]]) -> None:
    assert story(**dict.fromkeys(missing, "NA")) == then


def test_a_diverted_flight_has_no_delay_and_no_time_in_the_air() -> None:
    flight = flight_of(row(arr_delay="NA", air_time="NA"))
    arrived = event_of(flight, steps_of([flight], date(2014, 1, 1))[-1])
    assert (arrived.data["delay_minutes"], arrived.data["air_minutes"], arrived.data["miles"]) == (None, None, 2475)


def test_flights_without_an_aircraft_share_a_stream_of_the_airline() -> None:
    assert flight_of(row()).stream_id == "Aircraft-N1"
    assert flight_of(row(tailnum="NA")).stream_id == "Aircraft-unassigned-UA"


@pytest.mark.parametrize(
    ("changes", "departed", "arrived"),
    [
        pytest.param({}, utc(6, 1), utc(6, 7, 10), id="Los Angeles has other clocks"),
        pytest.param({"dep_time": "1955", "dep_delay": "-5"}, utc(6, 0, 55), utc(6, 7, 10), id="early"),
        pytest.param(
            {"dep_time": "130", "dep_delay": "330", "arr_time": "440"}, utc(6, 6, 30), utc(6, 12, 40), id="after midnight"
        ),
        pytest.param({"dep_time": "2400", "dep_delay": "240", "arr_time": "310"}, utc(6, 5), utc(6, 11, 10), id="at midnight"),
        pytest.param({"arr_time": "2400"}, utc(6, 1), utc(6, 8), id="lands at midnight"),
        pytest.param({"dest": "SJU", "arr_time": "40"}, utc(6, 1), utc(6, 4, 40), id="Puerto Rico, not in the list of airports"),
        pytest.param({"dest": "HNL", "arr_time": "100"}, utc(6, 1), utc(6, 11), id="Honolulu"),
    ],
)
def test_times(changes: dict[str, str], departed: datetime, arrived: datetime) -> None:
    flight = flight_of(row(**changes))
    assert (flight.departed_at, flight.arrived_at) == (departed, arrived)


def test_clocks_go_forward_in_the_night() -> None:
    """10 March 2013: 2:00 is 3:00. The data says that this flight landed at 2:03, a time that clocks did not show."""
    changes = {"month": "3", "day": "9", "hour": "21", "minute": "45", "time_hour": "2013-03-10T02:00:00Z"}
    flight = flight_of(row(**changes, dep_time="2306", dep_delay="81", arr_time="203", dest="PBI"))
    assert (flight.departed_at, flight.arrived_at) == (utc(10, 4, 6, month=3), utc(10, 7, 3, month=3))


def test_events_of_a_flight_are_tied_together() -> None:
    flight = flight_of(row())
    scheduled, departed, arrived = (event_of(flight, step) for step in steps_of([flight], date(2014, 1, 1)))
    assert len({event.correlation_id for event in (scheduled, departed, arrived)}) == 1
    assert scheduled.causation_id is None
    assert departed.metadata["causation_id"] == scheduled.event_id
    assert arrived.metadata["causation_id"] == departed.event_id
    assert [event.timestamp for event in (scheduled, departed, arrived)] == [utc(5, 5), utc(6, 1), utc(6, 7, 10)]


def test_steps_are_in_the_order_of_time(flights: list[Flight], steps: list[Step]) -> None:
    assert all(before.at <= after.at for before, after in pairwise(steps))
    assert all(step.at < cut_of(END) for step in steps)
    stories: dict[int, list[Step]] = defaultdict(list)
    for step in steps:
        stories[step.flight].append(step)
    assert set(stories) == set(range(len(flights)))
    seen = Counter(tuple(step.event_type.removeprefix("Flight") for step in each) for each in stories.values())
    assert set(seen) == {
        ("Scheduled", "Departed", "Arrived"),
        ("Scheduled", "Departed"),
        ("Scheduled", "Cancelled"),
        ("Scheduled",),  # waits at the gate past the last midnight
    }
    for each in stories.values():
        assert all(before.at < after.at for before, after in pairwise(each))


@pytest.mark.parametrize("days", [1, 2, 10])
def test_a_shorter_period_is_the_beginning_of_a_longer_one(flights: list[Flight], steps: list[Step], days: int) -> None:
    end = date(2013, 1, 1) + timedelta(days=days)
    earlier = [flight for flight in flights if flight.day < end]
    beginning = steps_of(earlier, end)
    told = [event_of(earlier[step.flight], step) for step in beginning]
    assert told == [event_of(flights[step.flight], step) for step in steps[: len(beginning)]]
    assert beginning == sorted(beginning)
    assert steps[len(beginning)].at >= cut_of(end)


def test_events_are_the_same_each_time_and_fit_their_schemas(flights: list[Flight], steps: list[Step]) -> None:
    codec = Codec()
    event_types = load_event_types(files("eventspine.examples.flights") / "schemas")
    codec.add(PinnedType(number, each) for number, each in enumerate(event_types, 1))
    for step in random.Random(1).sample(steps, 2000):
        event = event_of(flights[step.flight], step)
        assert event == event_of(flights[step.flight], step)
        assert codec.encode(event.event_type, 0, event.data).data == event.data
    ids = {event_id_of(flights[step.flight], step.event_type) for step in steps}
    assert len(ids) == len(steps)


def test_an_empty_log_lacks_everything_in_order(flights: list[Flight], steps: list[Step]) -> None:
    versions: Counter[str] = Counter()
    missing = list(still_missing(flights, steps, {}))
    assert [step for step, _ in missing] == steps
    for step, version in missing:
        stream_id = flights[step.flight].stream_id
        assert version == versions[stream_id]
        versions[stream_id] += 1


@pytest.mark.parametrize("seed", range(5))
def test_whatever_came_through_the_rest_is_found(flights: list[Flight], steps: list[Step], seed: int) -> None:
    """Every stream stops anywhere: more than a crash can do, since appends go out in order."""
    of_stream: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        of_stream[flights[step.flight].stream_id].append(step)
    chance = random.Random(seed)
    recorded: dict[str, tuple[int, UUID]] = {}
    kept: set[Step] = set()
    for stream_id, mine in of_stream.items():
        count = chance.randint(0, len(mine))
        kept.update(mine[:count])
        if count:
            recorded[stream_id] = (count, event_id_of(flights[mine[count - 1].flight], mine[count - 1].event_type))
    assert [step for step, _ in still_missing(flights, steps, recorded)] == [step for step in steps if step not in kept]


def test_a_log_of_others_is_refused(flights: list[Flight], steps: list[Step]) -> None:
    with pytest.raises(IntegrityError, match="Order-1"):
        list(still_missing(flights, steps, {"Order-1": (1, uuid4())}))
    mine = flights[0].stream_id
    with pytest.raises(IntegrityError, match=mine):
        list(still_missing(flights, steps, {mine: (1, uuid4())}))


def the_log(flights: list[Flight], steps: list[Step]) -> list[tuple[int, bytes, str, int]]:
    """What a log that holds just the steps would return."""
    return [
        (position, event_id_of(flights[step.flight], step.event_type).bytes, flights[step.flight].stream_id, version + 1)
        for position, (step, version) in enumerate(still_missing(flights, steps, {}), 1)
    ]


def log_holds(flights: list[Flight], steps: list[Step], log: list[tuple[int, bytes, str, int]]) -> bool:
    check = LogCheck(flights, steps)
    for row in log:
        check.see(*row)
    return all(finding.holds for finding in check.findings())


def test_the_proof_of_the_log_finds_faults(flights: list[Flight], steps: list[Step]) -> None:
    steps = steps[:3000]
    log = the_log(flights, steps)
    assert log_holds(flights, steps, log)
    assert not log_holds(flights, steps, [])
    assert not log_holds(flights, steps, log[:-1]), "the last is missing"
    assert not log_holds(flights, steps, log[:99] + log[100:]), "one is missing"
    assert not log_holds(flights, steps, [*log, log[-1]]), "one twice"
    assert not log_holds(flights, steps, [*log, (len(log) + 1, uuid4().bytes, "Order-1", 1)]), "a foreign one"
    position, _, stream_id, version = log[7]
    assert not log_holds(flights, steps, [*log[:7], (position, uuid4().bytes, stream_id, version), *log[8:]]), "another id"
    first = next(n for n, each in enumerate(log) if each[3] == 1 and sum(other[2] == each[2] for other in log) > 1)
    second = next(n for n, each in enumerate(log) if each[2] == log[first][2] and each[3] == 2)
    swapped = list(log)
    swapped[first] = (log[first][0], log[second][1], *log[first][2:])
    swapped[second] = (log[second][0], log[first][1], *log[second][2:])
    assert not log_holds(flights, steps, swapped), "two events of a stream in the wrong order"


def test_the_proof_of_the_topic_finds_faults() -> None:
    ids = [uuid4().bytes for _ in range(6)]
    records = [(position % 2, position, event_id) for position, event_id in enumerate(ids, 1)]

    def holds(records: list[tuple[int, int, bytes]]) -> bool:
        check = TopicCheck(ids)
        for each in records:
            check.see(*each)
        return check.finding().holds

    assert holds(records)
    assert holds(sorted(records)), "partition by partition"
    assert not holds(records[1:]), "one is missing"
    assert not holds([*records, records[0]]), "one twice"
    assert not holds([records[2], records[1], records[0], *records[3:]]), "out of order in a partition"
    assert not holds([*records, (0, 7, uuid4().bytes)]), "beyond the log"
    assert not holds([(1, 1, ids[1]), *records[1:]]), "another event at that position"


def test_the_folds_count_what_the_steps_tell(flights: list[Flight], steps: list[Step]) -> None:
    told = Counter(step.event_type for step in steps)
    board, aircraft = fold_board(flights, cut_of(END)), fold_aircraft(flights, cut_of(END))
    scheduled, departed, cancelled = (sum(each[column] or 0 for each in board) for column in (3, 4, 5))
    assert {"FlightScheduled": scheduled, "FlightDeparted": departed, "FlightCancelled": cancelled}.items() <= told.items()
    departures, arrivals = (sum(each[column] or 0 for each in aircraft) for column in (1, 2))
    assert (departures, arrivals) == (told["FlightDeparted"], told["FlightArrived"])
