"""Limits of calls at one time and of cost: known numbers, and what holds whatever happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.backends import throttle
from prefloop.backends.throttle import Limit, Spending


def test_doubles_with_every_round_until_the_first_429_and_adds_one_after_it():
    limit = Limit(64)
    rounds = [int(limit.now)]
    for _ in range(4):
        for _ in range(int(limit.now)):
            limit.answered()
        rounds.append(int(limit.now))
    assert rounds == [8, 16, 32, 64, 64]
    limit.full(started=1.0, now=2.0, wait=None)
    assert limit.now == 48
    for _ in range(49):
        limit.answered()
    assert 48.9 < limit.now < 49.1


def test_calls_that_were_under_way_when_the_limit_was_cut_do_not_cut_it_again():
    limit = Limit(8)
    for started in (0.1, 0.2, 0.3):
        limit.full(started, now=1.0, wait=None)
    assert limit.now == 6
    limit.full(started=1.5, now=2.0, wait=3.0)
    assert (limit.now, limit.not_before) == (4.5, 5.0)
    limit.full(started=1.6, now=2.1, wait=1.0)
    assert (limit.now, limit.not_before) == (4.5, 5.0)
    assert limit.room(3)
    assert not limit.room(4)


@given(most=st.integers(1, 200), events=st.lists(st.booleans(), max_size=300))
def test_is_never_below_one_nor_above_the_most(most, events):
    limit = Limit(most)
    for moment, answered in enumerate(events):
        if answered:
            limit.answered()
        else:
            limit.full(moment, moment + 0.5, None)
        assert 1 <= limit.now <= most
        assert limit.room(0)


@given(tries=st.integers(1, 50))
def test_waits_twice_as_long_each_time_up_to_the_longest(tries):
    whole = min(throttle.LONGEST_WAIT, throttle.FIRST_WAIT * 2 ** (tries - 1))
    assert whole / 2 <= throttle.backoff(tries) <= whole


def test_price_of_a_call():
    spending = Spending(price_input=2.0, price_output=10.0)
    spending.end((0, 0), (500_000, 100_000))
    assert spending.cost == pytest.approx(2.0)
    assert spending.priced
    assert not Spending().priced
    assert Spending().fits((10**9, 10**9))


@given(
    most=st.floats(0.1, 100),
    earlier=st.floats(0, 50),
    calls=st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**6), st.floats(0, 1)), max_size=30),
)
def test_cost_never_exceeds_the_limit_when_bounds_hold(most, earlier, calls):
    """All that fits is begun before any of it ends: calls at one time."""
    spending = Spending(price_input=1.0, price_output=4.0, most=most, earlier=earlier)
    begun = []
    for prompt, generated, share in calls:
        if spending.fits((prompt, generated)):
            spending.begin((prompt, generated))
            begun.append((prompt, generated, share))
    for prompt, generated, share in begun:
        spending.end((prompt, generated), (int(prompt * share), int(generated * share)))
    assert spending.cost <= max(most, earlier) + 1e-9
    assert spending.reserved == pytest.approx(0, abs=1e-9)
