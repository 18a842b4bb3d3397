"""Intervals: a percentile bootstrap over prompts, and Wilson's for shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Resampled values held at once (8 bytes each, twice): memory stays near 64 MB whatever the number of prompts.
CHUNK = 4_000_000

# Below this many prompts a bootstrap interval without width is no evidence: by the rule of three, up to 3 / n of the
# prompts may still be different when n were seen that are all equal.
FEW = 30

# Standard normal quantile of a two-sided 95 % interval.
Z95 = 1.959963984540054


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def json(self) -> dict[str, float]:
        """The form of summary.json."""
        return {"value": self.value, "ci_low": self.low, "ci_high": self.high}


def bootstrap_mean(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval (Efron 1979), 95 %.

    The values are resampled whole, so each must be one independent unit: one prompt. Values that are all equal give
    an interval without width; few prompts give one that is too narrow.

    Args:
        values: [n], at least one.
        resamples: how many.
        seed: the same seed gives the same interval.
    """
    import numpy as np

    data_N = np.asarray(values, dtype=np.float64)
    if data_N.ndim != 1 or len(data_N) == 0:
        raise ValueError(f"need a flat list of at least one value, got shape {data_N.shape}")
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // len(data_N))
    means = [
        data_N[rng.integers(0, len(data_N), size=(min(step, resamples - start), len(data_N)))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(data_N.mean()), float(low), float(high))


def paired_difference(
    base: Sequence[float], aligned: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of aligned - base over the same prompts, with its bootstrap interval.

    Args:
        base, aligned: [n] each, value i of both from prompt i.
    """
    return bootstrap_mean([b - a for a, b in zip(base, aligned, strict=True)], resamples, seed)


def says_nothing(figure: Mapping[str, Any]) -> bool:
    """Whether an interval has no width because its few values are all equal: a bootstrap can only draw that value.

    Args:
        figure: ci_low, ci_high and n, as summary.json has them.
    """
    return bool(figure["ci_low"] == figure["ci_high"] and figure["n"] < FEW)


def wilson(k: int, n: int, z: float = Z95) -> Interval:
    """Share k of n with Wilson's score interval (Wilson 1927); right also for small n and shares near 0 or 1.

    Args:
        k, n: successes and trials, 0 <= k <= n, n > 0.
        z: normal quantile; the default makes it a 95 % interval.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"need 0 <= k <= n and n > 0, got k={k}, n={n}")
    share = k / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it past the share.
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return Interval(share, low, high)
