"""Ratings of many models from battles of two: Bradley-Terry (1952), on Elo's scale, with a bootstrap over prompts.

    P(a beats b) = sigmoid(s_a - s_b),   rating = 1000 + 400 / ln 10 · s

A battle's weight is what its verdict counts; a tie counts half for both. The log-likelihood is maximised by Newton's
method under a ridge of 1e-6, which moves no rating visibly where there is one to be found, and keeps that of a model
which won everything finite.

Where every model meets one baseline only, this is the weighted mean outcome on another scale, and adds nothing to it
(tests/evaluate/test_ratings.py::test_against_one_baseline_it_is_the_mean_outcome).

Suffixes: M models, K pairs of models that met, P prompts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from prefloop.errors import UsageError
from prefloop.evaluate.stats import expanded_percentiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RIDGE = 1e-6
CENTRE = 1000.0
SCALE = 400 / math.log(10)
STEPS, TOLERANCE = 100, 1e-10


class Battle(NamedTuple):
    """One comparison: `score` is what the first model got of it, 0..1 (0.5 a tie); `weight` is what it counts."""

    prompt: str
    first: str
    second: str
    score: float
    weight: float = 1.0


@dataclass(frozen=True)
class Ratings:
    """Models rated.

    Attributes:
        models: name -> {"rating": {value, ci_low, ci_high}, "battles": how many it fought}, the best first. The ends
            are None where no resample counts.
        prompts, battles: how many there were.
        unbounded: models that cannot be placed against the largest group in which everybody has lost and won: their
            ratings are held by the ridge alone and say only above or below.
        left_out: resamples in which the models fell apart into groups that never met; they do not count.
    """

    models: dict[str, dict[str, Any]]
    prompts: int
    battles: int
    unbounded: list[str]
    left_out: int

    def json(self) -> dict[str, Any]:
        """The form of a results file."""
        return {
            "models": self.models,
            "prompts": self.prompts,
            "battles": self.battles,
            "unbounded": self.unbounded,
            "left_out": self.left_out,
        }


def expected(rating_a: float, rating_b: float) -> float:
    """P(a beats b) by their ratings, 0..1: 1 / (1 + 10^((b - a) / 400))."""
    return 1 / (1 + 10 ** ((rating_b - rating_a) / 400))


def bradley_terry(
    battles: Sequence[Battle], *, anchor: str | None = None, resamples: int = 1000, seed: int = 0
) -> Ratings:
    """Rate the models of all battles together.

    Args:
        battles: any order; those of one prompt are one unit of the bootstrap.
        anchor: the model whose rating is 1000; None: the mean is.
        resamples, seed: of the bootstrap over prompts.

    Raises:
        UsageError: no battles, an impossible score or weight, an anchor that never fought, or models that fall apart
            into groups which never met (names them).
    """
    import numpy as np

    names = sorted({name for battle in battles for name in (battle.first, battle.second)})
    _check(battles, names, anchor)
    seat = {name: m for m, name in enumerate(names)}
    prompts = {name: p for p, name in enumerate(dict.fromkeys(battle.prompt for battle in battles))}
    pairs = {key: k for k, key in enumerate(sorted({_pair(battle, seat) for battle in battles}))}
    first_K, second_K = (np.array([key[side] for key in pairs]) for side in (0, 1))
    won_PK, fought_PK = np.zeros((len(prompts), len(pairs))), np.zeros((len(prompts), len(pairs)))
    for battle in battles:
        key = _pair(battle, seat)
        p, k = prompts[battle.prompt], pairs[key]
        won_PK[p, k] += battle.weight * (battle.score if key[0] == seat[battle.first] else 1 - battle.score)
        fought_PK[p, k] += battle.weight
    won_K, fought_K = won_PK.sum(axis=0), fought_PK.sum(axis=0)
    strength_M = _solve(first_K, second_K, won_K, fought_K, len(names))
    centre = None if anchor is None else seat[anchor]
    rng = np.random.default_rng(seed)
    rated: list[Array] = []
    left_out = 0
    for _ in range(resamples):
        count_P = np.bincount(rng.integers(0, len(prompts), len(prompts)), minlength=len(prompts))
        fought = count_P @ fought_PK
        if len(_groups(first_K[fought > 0], second_K[fought > 0], len(names))) > 1:
            left_out += 1
            continue
        again_M = _solve(first_K, second_K, count_P @ won_PK, fought, len(names))
        rated.append(_ratings(again_M, centre))
    value_M = _ratings(strength_M, centre)
    models: dict[str, dict[str, Any]] = {}
    for name in sorted(names, key=lambda n: (-value_M[seat[n]], n)):
        again = [float(ratings_M[seat[name]]) for ratings_M in rated]
        low, high = expanded_percentiles(again, len(prompts)) if again else (None, None)
        models[name] = {
            "rating": {"value": float(value_M[seat[name]]), "ci_low": low, "ci_high": high},
            "battles": sum(name in (battle.first, battle.second) for battle in battles),
        }
    unbounded = [names[m] for m in _outside(first_K, second_K, won_K, fought_K, len(names))]
    return Ratings(models, len(prompts), len(battles), unbounded, left_out)


def _check(battles: Sequence[Battle], names: Sequence[str], anchor: str | None) -> None:
    import numpy as np

    if not battles:
        raise UsageError("there are no battles to rate by", fix="give verdicts between two models")
    for i, battle in enumerate(battles):
        fault = None
        if not 0 <= battle.score <= 1:
            fault = f"score {battle.score:g} is not in 0..1"
        elif not (battle.weight > 0 and math.isfinite(battle.weight)):
            fault = f"weight {battle.weight:g} is not above 0"
        elif battle.first == battle.second:
            fault = f"{battle.first!r} against itself"
        if fault:
            raise UsageError(fault, where=f"battle {i}, prompt {battle.prompt}", fix="correct the verdicts")
    if anchor is not None and anchor not in names:
        raise UsageError(f"{anchor!r} never fought", fix=f"one of: {', '.join(names)}")
    seat = {name: m for m, name in enumerate(names)}
    groups = _groups(
        np.array([seat[b.first] for b in battles]), np.array([seat[b.second] for b in battles]), len(names)
    )
    if len(groups) > 1:
        said = "; ".join(", ".join(names[m] for m in group) for group in groups)
        raise UsageError(
            f"the models fall apart into {len(groups)} groups that never met: {said}",
            fix="rate each group alone, or add verdicts between them",
        )


def _pair(battle: Battle, seat: dict[str, int]) -> tuple[int, int]:
    a, b = seat[battle.first], seat[battle.second]
    return (a, b) if a < b else (b, a)


def _ratings(strength_M: Array, centre: int | None) -> Array:
    zero = strength_M.mean() if centre is None else strength_M[centre]
    ratings_M: Array = CENTRE + SCALE * (strength_M - zero)
    return ratings_M


def _solve(first_K: Array, second_K: Array, won_K: Array, fought_K: Array, n: int) -> Array:
    """Strengths [n] that maximise the log-likelihood less the ridge; concave, so Newton finds the one maximum."""
    import numpy as np

    design_KM = np.zeros((len(first_K), n))
    design_KM[np.arange(len(first_K)), first_K] = 1
    design_KM[np.arange(len(first_K)), second_K] = -1
    return newton(design_KM, won_K, fought_K)


def newton(design_KF: Array, won_K: Array, weight_K: Array) -> Array:
    """Coefficients [f] of a logistic regression without intercept, ridge 1e-6.

    Args:
        design_KF: features.
        won_K: weight of the wins, 0..weight.
        weight_K: weight of wins and losses together.
    """
    import numpy as np

    w_F = np.zeros(design_KF.shape[1])
    penalty = RIDGE * np.eye(len(w_F))

    def objective(w: Array) -> float:
        logit = design_KF @ w
        return float(np.sum(weight_K * np.logaddexp(0, logit) - won_K * logit) + RIDGE * (w @ w) / 2)

    for _ in range(STEPS):
        p_K = np.exp(-np.logaddexp(0, -design_KF @ w_F))
        slope_F = design_KF.T @ (weight_K * p_K - won_K) + RIDGE * w_F
        step_F = np.linalg.solve((design_KF.T * (weight_K * p_K * (1 - p_K))) @ design_KF + penalty, slope_F)
        size, here = 1.0, objective(w_F)
        # A full step may overshoot where the likelihood is flat.
        while size > TOLERANCE and objective(w_F - size * step_F) > here:
            size /= 2
        w_F = w_F - size * step_F
        if np.abs(size * step_F).max() < TOLERANCE:
            break
    return w_F


def _groups(first_K: Array, second_K: Array, n: int) -> list[list[int]]:
    """Models that are joined by battles, directly or through others."""
    return _components(first_K, second_K, n, "weak")


def _outside(first_K: Array, second_K: Array, won_K: Array, fought_K: Array, n: int) -> list[int]:
    """Models outside the largest set in which each is tied to each by a chain of wins (Ford 1957)."""
    import numpy as np

    wins, losses = won_K > 0, won_K < fought_K
    winners = np.concatenate([first_K[wins], second_K[losses]])
    losers = np.concatenate([second_K[wins], first_K[losses]])
    sets = _components(winners, losers, n, "strong")
    largest = max(sets, key=len)
    return sorted(m for members in sets if members is not largest for m in members)


def _components(source_K: Array, target_K: Array, n: int, connection: str) -> list[list[int]]:
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(source_K)), (source_K, target_K)), shape=(n, n))
    count, label_M = connected_components(graph, connection=connection)
    return [np.flatnonzero(label_M == c).tolist() for c in range(count)]
