"""Several models against one base on the same prompts, by one or more signals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from prefloop.backends.base import Backend
from prefloop.config import EvaluateSection
from prefloop.evaluate.agreement import agreement
from prefloop.evaluate.answers import join
from prefloop.evaluate.contrasts import contrast, decide
from prefloop.evaluate.perplexity import BASE, of_pair, perplexity
from prefloop.evaluate.run import evaluate
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
    language: Backend | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Compare each model with the base, and the models with each other through it.

    Args:
        base, models: answers to the same prompts.
        section: checkers and bootstrap.
        comparers: who compares; the first one's verdicts are the win rate. Empty: nobody, and there is none.
        language: the base itself, by whose probabilities the answers' perplexity is measured; None: it is not.
        seed: of the bootstraps.
        on_progress: told (rows compared, rows in all), of one comparison after the other.

    Returns:
        `summary` of a single model is what `evaluate.run` says of it; of several, the winner's, with `winner`,
        `branches` (model -> what is said of it) and `differences`. Further signals stand under `also`: name ->
        win_rate and agreement with the first.
    """
    found = Measured({})
    said: dict[str, dict[str, Any]] = {}
    likely = (
        None
        if language is None
        else perplexity({BASE: base, **models}, language, resamples=section.bootstrap, seed=seed)
    )
    main, signal, backends = comparers[0] if comparers else ("", None, {})
    for name, answers in models.items():
        evaluated = evaluate(base, answers, section, signal, backends, seed=seed, on_progress=on_progress)
        said[name] = evaluated.summary
        if likely is not None:
            said[name]["perplexity"] = of_pair(likely, name)
        mine = found.comparisons[name] = {main: evaluated.comparison}
        for other in comparers[1:]:
            rows = join(base, answers)
            comparison = compare(
                rows, other.signal, other.backends, resamples=section.bootstrap, seed=seed, on_progress=on_progress
            )
            mine[other.name] = comparison
            said[name].setdefault("also", {})[other.name] = {
                "win_rate": comparison.summary | {"signal": other.signal.identity},
                "agreement": agreement(
                    comparison.preferences, evaluated.comparison.preferences, resamples=section.bootstrap, seed=seed
                ),
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
        for two models and a signal: a, b, signal and what `contrasts.contrast` and `decide` say, Holm's correction
        over the models of a signal.
    """
    entries: list[dict[str, Any]] = []
    for signal in next(iter(comparisons.values())):
        found = []
        for a, b in combinations(comparisons, 2):
            values = [_by_prompt(comparisons[name][signal]) for name in (a, b)]
            both = sorted(values[0].keys() & values[1].keys())
            if both:
                of_a, of_b = ([side[key] for key in both] for side in values)
                change = contrast(of_a, of_b, resamples=resamples, seed=seed)
                found.append({"a": a, "b": b, "signal": signal, **change})
        decide(found)
        entries += found
    return entries


def _by_prompt(comparison: Comparison) -> dict[str, float]:
    """Mean probability that the model is better, of each prompt with a verdict."""
    groups: dict[str, list[float]] = {}
    for row, p in zip(comparison.rows, comparison.preferences, strict=True):
        if p is not None:
            groups.setdefault(prompt_id(row["prompt"]), []).append(p)
    return {prompt: sum(verdicts) / len(verdicts) for prompt, verdicts in groups.items()}
