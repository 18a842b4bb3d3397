"""Source bias: by how much a retriever prefers human text to rewritten text of the same meaning (Dai et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefloop.evaluate.stats import bootstrap_means
from prefloop.intervals import Interval


def relative_delta(human: float | Sequence[float], llm: float | Sequence[float]) -> float:
    """Relative Δ in percent: 100 (H - L) / ((H + L) / 2), from -200 to 200; below 0 rewritten text is preferred.

    H and L are means over queries, not means of per-query ratios (Cocktail, Dai et al. 2024).

    Args:
        human, llm: a metric (NDCG@k and the like, at least 0) with the judgements pointed at the human texts and at
            the rewritten ones: the mean over queries, or the values of the queries.

    Returns:
        NaN where both are 0: nothing relevant was found of either.

    Raises:
        ValueError: a metric below 0.
    """
    import numpy as np

    means_1C = np.array([[np.mean(human), np.mean(llm)]], dtype=np.float64)
    if (means_1C < 0).any():
        raise ValueError(f"a metric is at least 0, got means of {means_1C[0].tolist()}")
    return float(relative_deltas(means_1C)[0])


def relative_delta_interval(
    human: Sequence[float], llm: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Relative Δ with its 95 % interval; queries are resampled with both their values.

    Args:
        human, llm: [n] each, value i of both from query i.
        resamples, seed: as for `stats.bootstrap_mean`.

    Returns:
        NaN in all three places where both means are 0.
    """
    import numpy as np

    if len(human) != len(llm):
        raise ValueError(f"{len(human)} queries on one side, {len(llm)} on the other")
    values_NC = np.stack([np.asarray(human, dtype=np.float64), np.asarray(llm, dtype=np.float64)], axis=1)
    if (values_NC < 0).any():
        raise ValueError("a metric is at least 0")
    return bootstrap_means(values_NC, relative_deltas, resamples, seed)


def relative_deltas(means_RC: Any) -> Any:
    """Relative Δ of each row (human, rewritten) of means, [r, 2] -> [r]; NaN where both are 0."""
    import numpy as np

    sums_R = means_RC.sum(axis=1)
    with np.errstate(invalid="ignore"):
        # The ratio first: it is exactly 1 or -1 where one side is 0.
        return 200 * ((means_RC[:, 0] - means_RC[:, 1]) / np.where(sums_R == 0, np.nan, sums_R))
