"""What must be true of a history at its end: decided from what writers asked for and were told, and what readers saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from eventspine import ANY, NO_STREAM, STREAM_EXISTS, Event, ExpectedVersion, Query
from tests.fault.writer import Asked, Key, Told


@dataclass
class Asking:
    """An append that was asked for, and what came of it, as far as its writer could tell before it was killed."""

    asked: Asked
    told: Told = field(default_factory=lambda: Told("unknown"))


@dataclass
class Seen:
    """What a reader saw."""

    of: Query
    after: int
    events: list[Event] = field(default_factory=list)
    position: Callable[[], int] = lambda: 0


def by_key(askings: Iterable[Asking]) -> dict[Key, list[Asking]]:
    grouped: dict[Key, list[Asking]] = {}
    for asking in askings:
        grouped.setdefault(asking.asked.key, []).append(asking)
    return grouped


def ids_of(asked: Asked) -> list[UUID]:
    return [event.event_id for part in asked.parts for event in part.events]


def check_fates(events: Sequence[Event], askings: Sequence[Asking]) -> dict[Key, list[Event]]:
    """Check that each append is recorded as it was told: once if acked, however often it was asked for; not at all if it was only
    refused or rolled back; whole or not at all if nobody knows. Return what is recorded of each."""
    places = {event.event_id: event for event in events}
    recorded: dict[Key, list[Event]] = {}
    for key, asked_so in by_key(askings).items():
        asked, fates = asked_so[0].asked, [asking.told.fate for asking in asked_so]
        ids = ids_of(asked)
        found = [places[each] for each in ids if each in places]
        assert len(found) in (0, len(ids)), f"{key}: {len(found)} of {len(ids)} events are recorded; {fates}"
        if "acked" in fates:
            assert found, f"{key} was acked and is not recorded"
            assert "refused" not in fates[fates.index("acked") :], f"{key} was refused after it was acked: {fates}"
        elif "unknown" not in fates:
            assert not found, f"{key} is recorded at {found[0].global_position}, although {fates}"
        for asking in asked_so:
            assert list(asking.told.copies) in ([], found), f"{key} was acked as {asking.told.copies}, is recorded as {found}"
        if found:
            recorded[key] = found
            _check_place(asked, found, events)
    assert sum(map(len, recorded.values())) == len(events), "there are events that nobody asked for"
    return recorded


def _check_place(asked: Asked, found: Sequence[Event], events: Sequence[Event]) -> None:
    """Check that an append's events lie together, where its expected versions and its condition let them."""
    first = found[0].global_position
    assert [event.global_position for event in found] == list(range(first, first + len(found)))
    rest = iter(found)
    for part in asked.parts:
        copies = [next(rest) for _ in part.events]
        version = copies[0].version
        assert [(copy.stream_id, copy.version) for copy in copies] == [(part.stream_id, version + n) for n in range(len(copies))]
        assert fits(part.expected_version, version - 1), f"{asked.key} is at version {version} of a stream: {part}"
    if asked.condition is not None:
        between = [event for event in events if asked.condition.after < event.global_position < first]
        forbidden = [event for event in between if asked.condition.query.matches(event)]
        assert not forbidden, f"{asked.key} is recorded at {first} on condition of {asked.condition}, in spite of {forbidden}"


def fits(expected: ExpectedVersion, version: int) -> bool:
    if isinstance(expected, int):
        return expected == version
    return {ANY: True, NO_STREAM: version == 0, STREAM_EXISTS: version > 0}[expected]


def check_refusals(events: Sequence[Event], askings: Iterable[Asking]) -> None:
    """Check that each refusal had its reason: the stream's version, or the event that the condition forbids."""
    places = {(event.stream_id, event.version) for event in events}
    for asking in askings:
        if (refused := asking.told.refused) is None:
            continue
        if refused.by_condition:
            condition = asking.asked.condition
            assert condition is not None, f"{asking} was refused by a condition that it did not have"
            assert refused.actual > condition.after, refused
            assert condition.query.matches(events[refused.actual - 1]), refused
        else:
            expected = {part.stream_id: part.expected_version for part in asking.asked.parts}
            assert expected[refused.stream_id] == refused.expected, refused
            assert not fits(refused.expected, refused.actual), refused
            assert refused.actual == 0 or (refused.stream_id, refused.actual) in places, refused


def check_reader(seen: Seen, events: Iterable[Event]) -> None:
    """Check that a reader saw what it looks for: each event once, in order, as it is recorded."""
    expected = [event for event in events if event.global_position > seen.after and seen.of.matches(event)]
    if seen.events != expected:
        actual, right = ([event.global_position for event in each] for each in (seen.events, expected))
        raise AssertionError(f"a reader of {seen.of} behind {seen.after} saw {actual}, should have seen {right}")


def check_callers(rows: set[Key], askings: Iterable[Asking], recorded: dict[Key, list[Event]]) -> None:
    """Check that what a transaction wrote before it appended and its events are there together, or neither."""
    for key, asked_so in by_key(askings).items():
        wrote = [asking for asking in asked_so if asking.asked.within is not None and asking.asked.within.wrote_before]
        if key in rows:
            assert wrote, f"{key}: a row is there that nobody wrote"
            assert key in recorded, f"{key}: the caller's row is there without the events"
        if any(asking.told.fate == "acked" for asking in wrote) or (key in recorded and wrote == asked_so):
            assert key in rows, f"{key}: the events are there without the caller's row"
