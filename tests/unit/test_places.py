"""Which records are new to a projection: decided without Kafka and without a database."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventspine import IntegrityError
from eventspine.consumers.places import Item, Partition, Place, new_items

P0, P1 = Partition("events.Order", 0), Partition("events.Order", 1)


def item(partition: Partition, offset: int, position: int, late: int = 0) -> Item:
    return Item(partition, offset, position, late, "OrderPlaced", "Order-1", None)


def records(partition: Partition, *places: tuple[int, int]) -> list[Item]:
    return [item(partition, offset, position) for offset, position in places]


def new_records(items: list[Item], places: dict[Partition, Place]) -> tuple[list[int], dict[Partition, Place]]:
    new, after = new_items(items, places)
    return [each.position for each in new], after


def test_new_records_pass_in_order_and_move_the_place() -> None:
    new, after = new_records(records(P0, (5, 10), (7, 12)), {P0: Place(3, 5, 9, 100)})
    assert new == [10, 12]
    assert after == {P0: Place(3, 8, 12, 102)}


def test_offsets_that_were_consumed_are_dropped() -> None:
    new, after = new_records(records(P0, (3, 7), (4, 9), (5, 10)), {P0: Place(1, 5, 9, 2)})
    assert (new, after) == ([10], {P0: Place(1, 6, 10, 3)})


def test_positions_that_were_applied_are_duplicates_but_move_the_offset() -> None:
    new, after = new_records(records(P0, (5, 9), (6, 8)), {P0: Place(1, 5, 9, 2)})
    assert (new, after) == ([], {P0: Place(1, 7, 9, 2)})


def test_partitions_of_others_are_dropped() -> None:
    assert new_records(records(P1, (0, 1)), {P0: Place(1, 0, 0, 0)}) == ([], {})


def test_partitions_may_take_turns() -> None:
    places = {P0: Place(1, 0, 0, 0), P1: Place(2, 7, 3, 3)}
    new, after = new_records([*records(P0, (0, 1)), *records(P1, (7, 4)), *records(P0, (1, 2), (2, 5))], places)
    assert new == [1, 4, 2, 5]
    assert after == {P0: Place(1, 3, 5, 3), P1: Place(2, 8, 4, 4)}


def test_what_it_was_built_from_is_dropped_late_or_not() -> None:
    place = Place(1, 0, 10, 10, 0, 10)
    new, after = new_items([item(P0, 0, 9), item(P0, 1, 12), item(P0, 2, 8, 1), item(P0, 3, 11, 2)], {P0: place})
    assert [each.position for each in new] == [12, 11]
    assert after == {P0: Place(1, 4, 12, 12, 2, 10)}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.data())
def test_every_position_is_applied_once_however_batches_are_cut(published: list[int], data: st.DataObject) -> None:
    """A topic with repeated publications; consumed in batches, some of which are fetched again after a rebalance."""
    topic = list(enumerate(published))
    place, applied = Place(1, 0, 0, 0), []
    while place.next_offset < len(topic):
        start = data.draw(st.integers(0, place.next_offset))
        end = data.draw(st.integers(place.next_offset + 1, len(topic)))
        new, after = new_records(records(P0, *topic[start:end]), {P0: place})
        applied += new
        place = after[P0]
    assert applied == sorted(set(applied))
    assert place == Place(1, len(topic), max(published), len(applied))
    if published == sorted(published):
        assert applied == sorted(set(published))


@st.composite
def partitions_with_late_records(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int]]:
    """Return a partition as (position, late number) that a relay without transactions may leave behind, and in which order its
    events were first there.

    Some events are parked, and published late in groups, in any order of their positions, also several groups behind one cursor.
    At any time the relay may die: what it published since its last cursor comes again, late records under the same numbers.
    """
    topic: list[tuple[int, int]] = []
    first: list[int] = []
    parked: list[int] = []
    position = number = 0

    def publish(records: list[tuple[int, int]]) -> None:
        for died_after in draw(st.lists(st.integers(0, len(records)), max_size=2)):
            topic.extend(records[:died_after])
        topic.extend(records)
        first.extend(each for each, _ in records)

    for _ in range(draw(st.integers(1, 8))):
        batch: list[tuple[int, int]] = []
        for _ in range(draw(st.integers(0, 5))):
            position += draw(st.integers(1, 3))
            if draw(st.booleans()):
                batch.append((position, 0))
            else:
                parked.append(position)
        publish(batch)
        while draw(st.booleans()) and parked:
            parked = list(draw(st.permutations(parked)))
            cut = draw(st.integers(1, len(parked)))
            publish([(each, number + n) for n, each in enumerate(parked[:cut], 1)])
            number, parked = number + cut, parked[cut:]
    return topic, first


@given(partitions_with_late_records(), st.data())
def test_late_records_are_applied_once_and_in_order(
    partition: tuple[list[tuple[int, int]], list[int]], data: st.DataObject
) -> None:
    published, first = partition
    topic = [item(P0, offset, position, late) for offset, (position, late) in enumerate(published)]
    place, applied = Place(1, 0, 0, 0), []
    while place.next_offset < len(topic):
        start = data.draw(st.integers(0, place.next_offset))
        new, after = new_records(topic[start : data.draw(st.integers(place.next_offset + 1, len(topic)))], {P0: place})
        applied += new
        place = after[P0]
    assert applied == first
    assert place.events == len(first)


@pytest.mark.parametrize(
    ("follows", "place", "missing"),
    [
        (9, Place(1, 5, 9, 2), False),
        (8, Place(1, 5, 9, 2), False),  # what came between was published twice
        (11, Place(1, 5, 9, 2), True),
        (11, Place(1, 0, 0, 0, built_to=11), False),  # built from the log
        (11, Place(1, 0, 0, 0, built_to=10), True),
    ],
)
def test_a_record_whose_predecessor_was_not_there_shows_a_loss(follows: int, place: Place, missing: bool) -> None:
    first, second = item(P0, 7, 12)._replace(follows=follows), item(P0, 8, 13)
    if missing:
        with pytest.raises(IntegrityError, match=r"events.Order\[0\]: the record at offset 7 .* follows that of position 11"):
            new_items([first, second], {P0: place})
    else:
        assert new_records([first, second], {P0: place})[0] == [12, 13]
