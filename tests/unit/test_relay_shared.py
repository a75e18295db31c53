"""Shards of a relay that are shared out in one record, decided without a server."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from eventspine.relay.shared import Lease, SharedRecord, beaten, left, pinned, released, status_of, view_of
from eventspine.relay.state import PinnedTopic, ShardReport

_NEW = SharedRecord((Lease(), Lease(), Lease()))


def held(record: SharedRecord, worker: str, now: float) -> list[int]:
    return view_of(record, worker, now=now, lease_s=5, retry=False, parked=0).held


def test_the_first_takes_all_and_a_second_gets_its_share_when_it_is_given_back() -> None:
    record = beaten(_NEW, "a", [], now=0, lease_s=5)
    assert held(record, "a", 1) == [0, 1, 2]
    record = beaten(record, "b", [], now=1, lease_s=5)
    assert held(record, "b", 1) == []
    record = released(record, "a", [2], now=1)
    record = beaten(record, "b", [], now=2, lease_s=5)
    assert (held(record, "a", 2), held(record, "b", 2)) == ([0, 1], [2])


def test_who_falls_silent_loses_its_shards() -> None:
    record = beaten(_NEW, "a", [], now=0, lease_s=5)
    record = beaten(record, "b", [], now=4, lease_s=5)
    assert held(record, "b", 4) == []
    record = beaten(record, "b", [], now=5.5, lease_s=5)
    assert (held(record, "a", 5.5), held(record, "b", 5.5)) == ([], [0, 1, 2])
    assert list(record.workers) == ["b"]


def test_what_a_shard_reports_is_kept_and_its_heir_begins_at_its_place() -> None:
    record = beaten(_NEW, "a", [], now=0, lease_s=5)
    record = beaten(record, "a", [ShardReport(1, "publishing", 7, 5, 2.5)], now=1, lease_s=5)
    assert status_of(record, now=2, last_position=10)[1] == {
        "shard": 1, "state": "publishing", "owner": "a", "position": 7, "published": 5, "rate": 2.5, "lag_events": 3, "seen_s": 1,
    }  # fmt: skip
    record = beaten(left(released(record, "a", [0, 1, 2], now=3), "a"), "b", [], now=3, lease_s=5)
    assert record.leases[1] == Lease("b", 8, "starting", 7, updated_at=3)


def test_nobody_takes_shards_while_they_are_cut_anew() -> None:
    record = msgspec.structs.replace(_NEW, paused="reshard")
    assert held(beaten(record, "a", [], now=0, lease_s=5), "a", 0) == []


def test_a_topic_stays_as_it_was_seen_first() -> None:
    record = pinned(pinned(_NEW, "t", PinnedTopic(3, "x")), "t", PinnedTopic(4, "y"))
    assert record.topics == {"t": PinnedTopic(3, "x")}
    assert msgspec.json.decode(msgspec.json.encode(record), type=SharedRecord) == record


_STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["beat", "release", "leave"]), st.floats(0.1, 4)), max_size=40
)


@given(_STEPS)
def test_a_shard_has_one_owner_and_nobody_more_than_its_share_at_first(steps: list[tuple[str, str, float]]) -> None:
    record, now = _NEW, 0.0
    for worker, step, passes in steps:
        now += passes
        before = {number for other in "abc" if other != worker for number in held(record, other, now)}
        if step == "beat":
            record = beaten(record, worker, [], now=now, lease_s=5)
            assert not before & set(held(record, worker, now)), "it was another's"
        elif step == "release":
            record = released(record, worker, held(record, worker, now), now=now)
            assert held(record, worker, now) == []
        else:
            record = left(record, worker)
        owners = [held(record, each, now) for each in "abc"]
        assert sum(map(len, owners)) == len(set().union(*owners))
