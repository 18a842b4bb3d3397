"""Two sides measured on the same units (prompts, documents): a difference, its interval, a test, a verdict in words.

A verdict needs two things: the 95 % interval of the difference lies on one side of 0, and a randomisation test says so
too after Holm's correction for all the contrasts that were looked at together. Everything else is "no detectable
difference", which is not "equal".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefloop.evaluate.stats import SIGNIFICANT, holm, paired_difference, randomisation_test, standard_error

HIGHER, LOWER, SAME = "higher", "lower", "no detectable difference"


def contrast(
    base: Sequence[float], other: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """other - base over the same units.

    Args:
        base, other: [n] each, value i of both from unit i, at least one.
        resamples: of the bootstrap, and flips of the test.

    Returns:
        value, ci_low, ci_high, standard_error (None of one unit), p_value and n.
    """
    differences = [b - a for a, b in zip(base, other, strict=True)]
    return {
        **paired_difference(base, other, resamples, seed).json(),
        "standard_error": standard_error(differences),
        "p_value": randomisation_test(differences, resamples, seed),
        "n": len(differences),
    }


def decide(contrasts: Sequence[dict[str, Any]]) -> None:
    """Add `p_holm` and `verdict` to each of the contrasts that are looked at together.

    `verdict` is "higher" or "lower" (the second side against the first) or "no detectable difference".
    """
    for entry, adjusted in zip(contrasts, holm([c["p_value"] for c in contrasts]), strict=True):
        entry["p_holm"] = adjusted
        entry["verdict"] = verdict(entry)


def verdict(entry: dict[str, Any]) -> str:
    """The verdict on a contrast that has its `p_holm`.

    Where all differences are the same the interval has no width and lies on one side of 0 however few they are; the
    test then decides alone: of six equal differences it says "higher", of five it does not.
    """
    if entry["p_holm"] >= SIGNIFICANT or entry["ci_low"] is None:  # not defined: nothing is said
        return SAME
    return HIGHER if entry["ci_low"] > 0 else LOWER if entry["ci_high"] < 0 else SAME
