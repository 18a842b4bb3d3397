"""Several judges on the same answers: the mean of their scores, and how far they agree.

An answer has a score where every judge gave it one: a mean over fewer would set the lenient judges' answers against
the strict ones'. Agreement is counted on preferences, as pairs are made of those: for every two answers of a row each
judge prefers the one, the other, or neither.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping, Sequence
from itertools import combinations
from typing import Any

from prefloop.backends.base import Result
from prefloop.records import CandidatesRow, PartScores
from prefloop.signals.base import Call, Rating
from prefloop.signals.judge.lockstep import together
from prefloop.signals.judge.modes import DECIMALS
from prefloop.signals.judge.signal import JudgeSignal

# Counts of what the judges said of two answers: behind it a letter for each judge.
SAID = "said:"
FIRST, SECOND, NEITHER, NOTHING = "+", "-", "=", "?"


class PanelSignal:
    """Signal `judge`, with several models.

    Args:
        judges: at least two of one mode, that differ in their backends.
    """

    def __init__(self, judges: Sequence[JudgeSignal]) -> None:
        self.judges = list(judges)
        first = self.judges[0]
        self.pairwise = first.pairwise
        self.name = f"panel-of-{len(self.judges)}-{first.name}"
        self.identity: dict[str, Any] = {**first.identity, "panel": len(self.judges)}

    def try_template(self) -> None:
        """See `JudgeSignal.try_template`."""
        self.judges[0].try_template()

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """Score the completions of one row.

        Counts: the sums over the judges, each judge's own behind its name ("judge2/verdicts"), and how often the
        judges said what of two answers ("said:+-": the first judge prefers the first of them, the second the other).
        Parts: each judge's scores, and behind its name those by criterion ("judge2/clarity").
        """
        ratings = yield from together([judge.rate(row) for judge in self.judges])
        names = [judge.manner.backend for judge in self.judges]
        counts: defaultdict[str, float] = defaultdict(float)
        parts: list[PartScores] = []
        for name, rating in zip(names, ratings, strict=True):
            for key, value in rating.counts.items():
                counts[key] += value
                counts[f"{name}/{key}"] = value
            parts.append({"name": name, "scores": rating.scores})
            parts += [{"name": f"{name}/{part['name']}", "scores": part["scores"]} for part in rating.parts]
        columns = [rating.scores for rating in ratings]
        for i, j in combinations(range(len(row["completions"])), 2):
            counts[SAID + "".join(_said(scores[i], scores[j]) for scores in columns)] += 1
        return Rating([_mean(scores) for scores in zip(*columns, strict=True)], dict(counts), parts)


def _said(a: float | None, b: float | None) -> str:
    if a is None or b is None:
        return NOTHING
    return FIRST if a > b else SECOND if a < b else NEITHER


def _mean(scores: Sequence[float | None]) -> float | None:
    there = [score for score in scores if score is not None]
    return round(math.fsum(there) / len(there), DECIMALS) if there and len(there) == len(scores) else None


def agreement(counts: Mapping[str, float]) -> dict[str, float]:
    """How far the judges of a panel agree, from their summed counts.

    Returns:
        alpha: Krippendorff's, nominal, of all judges over preferences between two answers; judges without a verdict on
        a pair are missing there. `kappa/1-2`, …: Cohen's, of every two judges, over the pairs on which both have a
        verdict. 1 is full agreement, 0 that of chance; absent where it is not defined (no pair, or every judge always
        says the same one thing). Empty where there is no panel.
    """
    said = Counter({key.removeprefix(SAID): int(n) for key, n in counts.items() if key.startswith(SAID) and n})
    if not said:
        return {}
    found: dict[str, float] = {}
    if (alpha := _alpha(said)) is not None:
        found["alpha"] = alpha
    for i, j in combinations(range(len(next(iter(said)))), 2):
        if (kappa := _kappa(said, i, j)) is not None:
            found[f"kappa/{i + 1}-{j + 1}"] = kappa
    return found


def _alpha(said: Counter[str]) -> float | None:
    # NLTK's, not the package `krippendorff`: that one is under the GPL.
    from nltk.metrics.agreement import AnnotationTask

    data = []
    for pattern, times in said.items():
        given = [(judge, label) for judge, label in enumerate(pattern) if label != NOTHING]
        if len(given) > 1:
            data += [(judge, f"{pattern} {k}", label) for k in range(times) for judge, label in given]
    return float(AnnotationTask(data).alpha()) if len({label for _, _, label in data}) > 1 else None


def _kappa(said: Counter[str], i: int, j: int) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    table: Counter[tuple[str, str]] = Counter()
    for pattern, times in said.items():
        if NOTHING not in (pattern[i], pattern[j]):
            table[pattern[i], pattern[j]] += times
    if len({label for cell in table for label in cell}) < 2:
        return None
    first, second = zip(*table, strict=True)
    return float(cohen_kappa_score(first, second, sample_weight=list(table.values())))
