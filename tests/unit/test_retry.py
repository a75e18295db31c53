from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from eventspine.schemas.retry import Backoff


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    first_s=st.floats(0.001, 1),
    most_s=st.floats(1, 10),
    give_up_after_s=st.floats(1, 100),
)
def test_delays_double_with_jitter_up_to_the_most_and_end(first_s: float, most_s: float, give_up_after_s: float) -> None:
    clock = Clock()
    backoff = Backoff(first_s=first_s, most_s=most_s, give_up_after_s=give_up_after_s, clock=clock)
    waited = 0.0
    for n in itertools.count():
        delay_s = backoff.next_delay_s()
        if delay_s is None:
            break
        assert backoff.failing
        full = min(most_s, first_s * 2**n)
        assert 0.5 * full <= delay_s <= full
        assert waited < give_up_after_s
        waited += delay_s
        clock.now += delay_s
    assert give_up_after_s <= waited + 1e-6
    assert waited <= give_up_after_s + most_s
    assert backoff.next_delay_s() is None


def test_a_new_one_is_not_failing() -> None:
    assert not Backoff().failing


def test_success_starts_anew() -> None:
    clock = Clock()
    backoff = Backoff(first_s=1, most_s=64, give_up_after_s=10, clock=clock)
    for _ in range(5):
        backoff.next_delay_s()
    clock.now += 11
    assert backoff.next_delay_s() is None
    backoff.reset()
    assert not backoff.failing
    delay_s = backoff.next_delay_s()
    assert delay_s is not None
    assert 0.5 <= delay_s <= 1


def test_endless_failures_overflow_nothing() -> None:
    backoff = Backoff(first_s=1, most_s=2, give_up_after_s=float("inf"))
    delays = [backoff.next_delay_s() for _ in range(5000)]
    assert all(delay is not None and delay <= 2 for delay in delays)


def test_clients_do_not_come_back_in_step() -> None:
    assert len({Backoff().next_delay_s() for _ in range(20)}) > 10
