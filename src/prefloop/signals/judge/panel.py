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
from prefloop.inputs.agreement import cohen_kappa, krippendorff_alpha
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

    def asking(self, answers: int, tokens: int) -> tuple[int, int, int]:
        """See `JudgeSignal.asking`; of all judges together."""
        calls, read, written = self.judges[0].asking(answers, tokens)
        return calls * len(self.judges), read * len(self.judges), written * len(self.judges)

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
    patterns = list(said.elements())
    given = ([verdict for verdict in pattern if verdict != NOTHING] for pattern in patterns)
    if (alpha := krippendorff_alpha(given)) is not None:
        found["alpha"] = alpha
    for i, j in combinations(range(len(patterns[0])), 2):
        both = [(p[i], p[j]) for p in patterns if NOTHING not in (p[i], p[j])]
        if both and (kappa := cohen_kappa(*zip(*both, strict=True))) is not None:
            found[f"kappa/{i + 1}-{j + 1}"] = kappa
    return found
