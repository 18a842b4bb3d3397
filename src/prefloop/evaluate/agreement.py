"""How well judges agree: with people, with each other, and next to judges that do not read at all.

A verdict is P(the second answer is better), 0..1: above 0.5 it is for the second answer, below for the first, at 0.5 a
tie; None is no verdict, and no agreement is counted where one of the two has none. Two trivial judges always stand
beside the real ones: `longest` prefers the longer answer, `random` tosses a coin. A judge that does not beat them has
not been shown to read.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from prefloop.errors import UsageError
from prefloop.evaluate.stats import bootstrap_mean
from prefloop.inputs.agreement import cohen_kappa
from prefloop.records import content_id

Verdicts = Sequence[float | None]
TRIVIAL = ("longest", "random")

# AlpacaEval's "probability of preferring the longer" counts pairs whose lengths differ by more than this, characters.
LONGER_BY = 30


def sign(verdict: float) -> int:
    """1 for the second answer, -1 for the first, 0 for a tie."""
    return (verdict > 0.5) - (verdict < 0.5)


def agreement(judge: Verdicts, gold: Verdicts, *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """How often a judge says what another (people, say) says of the same pairs, one pair a prompt.

    Args:
        judge, gold: [n] verdicts, pair i of both the same.
        resamples, seed: of the bootstrap over pairs.

    Returns:
        accuracy {value, ci_low, ci_high}: share of equal signs, ties a class of their own; n: pairs with both
        verdicts; decided, the same over the pairs that neither calls a tie, and n_decided; kappa, Cohen's, by chance 0
        and at best 1; n_null. What has no pair to be measured on, and kappa of one class only, is None.
    """
    both = [(sign(a), sign(b)) for a, b in zip(judge, gold, strict=True) if a is not None and b is not None]
    decided = [pair for pair in both if 0 not in pair]
    return {
        "accuracy": _share([float(a == b) for a, b in both], resamples, seed),
        "n": len(both),
        "decided": _share([float(a == b) for a, b in decided], resamples, seed),
        "n_decided": len(decided),
        "kappa": cohen_kappa([a for a, _ in both], [b for _, b in both]),
        "n_null": len(judge) - len(both),
    }


def longest(lengths: Sequence[tuple[int, int]]) -> list[float]:
    """The verdicts of a judge that prefers the longer answer; equal lengths are a tie.

    Args:
        lengths: [n] of (first, second), in any unit.
    """
    return [(sign(0.5 + second - first) + 1) / 2 for first, second in lengths]


def coin(ids: Sequence[str], seed: int = 0) -> list[float]:
    """The verdicts of a judge that tosses a coin, for each pair by its id: the same whatever the order of the rows."""
    return [float(random.Random(content_id("coin", seed, name)).random() < 0.5) for name in ids]


def table(
    judges: Mapping[str, Verdicts],
    gold: Verdicts,
    lengths: Sequence[tuple[int, int]],
    ids: Sequence[str],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Every judge against the gold verdicts, with `longest` and `random` beside them.

    Args:
        judges: name -> [n] verdicts.
        gold: [n].
        lengths: [n] of (first, second), in characters.
        ids: [n], of the pairs.

    Returns:
        name -> what `agreement` returns and prefers_longer (see there), the trivial judges last.

    Raises:
        UsageError: a judge has a trivial one's name.
    """
    if taken := sorted(judges.keys() & set(TRIVIAL)):
        raise UsageError(f"a judge is called {taken[0]!r}, as a trivial one is", fix="give it another name")
    everybody = {**judges, "longest": longest(lengths), "random": coin(ids, seed)}
    return {
        name: agreement(verdicts, gold, resamples=resamples, seed=seed)
        | {"prefers_longer": prefers_longer(verdicts, lengths)}
        for name, verdicts in everybody.items()
    }


def prefers_longer(verdicts: Verdicts, lengths: Sequence[tuple[int, int]]) -> float | None:
    """Share of decided pairs, of answers whose lengths differ by more than 30 characters, that the longer one won."""
    won = [
        (second > first) == (verdict > 0.5)
        for verdict, (first, second) in zip(verdicts, lengths, strict=True)
        if verdict is not None and verdict != 0.5 and abs(second - first) > LONGER_BY
    ]
    return sum(won) / len(won) if won else None


def human_agreement(judge: Sequence[Verdicts], people: Sequence[Verdicts]) -> float:
    """AlpacaFarm's "human agreement", 0..1 (Dubois et al. 2023; alpaca_eval 0.6.6 with discrete votes).

    For each person the judge's vote is compared with the mode of the *other* people's, and the shares averaged; so a
    person is scored as a judge is, against as many. Where two modes tie, one half of the agreement counts: AlpacaEval
    draws one of them with a fixed seed, which comes to the same on average.

    Args:
        judge: for each seed or rater r the judge's verdicts [n]; one list stands for all raters.
        people: for each person r the verdicts [n] of the same pairs.

    Raises:
        UsageError: fewer than two people, or the lists do not fit.
    """
    if len(people) < 2 or len(judge) not in (1, len(people)):
        raise UsageError(
            f"{len(judge)} lists of the judge's verdicts and {len(people)} people", fix="give two people or more"
        )
    shares = []
    for r in range(len(people)):
        votes = judge[r] if len(judge) > 1 else judge[0]
        others = [person for o, person in enumerate(people) if o != r]
        said = [
            _match(sign(vote), [sign(v) for v in rest if v is not None])
            for vote, *rest in zip(votes, *others, strict=True)
            if vote is not None and any(v is not None for v in rest)
        ]
        if said:
            shares.append(sum(said) / len(said))
    if not shares:
        raise UsageError("no pair has a verdict of the judge and of people", fix="look at the votes")
    return sum(shares) / len(shares)


def _match(vote: int, others: Sequence[int]) -> float:
    counts = Counter(others)
    modes = [value for value, n in counts.items() if n == max(counts.values())]
    return (vote in modes) / len(modes)


def between_judges(judges: Mapping[str, Verdicts], ids: Sequence[str]) -> list[dict[str, Any]]:
    """Every two judges: agreement of signs, Spearman's correlation of their verdicts, and where they disagree.

    Args:
        judges: name -> [n] verdicts.
        ids: [n], of the pairs.

    Returns:
        One row for every two: judges (two names), agreement (share of equal signs, None without a pair), spearman
        (None where one says the same of all), n, disagree (ids of the pairs that they decide differently, ties aside).
    """
    from scipy.stats import spearmanr

    rows = []
    for (name_a, a), (name_b, b) in combinations(judges.items(), 2):
        both = [(x, y, i) for x, y, i in zip(a, b, ids, strict=True) if x is not None and y is not None]
        varied = all(len({row[side] for row in both}) > 1 for side in (0, 1))
        rows.append(
            {
                "judges": [name_a, name_b],
                "agreement": sum(sign(x) == sign(y) for x, y, _ in both) / len(both) if both else None,
                "spearman": float(spearmanr([x for x, _, _ in both], [y for _, y, _ in both])[0]) if varied else None,
                "n": len(both),
                "disagree": [i for x, y, i in both if sign(x) * sign(y) < 0],
            }
        )
    return rows


def _share(values: list[float], resamples: int, seed: int) -> dict[str, float] | None:
    if not values:
        return None
    return bootstrap_mean(values, resamples, seed).json()
