"""Sign flips, Holm's correction, standard errors, and bootstraps of functions of means: numbers known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from prefloop.evaluate import stats
from prefloop.evaluate.stats import (
    bootstrap_mean,
    bootstrap_means,
    holm,
    mean_interval,
    randomisation_test,
    standard_error,
    wilson,
)


def test_few_equal_differences_have_a_known_probability():
    # All 2^5 sign patterns are equally likely; 2 of them are as extreme: 1/16.
    assert randomisation_test([1.0] * 5, flips=20_000) == pytest.approx(1 / 16, abs=0.006)
    # Differences 1, 2, 3: |sum| = 6 in 2 of 8 patterns.
    assert randomisation_test([1.0, 2.0, 3.0], flips=20_000) == pytest.approx(0.25, abs=0.01)


def test_the_observed_signs_are_one_of_the_draws():
    # 2^-39 of the patterns are as extreme: no flip is, and the probability is 1 / (flips + 1).
    assert randomisation_test([0.3] * 40, flips=999) == 1 / 1000
    assert randomisation_test([0.0] * 10, flips=99) == 1.0
    assert randomisation_test([1.0], flips=99) == 1.0


def test_rounding_makes_no_extreme_sum():
    # 0.1 + 0.2 - 0.3 is not 0 in floating point, and -0.1 - 0.2 + 0.3 is as far from 0.
    assert randomisation_test([0.1, 0.2, -0.3], flips=999) == 1.0


def test_flips_agree_with_the_t_test_on_many_values():
    values = np.random.default_rng(3).normal(0.12, 1.0, size=400).tolist()
    expected = scipy_stats.ttest_1samp(values, 0).pvalue
    assert randomisation_test(values, flips=20_000) == pytest.approx(expected, abs=0.01)


def test_chunks_do_not_change_the_probability(monkeypatch):
    values = [0.4, -0.1, 0.3, 0.2, -0.2, 0.5]
    whole = randomisation_test(values, flips=500, seed=4)
    assert randomisation_test(values, flips=500, seed=4) == whole
    monkeypatch.setattr(stats, "CHUNK", 70)
    assert randomisation_test(values, flips=500, seed=4) == whole


def test_holm_by_hand():
    # Sorted .01 x 4, .02 x 3, .03 x 2, .04 x 1, and never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.02]) == [0.02]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_exceeds_bonferroni(probabilities):
    adjusted = holm(probabilities)
    for p, a in zip(probabilities, adjusted, strict=True):
        assert p <= a <= min(1.0, len(probabilities) * p) + 1e-12
    order = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_standard_error_by_hand():
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt((2.25 + 0.25) * 2 / 3 / 4))
    assert standard_error([1.0]) is None


def test_expanded_percentiles_are_wider_for_few_values_and_the_same_for_many():
    # n = 10: t = 2.262, sqrt(10/9) t = 2.3845, and Phi(-2.3845) = 0.00855.
    assert stats._tail(10) == pytest.approx(0.00855, abs=1e-5)
    assert stats._tail(100_000) == pytest.approx(0.025, abs=1e-4)
    values = np.random.default_rng(0).normal(size=10)
    half = 2.262157 * values.std(ddof=1) / math.sqrt(10)
    found = bootstrap_mean(values.tolist(), resamples=20_000)
    assert found == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), abs=0.12 * half)


def test_one_value_has_no_interval():
    assert bootstrap_mean([0.25]) == (0.25, 0.25, 0.25)


def test_rates_have_wilsons_interval_and_other_means_the_bootstraps():
    assert mean_interval([0.0] * 50) == wilson(0, 50)
    assert mean_interval([1.0, 0.0, True]) == wilson(2, 3)
    assert mean_interval([0.0, 0.5, 1.0], 200, 3) == bootstrap_mean([0.0, 0.5, 1.0], 200, 3)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_a_function_of_means_resamples_rows_whole():
    # The difference of the two columns is 1 in every row, so it is 1 in every resample.
    values = np.random.default_rng(0).normal(size=20)
    table = np.stack([values + 1, values], axis=1)
    assert bootstrap_means(table, lambda m: m[:, 0] - m[:, 1], 500) == pytest.approx((1, 1, 1))


def test_undefined_resamples_are_left_out():
    def ratio(means):
        return np.where(means[:, 1] == 0, np.nan, means[:, 0] / np.where(means[:, 1] == 0, 1, means[:, 1]))

    found = bootstrap_means([[1.0, 1.0], [0.0, 0.0]], ratio, 200)
    assert found == (1.0, 1.0, 1.0)
    assert all(math.isnan(x) for x in bootstrap_means([[0.0, 0.0]], ratio, 200))


@pytest.mark.parametrize("values", [[], [1.0, 2.0]])
def test_a_table_is_needed(values):
    with pytest.raises(ValueError, match="a table of at least one row"):
        bootstrap_means(values, lambda m: m[:, 0])
    with pytest.raises(ValueError, match="flat list"):
        randomisation_test([])
