"""Intervals against numbers known from elsewhere, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prefloop.evaluate import stats
from prefloop.evaluate.stats import bootstrap_mean, paired_difference
from prefloop.intervals import Z95, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Roots of (p - k/n)^2 = z^2 p (1 - p) / n, to six digits.
    [(8, 10, 0.490162, 0.943318), (50, 100, 0.403832, 0.596168), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0)],
)
def test_wilson(k, n, low, high):
    assert wilson(k, n) == pytest.approx((k / n, low, high), abs=1e-6)
    for bound in (low, high):
        if 0 < bound < 1:
            assert (bound - k / n) ** 2 == pytest.approx(Z95**2 * bound * (1 - bound) / n, abs=1e-5)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (0, 0), (3, 2), (-1, 2)])
def test_wilson_needs_trials(k, n):
    with pytest.raises(ValueError, match="need 0 <= k <= n"):
        wilson(k, n)


def test_bootstrap_of_two_values_is_known():
    # Means of resamples: 0 (1/4), 1/2 (1/2), 1 (1/4); the 2.5 and 97.5 percentiles are the ends.
    assert bootstrap_mean([0.0, 1.0]) == (0.5, 0.0, 1.0)


def test_bootstrap_agrees_with_the_normal_interval_on_many_values():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=4000)
    half = Z95 * values.std(ddof=1) / math.sqrt(len(values))
    found = bootstrap_mean(values.tolist(), resamples=4000)
    assert found == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), abs=0.06 * half)


def test_the_seed_and_nothing_else_decides(monkeypatch):
    values = [float(i % 7) for i in range(100)]
    whole = bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) == whole
    assert bootstrap_mean(values, seed=4) != whole
    monkeypatch.setattr(stats, "CHUNK", 1700)
    assert bootstrap_mean(values, seed=3) == whole


def test_equal_values_have_no_width():
    assert bootstrap_mean([0.7] * 30) == pytest.approx((0.7, 0.7, 0.7))


@pytest.mark.parametrize("values", [[], [[1.0]]])
def test_bootstrap_needs_values(values):
    with pytest.raises(ValueError, match="flat list of at least one value"):
        bootstrap_mean(values)


def test_pairing_removes_what_prompts_share():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 10, size=300)
    base, aligned = difficulty, difficulty + 0.5 + rng.normal(0, 0.1, size=300)
    found = paired_difference(base.tolist(), aligned.tolist())
    assert found.value == pytest.approx(0.5, abs=0.02)
    assert found.high - found.low < 0.05


def test_pairs_must_match():
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0])


@pytest.mark.slow
def test_coverage_is_near_nominal():
    rng = np.random.default_rng(5)
    hits = {"bootstrap": 0, "wilson": 0}
    trials = 1500
    for trial in range(trials):
        draws = (rng.random(100) < 0.7).astype(float)
        boot, score = bootstrap_mean(draws.tolist(), 1000, seed=trial), wilson(int(draws.sum()), 100)
        hits["bootstrap"] += boot.low <= 0.7 <= boot.high
        hits["wilson"] += score.low <= 0.7 <= score.high
    assert all(0.92 <= count / trials <= 0.975 for count in hits.values()), hits
