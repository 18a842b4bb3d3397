"""How far several raters agree beyond chance, on verdicts without an order (nominal).

Both measures are 1 where all agree, 0 where they agree as often as chance would have it, below 0 where less often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal data, any number of raters, missing verdicts allowed.

    Args:
        units: for each thing that was rated the verdicts that it got, in any order; units with fewer than two say
            nothing of agreement and are left out.

    Returns:
        1 - observed / expected disagreement; None where no unit has two verdicts, or only one verdict was ever given.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C.

    Example:
        >>> krippendorff_alpha([["a", "a"], ["b", "b"], ["a", "b"], ["a", "a"]])
        0.5333333333333333
    """
    total: Counter[Hashable] = Counter()
    disagreeing = 0.0  # ordered pairs of unlike verdicts in a unit, over its verdicts but one
    for unit in units:
        if len(unit) < 2:
            continue
        counts = Counter(unit)
        total.update(counts)
        alike = sum(n * (n - 1) for n in counts.values())
        disagreeing += (len(unit) * (len(unit) - 1) - alike) / (len(unit) - 1)
    n = total.total()
    unlike = n * n - sum(count * count for count in total.values())
    return None if unlike == 0 else 1 - (n - 1) * disagreeing / unlike


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two raters over the same things, in the same order.

    Returns:
        (observed - chance) / (1 - chance); None without things, or where both only ever gave one verdict.

    Source: Cohen, A coefficient of agreement for nominal scales (1960).

    Example:
        >>> cohen_kappa(["a", "a", "b", "b"], ["a", "b", "b", "b"])
        0.5
    """
    n = len(first)
    if n != len(second):
        raise ValueError(f"{n} verdicts of one rater and {len(second)} of the other")
    if n == 0:
        return None
    observed = sum(a == b for a, b in zip(first, second)) / n
    counts, other = Counter(first), Counter(second)
    chance = sum(counts[verdict] * other[verdict] for verdict in counts) / (n * n)
    return None if chance == 1 else (observed - chance) / (1 - chance)
