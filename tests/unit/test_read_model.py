"""How far a stream is in a read model: decided without servers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eventspine.consumers.admin import ProjectionPlace
from eventspine.consumers.log_consumer import LOG
from eventspine.consumers.places import Item, Partition, Place, new_items
from eventspine.consumers.read_model import reached_by
from eventspine.schemas.partition import partition_of

TOPICS = {"events.Order": 3}


def place(partition: Partition, last_position: int, *, built_to: int = 0) -> ProjectionPlace:
    return ProjectionPlace("p", partition, 1, last_position, last_position, 1, 0, False, 0.0, built_to)


def places(*each: ProjectionPlace) -> dict[Partition, ProjectionPlace]:
    return {one.partition: one for one in each}


def of(stream_id: str) -> Partition:
    return Partition("events.Order", partition_of(stream_id.encode(), 3))


def test_a_stream_is_as_far_as_its_own_partition() -> None:
    others = [place(Partition("events.Order", number), 90) for number in range(3) if number != of("Order-1").number]
    assert reached_by("Order-1", places(*others), TOPICS, "events.") == 0
    assert reached_by("Order-1", places(*others, place(of("Order-1"), 7)), TOPICS, "events.") == 7


def test_what_it_was_built_from_counts_for_all() -> None:
    assert reached_by("Order-1", places(place(LOG, 50)), TOPICS, "events.") == 50
    assert reached_by("Order-1", places(place(LOG, 50), place(of("Order-1"), 7)), TOPICS, "events.") == 50
    assert reached_by("Order-1", places(place(of("Order-1"), 7, built_to=40)), TOPICS, "events.") == 40


def test_a_topic_that_is_not_known_has_no_partitions() -> None:
    assert reached_by("Quote-1", places(place(of("Order-1"), 7)), TOPICS, "events.") == 0
    assert reached_by("Order-1", places(place(of("Order-1"), 7)), TOPICS, "public.") == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=60), st.data())
def test_reached_means_taken(log: list[tuple[int, int]], data: st.DataObject) -> None:
    """Streams by number, each event appended to one; each partition consumed up to some record."""
    streams = [f"Order-{stream}" for stream, _ in log]
    state: dict[Partition, Place] = {Partition("events.Order", number): Place(1, 0, 0, 0) for number in range(3)}
    taken: set[int] = set()
    for partition in list(state):
        positions = [position for position, stream in enumerate(streams, 1) if of(stream) == partition]
        records = [Item(partition, offset, position, 0, "E", "", None) for offset, position in enumerate(positions)]
        new, after = new_items(records[: data.draw(st.integers(0, len(records)))], state)
        taken |= {item.position for item in new}
        state |= after
    seen = places(*(place(partition, at.last_position) for partition, at in state.items()))
    for position, stream in enumerate(streams, 1):
        assert (reached_by(stream, seen, TOPICS, "events.") >= position) == (position in taken)
