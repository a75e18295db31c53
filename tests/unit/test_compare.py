"""What verify names: walks over records with planted mistakes, against what is known to be wrong with them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventspine.relay.compare import LookUp, Walk
from eventspine.relay.compared import FAULTS, Expected, Finding, Found, Positions, digest_of, sorted_part

LIMIT = 200


def event(position: int) -> Expected:
    return Expected(position, f"id-{position}", b"Order-1", b"value %d" % position, [("ce_globalposition", b"%d" % position)])


def record(offset: int, position: int, *, late: int = 0, value: bytes | None = None, after: int = 0) -> Found:
    headers: list[tuple[str, bytes | None]] = [("ce_globalposition", b"%d" % position)]
    if late:
        headers += [("ce_publishedafter", b"%d" % after), ("ce_latenumber", b"%d" % late)]
    return Found(offset, position, late, b"Order-1", b"value %d" % position if value is None else value, headers)


class Compared:
    """A walk that was led to its end."""

    def __init__(
        self, events: Sequence[int], records: Sequence[Found], *, chunk: int = 7, limit: int = LIMIT, **options: Any
    ) -> None:
        self.findings: list[Finding] = []
        walk = Walk("events.Order", 0, limit=limit, name=self.findings.append, **options)
        events_left, records_left = [event(each) for each in events if each <= limit], list(records)
        most = 0
        while (need := walk.step()) != "nothing":
            if isinstance(need, LookUp):
                walk.tell({each: event(each) if each in events else None for each in need.positions})
            elif need == "expected":
                assert not walk.expected
                walk.expected.extend(events_left[:chunk])
                del events_left[:chunk]
                walk.finished = not events_left
            else:
                walk.records.extend(records_left[:chunk])
                del records_left[:chunk]
                walk.ended = not records_left
            most = max(most, len(walk.records))
        self.missing = list(walk.missing())
        self.counts = walk.counts
        self.most = most

    def named(self, kind: str) -> list[int]:
        return [each.position for each in self.findings if each.kind == kind]

    def offsets(self, *kinds: str) -> set[int]:
        return {each.offset for each in self.findings if each.kind in kinds and each.offset is not None}

    @property
    def faults(self) -> list[tuple[str, int]]:
        return [(each.kind, each.position) for each in self.findings] + [("missing", each) for each in self.missing]


def in_order(*positions: int) -> list[Found]:
    return [record(offset, position) for offset, position in enumerate(positions)]


def longest_rising(values: Sequence[int]) -> int:
    tails: list[int] = []
    for value in values:
        place = bisect_left(tails, value)
        tails[place : place + 1] = [value]
    return len(tails)


mistakes = st.lists(
    st.tuples(st.sampled_from(["drop", "duplicate", "move", "alter", "foreign"]), st.integers(0, 10**6), st.integers(0, 10**6)),
    max_size=12,
)


def plant(events: Sequence[int], planted: Sequence[tuple[str, int, int]]) -> tuple[list[tuple[int, bool]], int]:
    """Return positions with whether their records are altered."""
    log = [(each, False) for each in events]
    for kind, first, second in planted:
        if kind == "foreign":
            log.insert(
                first % (len(log) + 1), (2 * (second % LIMIT) + 1, False)
            )  # the log has odd positions elsewhere, or not at all
        elif log:
            at = first % len(log)
            if kind == "drop":
                del log[at]
            elif kind == "duplicate":
                log.insert(second % (len(log) + 1), log[at])
            elif kind == "move":
                moved = log.pop(at)
                log.insert(second % (len(log) + 1), moved)
            else:
                log[at] = (log[at][0], True)
    return log, len(log)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 40), mistakes, st.sampled_from([4, 9, 256]), st.integers(1, 20))
def test_every_mistake_is_named_and_nothing_else(count: int, planted: list[tuple[str, int, int]], ahead: int, chunk: int) -> None:
    """Against brute force; with a look-ahead over all records, also with the fewest that are out of place."""
    events = list(range(2, 2 * count + 1, 2))
    log, _ = plant(events, planted)
    records = [record(offset, position, value=b"altered" if altered else None) for offset, (position, altered) in enumerate(log)]
    compared = Compared(events, records, chunk=chunk, look_ahead=ahead)
    present = Counter(position for position, _ in log if position in events)
    assert compared.missing == [each for each in events if each not in present]
    assert Counter(compared.named("duplicated")) == Counter({each: n - 1 for each, n in present.items() if n > 1})
    assert compared.offsets("foreign") == {each.offset for each in records if each.position not in events}
    altered = {each.offset for each in records if each.value == b"altered" and each.position in events}
    assert compared.offsets("altered") <= altered <= compared.offsets("altered", "duplicated")
    out = compared.offsets("reordered", "duplicated", "foreign")
    left = [each.position for each in records if each.offset not in out]
    assert left == sorted(set(left))
    reordered = compared.named("reordered")
    assert len(reordered) == len(set(reordered))
    assert set(reordered) <= present.keys()
    if ahead > len(records):
        assert len(reordered) == len(present) - longest_rising([each.position for each in records if each.position in events])
    assert compared.counts["in place"] == len(left)
    assert compared.most <= ahead + chunk


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 59), st.integers(0, 59), st.sampled_from([8, 20, 256]))
def test_a_record_that_was_moved_is_the_one_that_is_named(start: int, end: int, ahead: int) -> None:
    """However far it went, also beyond the look-ahead. Of two neighbours that changed places, either will do."""
    events = list(range(1, 61))
    order = list(events)
    order.insert(end, order.pop(start))
    compared = Compared(events, in_order(*order), look_ahead=ahead)
    if start == end:
        assert compared.faults == []
    elif abs(start - end) == 1:
        assert compared.faults in ([("reordered", start + 1)], [("reordered", end + 1)])
    else:
        assert compared.faults == [("reordered", start + 1)]


def test_one_that_is_early_by_far_makes_no_victims() -> None:
    assert Compared(range(1, 101), in_order(1, 100, *range(2, 100)), look_ahead=4).faults == [("reordered", 100)]


def test_one_that_is_early_is_known_by_what_follows_it() -> None:
    """60 comes last among those that are looked at together with 50."""
    compared = Compared(range(1, 61), in_order(1, 50, *range(2, 8), 60, *range(8, 50), *range(51, 60)), look_ahead=8)
    assert compared.faults == [("reordered", 50), ("reordered", 60)]


def test_an_altered_record_is_named_with_what_differs_and_both_digests() -> None:
    records = in_order(1, 2, 3)
    records[1] = records[1]._replace(value=b"value 3", headers=[*records[1].headers, ("x", None)])
    (finding,) = Compared([1, 2, 3], records).findings
    assert finding == Finding(
        "altered", "events.Order", 0, 1, 2, "id-2", "another value and header x", digest_of(event(2)), digest_of(records[1])
    )
    assert digest_of(event(2)) == digest_of(record(9, 2)) != digest_of(records[1])


def test_the_link_to_the_record_before_is_no_fault_and_hides_none() -> None:
    records = [
        each._replace(headers=[*each.headers, ("ce_previousposition", b"%d" % (each.position - 1))]) for each in in_order(1, 2)
    ]
    assert Compared([1, 2], records).faults == []
    records[1] = records[1]._replace(value=b"another")
    assert Compared([1, 2], records).faults == [("altered", 2)]


def test_late_records_fill_holes_and_are_no_fault() -> None:
    """Events 2 and 6 were parked when 9 was published, then 3 until the end; 5 is parked still."""
    records = [*in_order(1, 3, 4, 7, 8, 9), record(6, 2, late=1, after=9), record(7, 6, late=2, after=9), record(8, 10)]
    compared = Compared(range(1, 11), records, parked={5})
    assert compared.faults == []
    assert (compared.counts["late"], compared.counts["parked"]) == (2, 1)


def test_a_late_record_may_come_before_the_walk_is_there() -> None:
    """The partition's last event was parked, and others were published since to other partitions."""
    assert Compared([1, 5], [record(0, 1), record(1, 5, late=1, after=9)], chunk=1).faults == []


