"""Answers of a system to many questions: each measure's mean with its interval.

The measures of one answer are in `signals.qa`, where the reader's labels need them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefloop.evaluate.stats import mean_interval
from prefloop.signals.qa import Judged, abstains, containment, exact_match, judge, normalised, token_f1

__all__ = [
    "MEASURES",
    "Judged",
    "abstains",
    "containment",
    "exact_match",
    "judge",
    "normalised",
    "summarise",
    "token_f1",
]

MEASURES = ("exact_match", "containment", "f1", "abstained")


def summarise(judged: Sequence[Judged], *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Every measure's mean over the questions with its 95 % interval, and n.

    Args:
        judged: at least one.
    """
    found: dict[str, Any] = {
        name: mean_interval([float(getattr(j, name)) for j in judged], resamples, seed).json() for name in MEASURES
    }
    return found | {"n": len(judged)}
