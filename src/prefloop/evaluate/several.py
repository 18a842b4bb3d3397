"""Several models against one base on the same prompts, by one or more signals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from prefloop.backends.base import Backend
from prefloop.config import EvaluateSection
from prefloop.evaluate.answers import join
from prefloop.evaluate.run import evaluate
from prefloop.evaluate.stats import paired_difference
from prefloop.evaluate.win_rate import Comparison, compare
from prefloop.records import CandidatesRow, prompt_id
from prefloop.signals.base import Signal

Rows = Sequence[CandidatesRow]


class Comparer(NamedTuple):
    """A signal that compares answers, under a name of its own, and the models it calls."""

    name: str
    signal: Signal
    backends: Mapping[str, Backend]


@dataclass
class Measured:
    """What the measurement of several models says.

    Attributes:
        summary: see `measure`.
        comparisons: model -> comparer's name -> its comparison with the base; of nobody's, under the name "".
    """

    summary: dict[str, Any]
    comparisons: dict[str, dict[str, Comparison]] = field(default_factory=dict)


def measure(
    base: Rows,
    models: Mapping[str, Rows],
    section: EvaluateSection,
    comparers: Sequence[Comparer],
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Compare each model with the base, and the models with each other through it.

    Args:
        base, models: answers to the same prompts.
        section: checkers and bootstrap.
        comparers: who compares; the first one's verdicts are the win rate. Empty: nobody, and there is none.
        seed: of the bootstraps.
        on_progress: told (rows compared, rows in all), of one comparison after the other.

    Returns:
        `summary` of a single model is what `evaluate.run` says of it; of several, the winner's, with `winner`,
        `branches` (model -> what is said of it) and `differences`. Further signals stand under `also`: name ->
        win_rate and agreement with the first.
    """
    found = Measured({})
    said: dict[str, dict[str, Any]] = {}
    main, signal, backends = comparers[0] if comparers else ("", None, {})
    for name, answers in models.items():
        evaluated = evaluate(base, answers, section, signal, backends, seed=seed, on_progress=on_progress)
        said[name] = evaluated.summary
        mine = found.comparisons[name] = {main: evaluated.comparison}
        for other in comparers[1:]:
            rows = join(base, answers)
            comparison = compare(
                rows, other.signal, other.backends, resamples=section.bootstrap, seed=seed, on_progress=on_progress
            )
            mine[other.name] = comparison
            said[name].setdefault("also", {})[other.name] = {
                "win_rate": comparison.summary | {"signal": other.signal.identity},
                "agreement": agreement(evaluated.comparison, comparison),
            }
    if len(models) == 1:
        found.summary = next(iter(said.values()))
        return found
    measured = {name: summary["win_rate"]["value"] for name, summary in said.items() if "win_rate" in summary}
    winner = max(measured, key=lambda name: measured[name]) if measured else next(iter(said))
    found.summary = {
        **said[winner],
        "winner": winner,
        "branches": said,
        "differences": differences(found.comparisons, section.bootstrap, seed) if comparers else [],
    }
    return found


def differences(
    comparisons: Mapping[str, Mapping[str, Comparison]], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Every two models' win rates over the base, b - a, paired over the prompts on which both have a verdict.

    Returns:
        one entry for two models and a signal: a, b, signal, n, value, ci_low, ci_high.
    """
    entries = []
    for a, b in combinations(comparisons, 2):
        for signal in comparisons[a]:
            values = [_by_prompt(comparisons[name][signal]) for name in (a, b)]
            both = sorted(values[0].keys() & values[1].keys())
            if both:
                of_a, of_b = ([side[key] for key in both] for side in values)
                interval = paired_difference(of_a, of_b, resamples, seed)
                entries.append({"a": a, "b": b, "signal": signal, "n": len(both), **interval.json()})
    return entries


def _by_prompt(comparison: Comparison) -> dict[str, float]:
    """Mean probability that the model is better, of each prompt with a verdict."""
    groups: dict[str, list[float]] = {}
    for row, p in zip(comparison.rows, comparison.preferences, strict=True):
        if p is not None:
            groups.setdefault(prompt_id(row["prompt"]), []).append(p)
    return {prompt: sum(verdicts) / len(verdicts) for prompt, verdicts in groups.items()}


def agreement(first: Comparison, other: Comparison) -> dict[str, float | int]:
    """How often two signals decide the same comparisons alike.

    Returns:
        value: of the rows that both decide, the share with the same winner (0..1); n: those rows; kappa: Cohen's, over
        win, tie and loss of all rows with two verdicts. Without such rows only n = 0.
    """
    from sklearn.metrics import cohen_kappa_score

    both = [(p, q) for p, q in zip(first.preferences, other.preferences, strict=True) if None not in (p, q)]
    signs = [tuple((x > 0.5) - (x < 0.5) for x in pair if x is not None) for pair in both]
    decided = [(p, q) for p, q in signs if p and q]
    found: dict[str, float | int] = {"n": len(decided)}
    if decided:
        found["value"] = sum(p == q for p, q in decided) / len(decided)
    sides = list(zip(*signs, strict=True))
    if signs and len(set(sides[0]) | set(sides[1])) > 1:
        found["kappa"] = float(cohen_kappa_score(sides[0], sides[1]))
    return found