def test_a_late_record_that_fills_no_hole_is_a_duplicate() -> None:
    records = [*in_order(1, 2, 3), record(3, 2, late=1, after=3)]
    assert Compared([1, 2, 3], records).faults == [("duplicated", 2)]


def test_what_retention_cut_off_is_counted() -> None:
    compared = Compared(range(1, 11), [record(20 + each, each) for each in (4, 5, 7, 8, 9, 10)], expired=True)
    assert (compared.faults, compared.counts["expired"]) == ([("missing", 6)], 3)
    assert Compared(range(1, 11), [], expired=True).counts["expired"] == 10


def test_what_lies_beyond_the_cursor_is_not_looked_at() -> None:
    assert Compared(range(1, 30), in_order(*range(1, 15)), limit=10).faults == []


@pytest.mark.parametrize(
    ("order", "repeated"),
    [
        ([1, 2, 3, 4, 3, 4, 5], 2),
        ([1, 2, 3, 4, 1, 2, 3, 4], 4),
        ([1, 2, 3, 4, 2, 3, 2, 3, 4, 5], 5),  # the second life died, too, before it wrote a cursor
        ([1, 2, 2, 3, 3, 4], 2),
    ],
)
def test_a_crash_without_transactions_repeats(order: list[int], repeated: int) -> None:
    compared = Compared(range(1, max(order) + 1), in_order(*order), repeats=True)
    assert (compared.faults, compared.counts["repeated"]) == ([], repeated)
    compared = Compared(range(1, max(order) + 1), in_order(*order))
    assert len(compared.named("duplicated")) == len(compared.faults) == repeated


@pytest.mark.parametrize(("order", "named"), [([1, 2, 3, 2, 4], [2]), ([1, 2, 3, 4, 2, 3, 5], [2, 3]), ([1, 2, 3, 1], [1])])
def test_a_repetition_that_does_not_rise_to_where_it_began_is_a_fault(order: list[int], named: list[int]) -> None:
    compared = Compared(range(1, max(order) + 1), in_order(*order), repeats=True)
    assert compared.faults == [("duplicated", each) for each in named]


def test_late_records_that_are_repeated_have_the_same_numbers() -> None:
    late = [
        record(2 + n, position, late=number, after=4) for n, (position, number) in enumerate([(2, 1), (3, 2), (2, 1), (3, 2)])
    ]
    compared = Compared(range(1, 5), [record(0, 1), record(1, 4), *late], repeats=True)
    assert (compared.faults, compared.counts["late"], compared.counts["repeated"]) == ([], 2, 2)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000))))
def test_positions_are_a_set(changes: list[tuple[bool, int]]) -> None:
    positions = Positions()
    expected: set[int] = set()
    for add, position in changes:
        (positions.add if add else positions.discard)(position)
        (expected.add if add else expected.discard)(position)
        assert (position in positions) == (position in expected)
    assert list(positions) == sorted(expected)
    assert len(positions) == len(expected)


@given(st.lists(st.integers(0, 30), max_size=40))
def test_the_longest_rising_part(values: list[int]) -> None:
    part = sorted_part(values)
    chosen = [values[each] for each in part]
    assert part == sorted(part)
    assert chosen == sorted(set(chosen))
    assert len(part) == longest_rising(values)


def test_faults_are_what_ends_with_1() -> None:
    assert FAULTS == ("missing", "duplicated", "reordered", "altered", "foreign")
