"""The whole measurement of two models' answers: win rate, checkers, lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prefloop.backends.base import Backend
from prefloop.config import EvaluateSection
from prefloop.evaluate.answers import join, mean_lengths
from prefloop.evaluate.checkers import check
from prefloop.evaluate.rouge import rouge
from prefloop.evaluate.win_rate import Comparison, compare, uncompared
from prefloop.records import CandidatesRow
from prefloop.signals.base import Signal
from prefloop.signals.references import load as load_references

NOBODY = "no signal compares the answers; set evaluate.judge"


@dataclass(frozen=True)
class Evaluated:
    """What the evaluation says.

    Attributes:
        summary: `evaluate` of summary.json: win_rate (or, where nobody compares, `not_measured`, which says why),
            lengths, and one key per group of checkers.
        comparison: the comparison behind the win rate, with its rows and calls.
    """

    summary: dict[str, Any]
    comparison: Comparison


def evaluate(
    base: Iterable[CandidatesRow],
    aligned: Iterable[CandidatesRow],
    section: EvaluateSection,
    signal: Signal | None,
    backends: Mapping[str, Backend],
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluated:
    """Compare two models' answers to the same prompts.

    Args:
        base, aligned: the answers; joined by id and sample index, so their order does not matter.
        section: checkers and bootstrap; its prompts, sample and judge are the caller's business.
        signal, backends: who compares; None: nobody, and there is no win rate.
        seed: of the bootstraps.
        on_progress: told (rows compared, rows in all).
    """
    rows = join(base, aligned)
    summary: dict[str, Any] = {}
    if signal is None:
        comparison = uncompared(rows)
        summary["not_measured"] = {"win_rate": NOBODY}
    else:
        comparison = compare(rows, signal, backends, resamples=section.bootstrap, seed=seed, on_progress=on_progress)
        summary["win_rate"] = comparison.summary | {"signal": signal.identity}
    summary["lengths"] = mean_lengths(rows)
    for group, checkers in section.checkers.items():
        functions = {name: checker.function for name, checker in checkers.items()}
        costs = [name for name, checker in checkers.items() if checker.lower_is_better]
        summary[group] = check(functions, rows, lower_is_better=costs, resamples=section.bootstrap, seed=seed)
    if section.references is not None:
        references = load_references(section.references)
        summary["rouge"] = rouge(rows, references, resamples=section.bootstrap, seed=seed)
    return Evaluated(summary, comparison)
