"""How far several raters agree beyond chance, on verdicts without an order (nominal).

Both measures are 1 where all agree, 0 where they agree as often as chance would have it, below 0 where less often.
Alpha is NLTK's and not that of the package `krippendorff`, which is under the GPL; kappa is scikit-learn's.
"""

from __future__ import annotations

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
        >>> round(krippendorff_alpha([["a", "a"], ["b", "b"], ["a", "b"], ["a", "a"]]), 6)
        0.533333
    """
    from nltk.metrics.agreement import AnnotationTask

    data = [
        (rater, number, verdict)
        for number, unit in enumerate(units)
        if len(unit) > 1
        for rater, verdict in enumerate(unit)
    ]
    return float(AnnotationTask(data).alpha()) if len({verdict for _, _, verdict in data}) > 1 else None


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two raters over the same things, in the same order.

    Returns:
        (observed - chance) / (1 - chance); None without things, or where both only ever gave one verdict.

    Source: Cohen, A coefficient of agreement for nominal scales (1960).

    Example:
        >>> round(cohen_kappa(["a", "a", "b", "b"], ["a", "b", "b", "b"]), 6)
        0.5
    """
    from sklearn.metrics import cohen_kappa_score

    if len(first) != len(second):
        raise ValueError(f"{len(first)} verdicts of one rater and {len(second)} of the other")
    verdicts = list(dict.fromkeys([*first, *second]))
    if len(verdicts) < 2:
        return None
    # By number: verdicts may be of any kind.
    codes = [[verdicts.index(verdict) for verdict in side] for side in (first, second)]
    return float(cohen_kappa_score(*codes))
