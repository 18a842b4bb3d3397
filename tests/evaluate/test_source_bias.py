"""Relative Δ: numbers by hand, and what has no value."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.evaluate.contrasts import SAME, decide
from prefloop.evaluate.source_bias import relative_delta, relative_delta_interval

metric = st.floats(0, 1)


def test_by_hand():
    assert relative_delta(0.267, 0.210) == pytest.approx(23.899, abs=5e-4)
    assert relative_delta(0.0, 0.3) == -200
    assert relative_delta(0.3, 0.3) == 0
    assert math.isnan(relative_delta(0.0, 0.0))


def test_it_is_of_the_means_not_the_mean_of_ratios():
    # Means 0.5 and 0.25: 200 x 0.25 / 0.75. The queries' own ratios are +200 and -200 x 0.5 / 0.5.
    assert relative_delta([1.0, 0.0], [0.0, 0.5]) == pytest.approx(200 / 3)


@given(metric, metric)
def test_it_is_odd_bounded_and_free_of_scale(human, llm):
    found = relative_delta(human, llm)
    if human + llm < 1e-6:
        return
    assert -200 <= found <= 200
    assert relative_delta(llm, human) == pytest.approx(-found)
    assert relative_delta(3 * human, 3 * llm) == pytest.approx(found)


def test_the_interval_pairs_queries():
    human = [0.9, 0.1, 0.5, 0.3, 0.7] * 8
    # 10 % less for every query: every resample says the same.
    found = relative_delta_interval(human, [0.9 * h for h in human], 500)
    assert found == pytest.approx((200 * 0.1 / 1.9,) * 3)
    shuffled = relative_delta_interval(human, [0.9 * h for h in reversed(human)], 500)
    assert shuffled.value == pytest.approx(found.value)
    assert shuffled.low < found.value - 5
    assert all(math.isnan(x) for x in relative_delta_interval([0.0, 0.0], [0.0, 0.0], 100))


def test_mistakes():
    with pytest.raises(ValueError, match="2 queries on one side, 1"):
        relative_delta_interval([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="at least 0"):
        relative_delta(-0.1, 0.2)
    with pytest.raises(ValueError, match="at least 0"):
        relative_delta_interval([-0.1], [0.2])


def test_of_a_figure_that_is_not_defined_no_verdict_is_given():
    """Of the change of a Relative Δ that was not defined before, whatever the test says of the shifts."""
    entry = {"value": None, "ci_low": None, "ci_high": None, "p_value": 0.001}
    decide([entry])
    assert (entry["p_holm"], entry["verdict"]) == (0.001, SAME)
