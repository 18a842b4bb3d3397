"""How a judge that is one of the compared models rates its own answers.

A judge may prefer what reads like itself (Panickssery et al. 2024). Its own win rate alone does not say so, as its
answers may be the better ones: it is to be held against that of another judge on the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.evaluate.answers import by_prompt
from prefloop.evaluate.compare import Judged
from prefloop.evaluate.stats import mean_interval
from prefloop.records import CandidatesRow


def self_preference(
    judged: Judged, rows: Sequence[CandidatesRow], model: str, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any] | None:
    """Mean probability that the judge finds its own answer better, over the comparisons of a model with the others.

    Args:
        judged: what the judge says of all models.
        rows: the compared rows.
        model: the one that is the judge.
        resamples, seed: of the bootstrap over prompts.

    Returns:
        value, ci_low, ci_high (0..1; 0.5: as good as the others) and n (prompts); None without any verdict.
    """
    won: list[list[float]] = [[] for _ in rows]
    for (a, b), preferences in judged.preferences.items():
        if model in (a, b):
            for place, p in enumerate(preferences):
                if p is not None:
                    won[place].append(p if model == b else 1 - p)
    groups = [[p for ps in group for p in ps] for group in by_prompt(rows, won)]
    means = [sum(group) / len(group) for group in groups if group]
    return mean_interval(means, resamples, seed).json() | {"n": len(means)} if means else None


def of_the_base(win_rate: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a base that judges its successor, from the successor's win rate."""
    value, low, high = (1 - win_rate[name] for name in ("value", "ci_high", "ci_low"))
    return {"value": value, "ci_low": low, "ci_high": high, "n": win_rate["n"]}
