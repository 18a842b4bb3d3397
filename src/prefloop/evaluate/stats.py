"""Intervals and tests over prompts: a bootstrap, Wilson's for shares, sign flips, Holm's correction.

The bootstrap's interval is the expanded percentile interval (Hesterberg, The American Statistician 69, 2015, section
5.3): its percentiles are those of a t distribution, so that few prompts do not make it too narrow. At ten prompts the
plain percentile interval covers 88 to 93 % of simulated truths, this one 91 to 97 % (docs/evaluation.md has the table,
tests/evaluate/test_coverage.py measures it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefloop.intervals import Interval, wilson

# Resampled values held at once (8 bytes each, twice): memory stays near 64 MB whatever the number of prompts.
CHUNK = 4_000_000

# Below this many prompts a bootstrap interval without width is no evidence: by the rule of three, up to 3 / n of the
# prompts may still be different when n were seen that are all equal.
FEW = 30

# What a test's probability must stay below for a difference to be called one.
SIGNIFICANT = 0.05

Array = Any


def bootstrap_mean(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean with its bootstrap interval (expanded percentiles, see above), 95 %.

    The values are resampled whole, so each must be one independent unit: one prompt. Values that are all equal give
    an interval without width.

    Args:
        values: [n], at least one.
        resamples: how many.
        seed: the same seed gives the same interval.
    """
    import numpy as np

    data_N = np.asarray(values, dtype=np.float64)
    if data_N.ndim != 1 or len(data_N) == 0:
        raise ValueError(f"need a flat list of at least one value, got shape {data_N.shape}")
    return bootstrap_means(data_N[:, None], lambda means_RC: means_RC[:, 0], resamples, seed)


def mean_interval(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean with its 95 % interval: Wilson's where all values are 0 or 1, else the bootstrap's.

    Of a rate that is nearly 0 or 1 the bootstrap has too little to draw from: none of fifty is [0, 0] to it, and up to
    7 % to Wilson.

    Args:
        values: [n], one per independent unit, at least one.
        resamples, seed: of the bootstrap.
    """
    if len(values) and all(value in (0, 1) for value in values):
        return wilson(int(sum(values)), len(values))
    return bootstrap_mean(values, resamples, seed)


def bootstrap_means(
    values_NC: Array, statistic: Callable[[Array], Array], resamples: int = 10_000, seed: int = 0
) -> Interval:
    """A function of means with its bootstrap interval (expanded percentiles), 95 %. Rows are resampled whole.

    Args:
        values_NC: [n, c]: row i holds what was measured on prompt i.
        statistic: means [r, c] -> [r]; may give NaN where it is not defined. Such resamples are left out.
        resamples, seed: as for `bootstrap_mean`.

    Returns:
        NaN in all three places where the statistic is not defined on the values themselves.
    """
    import numpy as np

    data_NC = np.asarray(values_NC, dtype=np.float64)
    if data_NC.ndim != 2 or len(data_NC) == 0:
        raise ValueError(f"need a table of at least one row, got shape {data_NC.shape}")
    n = len(data_NC)
    value = float(statistic(data_NC.mean(axis=0)[None])[0])
    if math.isnan(value):
        return Interval(value, value, value)
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // data_NC.size)
    found = np.concatenate(
        [
            statistic(data_NC[rng.integers(0, n, size=(min(step, resamples - start), n))].mean(axis=1))
            for start in range(0, resamples, step)
        ]
    )
    low, high = expanded_percentiles(found, n)
    # A mean of equal values may differ from its resamples in the last place.
    return Interval(value, min(low, value), max(high, value))


def expanded_percentiles(found: Sequence[float] | Array, n: int) -> tuple[float, float]:
    """The ends of a 95 % interval among resampled figures of n independent units; NaN are left out."""
    import numpy as np

    tail = 100 * _tail(n)
    low, high = np.nanpercentile(found, [tail, 100 - tail])
    return float(low), float(high)


def _tail(n: int) -> float:
    """The share of the resamples beyond each end: Phi(-sqrt(n / (n - 1)) t), with t of n - 1 degrees of freedom."""
    from scipy import stats

    if n == 1:
        return 0.0
    return float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)))


def paired_difference(
    base: Sequence[float], aligned: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of aligned - base over the same prompts, with its bootstrap interval.

    Args:
        base, aligned: [n] each, value i of both from prompt i.
    """
    return bootstrap_mean([b - a for a, b in zip(base, aligned, strict=True)], resamples, seed)


def randomisation_test(differences: Sequence[float], flips: int = 10_000, seed: int = 0) -> float:
    """Two-sided probability of a mean difference at least as large if the two sides were exchangeable (Fisher 1935).

    The sign of each difference is flipped at random. The observed signs count as one of the draws, so the probability
    is (k + 1) / (flips + 1) and never 0 (Phipson and Smyth 2010).

    Args:
        differences: [n], one per independent unit (prompt), at least one.
        flips: how many random flips of all signs.
        seed: the same seed gives the same probability.
    """
    import numpy as np

    data_N = np.asarray(differences, dtype=np.float64)
    if data_N.ndim != 1 or len(data_N) == 0:
        raise ValueError(f"need a flat list of at least one value, got shape {data_N.shape}")
    rng = np.random.default_rng(seed)
    # Sums that are equal but for rounding are ties, and ties count as at least as large.
    observed = abs(data_N.sum()) - 1e-9 * np.abs(data_N).sum()
    step = max(1, CHUNK // len(data_N))
    extreme = 0
    for start in range(0, flips, step):
        signs_RN = np.where(rng.random((min(step, flips - start), len(data_N))) < 0.5, -1.0, 1.0)
        extreme += int((np.abs(signs_RN @ data_N) >= observed).sum())
    return (extreme + 1) / (flips + 1)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities adjusted for their number (Holm 1979): the chance of any false one stays below the level.

    Args:
        probabilities: [n], in any order; the result is in the same order.
    """
    n = len(probabilities)
    adjusted = [0.0] * n
    worst = 0.0
    for rank, place in enumerate(sorted(range(n), key=lambda i: probabilities[i])):
        worst = max(worst, min(1.0, (n - rank) * probabilities[place]))
        adjusted[place] = worst
    return adjusted


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean, from the spread of the values (ddof 1); None of a single one."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def says_nothing(figure: Mapping[str, Any]) -> bool:
    """Whether an interval has no width because its few values are all equal: a bootstrap can only draw that value.

    Args:
        figure: ci_low, ci_high and n, as summary.json has them.
    """
    return bool(figure["ci_low"] == figure["ci_high"] and figure["n"] < FEW)
