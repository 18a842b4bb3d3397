"""Shares with their intervals, for the signals' habits and for the evaluation."""

from __future__ import annotations

import math
from typing import NamedTuple

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
