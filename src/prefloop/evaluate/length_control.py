"""AlpacaEval 2's length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475; `length_controlled_v1`).

A logistic model explains the verdicts by three things: how much longer the answer is, how hard the prompt is, and the
model itself. The win rate that it predicts for answers of equal length is the length-controlled one.

    q_i = sigmoid(w_length · tanh(D_i / sd(D)) + w_difficulty · g_i + w_model),   D_i = chars(baseline) - chars(model)

The fit has a counterweight: 1,610 verdicts of the baseline told to be brief, or to be wordy, against itself. They say
what length alone is worth, so a model that cuts off the answers it would lose anyway gains little by it
(tests/evaluate/test_length_control.py::test_without_the_regulariser_truncation_pays). Difficulties belong to
AlpacaEval's 805 prompts and go by position, so other prompts are refused; `length_controlled_minimal` is for those.

Suffixes: N rows with a verdict, M rows, P prompts, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.errors import UsageError
from prefloop.evaluate.alpaca_prompts import require_canonical
from prefloop.evaluate.length_files import (
    OFFICIAL_SHA256,
    Gamed,
    Weights,
    read_difficulties,
    read_gamed,
    read_weights,
)
from prefloop.evaluate.ratings import newton
from prefloop.evaluate.stats import expanded_percentiles
from prefloop.evaluate.win_rate import preference, summarize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Lambda 0.2, halved because two gamed baselines share it.
GAMED_WEIGHT = 0.1
FOLDS = 5
TRACE = 1e-9
# A weight beyond is held by the ridge alone: odds of 20,000 to 1, which no set of verdicts shows.
SEPARATED = 10.0


@dataclass(frozen=True)
class Fit:
    """Weights, one per column of the design, and the inverse strength C that was used."""

    weights_F: list[float]
    C: float


def length_controlled(
    annotations: Sequence[Mapping[str, Any]],
    *,
    gamed: str | Path | None = None,
    difficulties: str | Path | Sequence[float] | None = None,
    weights: Sequence[float] | str | Path | None = None,
    model: str | None = None,
    C: float | None = None,
    where: str | None = None,
) -> dict[str, Any]:
    """Length-controlled win rate of a model on AlpacaEval's 805 prompts, by the published formula.

    With `weights` nothing is fitted. Without, the model is fitted with the regulariser rows, from `gamed` or from the
    hub. The baseline against itself is 50 by definition.

    Args:
        annotations: 805 rows in AlpacaEval's order: instruction, output_1 (the baseline's), output_2, generator_1,
            generator_2, preference (1..2, 0 for a tie, or null, which the fit leaves out and the prediction does not).
        gamed: a file like `df_gamed.csv`; None: the official one from the hub, checked by its SHA-256.
        difficulties: a file like `instruction_difficulty.csv`, or [805] numbers; None: those in the regulariser file.
        weights: length, difficulty, model (`read_weights`), or a file of published ones.
        model: the row's name in that file; None: generator_2.
        C: fixed inverse strength of the L1 penalty; None: chosen by cross-validation, as published.
        where: the file that the rows are from, for messages.

    Returns:
        What `summarize` returns, and length_controlled_winrate and lc_standard_error in percent; weights (`Weights`);
        C (None without a fit); glm_preference [805], the prediction of each row at equal length, 0..1; regulariser,
        the SHA-256 of its file, and official, whether that is the published one (both None without a fit); warnings,
        in words.

    Raises:
        UsageError: other prompts, another order, rows that are missing; files that cannot be read or fetched.
    """
    import numpy as np

    require_canonical([row["instruction"] for row in annotations], where)
    rows = _rows(annotations, where)
    found: dict[str, Any] = dict(summarize([row["preference"] for row in annotations]))
    rule = None if weights is not None and difficulties is not None else read_gamed(gamed)
    g_M = rule.difficulties if difficulties is None and rule is not None else read_difficulties(difficulties)
    fit = None
    if annotations[0].get("generator_1") == annotations[0].get("generator_2") is not None:
        used = Weights(0.0, 0.0, 0.0)
    elif weights is not None:
        used = _given(weights, model or annotations[0].get("generator_2"))
    else:
        assert rule is not None
        fit = fit_three(rows.z_M, g_M, rows.y_M, rule, C=C)
        used = Weights(*fit.weights_F)
    q_M = _sigmoid(used.difficulty * g_M + used.model)
    found["length_controlled_winrate"] = 100 * float(q_M.mean())
    found["lc_standard_error"] = 100 * float(q_M.std(ddof=1) / math.sqrt(len(q_M)))
    found |= {"weights": used, "C": None if fit is None else fit.C, "glm_preference": [float(q) for q in q_M]}
    found["regulariser"] = None if fit is None or rule is None else rule.sha256
    found["official"] = None if fit is None or rule is None else rule.sha256 == OFFICIAL_SHA256
    found["warnings"] = _warnings(found)
    assert np.isfinite(q_M).all()
    return found


def length_controlled_minimal(
    annotations: Sequence[Mapping[str, Any]],
    *,
    resamples: int = 1000,
    seed: int = 0,
    where: str | None = None,
) -> dict[str, Any]:
    """Win rate at equal length by length and a constant alone, for any prompts (`length_controlled_minimal`).

    It has no difficulties and no regulariser, so it is not AlpacaEval's number and can be gamed by cutting off lost
    answers; it must not stand under the other's name.

    The fit is by maximum likelihood, without the L1 penalty of the three-parameter form. That penalty shrinks the
    constant too, and at the strengths that cross-validation picks on some tens of prompts down to 0, a win rate of
    50 whatever the verdicts (test_the_constant_is_not_shrunk_away). Two weights need no penalty: what the
    verdicts do not tell, the interval shows. Of answers of equal lengths this is the win rate itself.

    Args:
        annotations, where: as for `length_controlled`, of any prompts; rows with one instruction are one unit.
        resamples, seed: of the bootstrap over prompts; each fits both weights again.

    Returns:
        What `summarize` returns, and length_controlled_minimal {value, ci_low, ci_high} in percent; weights {length,
        model}; warnings, in words: where equal length lies outside the answers' lengths, and where the verdicts
        have no best fit.

    Raises:
        UsageError: fewer than five prompts have a verdict.
    """
    import numpy as np

    rows = _rows(annotations, where)
    has_N = ~np.isnan(rows.y_M)
    names = [str(row["instruction"]) for row in annotations]
    order = {name: p for p, name in enumerate(dict.fromkeys(n for n, has in zip(names, has_N, strict=True) if has))}
    if len(order) < FOLDS:
        raise UsageError(
            f"only {len(order)} prompts have a verdict", where=where, fix=f"length control needs {FOLDS} or more"
        )
    prompt_N = np.array([order[n] for n, has in zip(names, has_N, strict=True) if has])
    delta_N, y_N = rows.delta_M[has_N], rows.y_M[has_N]

    def fit(count_N: Array) -> Array:
        """Weights of length and constant; a row counts so many times."""
        taken_N = np.repeat(delta_N, count_N.astype(int))
        X_NF = np.stack([standardised(delta_N, taken_N), np.ones_like(delta_N)], axis=1)
        return newton(X_NF, count_N * y_N, count_N)

    weights_F = fit(np.ones_like(y_N))
    rng = np.random.default_rng(seed)
    values = [
        float(_sigmoid(fit(np.bincount(rng.integers(0, len(order), len(order)), minlength=len(order))[prompt_N])[1]))
        for _ in range(resamples)
    ]
    low, high = expanded_percentiles(values, len(order))
    value = float(_sigmoid(weights_F[1]))
    found: dict[str, Any] = dict(summarize([row["preference"] for row in annotations]))
    found["length_controlled_minimal"] = {
        "value": 100 * value,
        "ci_low": 100 * min(low, value),
        "ci_high": 100 * max(high, value),
    }
    found["weights"] = {"length": float(weights_F[0]), "model": float(weights_F[1])}
    moved = _warnings(found | {"length_controlled_winrate": 100 * value})
    found["warnings"] = [*moved, *_unfit(delta_N, y_N, weights_F)]
    return found


def _unfit(delta_N: Array, y_N: Array, weights_F: Array) -> list[str]:
    """Why two weights may say less than their number seems to."""
    import numpy as np

    said = []
    if (delta_N > 0).all() or (delta_N < 0).all():
        side = "shorter" if delta_N[0] > 0 else "longer"
        said.append(
            f"all answers of the model are {side} than the baseline's: the win rate at equal length is extrapolated, "
            "and as good as its interval"
        )
    if (y_N == 1).all() or (y_N == 0).all():
        said.append("all verdicts are for one side: an interval of a fit to them has no width and says nothing")
    elif np.abs(weights_F).max() > SEPARATED:
        said.append(
            "length alone, or length and a constant, decide every verdict: no weights fit best, and the win rate at "
            "equal length is anywhere between 0 and 100 %"
        )
    return said


def predicted_win_rate(first: Weights, second: Weights, difficulties: str | Path | Sequence[float]) -> float:
    """Length-controlled win rate, in percent, of one scored model over another; they need never have met.

    Args:
        first, second: both fitted against one baseline (`read_weights`).
        difficulties: as for `length_controlled`.
    """
    g_M = read_difficulties(difficulties)
    q_M = _sigmoid((first.model - second.model) + (first.difficulty - second.difficulty) * g_M)
    return 100 * float(q_M.mean())


def fit_three(z_M: Array, g_M: Array, y_M: Array, gamed: Gamed | None, *, C: float | None = None) -> Fit:
    """Weights of length, difficulty and model; rows whose preference is NaN are left out.

    Args:
        z_M, g_M, y_M: tanh of the standardised length difference, difficulty, preference 0..1.
        gamed: the regulariser. None is there to be compared with, see the module's docstring.
        C: as for `fit_logistic`.
    """
    import numpy as np

    has_M = ~np.isnan(y_M)
    X_NF = np.stack([z_M, g_M, np.ones_like(z_M)], axis=1)[has_M]
    y_N, weight_N = y_M[has_M], np.ones(int(has_M.sum()))
    if gamed is not None:
        # Regulariser rows first, as in AlpacaEval: the folds go by position.
        X_GF = np.stack([gamed.z_G, gamed.g_G, np.zeros_like(gamed.z_G)], axis=1)
        X_NF, y_N = np.concatenate([X_GF, X_NF]), np.concatenate([gamed.y_G, y_N])
        weight_N = np.concatenate([np.full(len(gamed.y_G), GAMED_WEIGHT), weight_N])
    return fit_logistic(X_NF, y_N, weight_N, C=C)


def fit_logistic(X_NF: Array, y_N: Array, weight_N: Array, *, C: float | None = None) -> Fit:
    """argmin ||w||_1 + C · sum_i s_i · CE(y_i, sigmoid(w·x_i)) over soft labels y, without intercept.

    Args:
        X_NF, y_N, weight_N: features, labels 0..1, weights s.
        C: inverse strength; None: of ten from 1e-4 to 1e4 the one with the least mean cross-entropy in five folds.
    """
    import numpy as np
    from sklearn.model_selection import GroupKFold

    if C is not None:
        return Fit(_solve(X_NF, y_N, weight_N, C).tolist(), C)
    grid = np.logspace(-4, 4, 10)
    loss_FC = []
    # The same folds as AlpacaEval's, which keeps both copies of a row (see `_solve`) in one fold by grouping them.
    for train_N, test_N in GroupKFold(n_splits=FOLDS).split(X_NF, groups=np.arange(len(y_N))):
        loss_FC.append(
            [
                _cross_entropy(
                    _solve(X_NF[train_N], y_N[train_N], weight_N[train_N], c),
                    X_NF[test_N],
                    y_N[test_N],
                    weight_N[test_N],
                )
                for c in grid
            ]
        )
    best = float(grid[int(np.argmin(np.mean(loss_FC, axis=0)))])
    return Fit(_solve(X_NF, y_N, weight_N, best).tolist(), best)


def _solve(X_NF: Array, y_N: Array, weight_N: Array, C: float) -> Array:
    """One liblinear fit; each row stands there as a 1 with weight s·y and as a 0 with weight s·(1 - y)."""
    import inspect

    import numpy as np
    from sklearn.linear_model import LogisticRegression

    # scikit-learn 1.8 says L1 by l1_ratio, and 1.10 no longer knows `penalty`; before, l1_ratio is not for liblinear.
    default = inspect.signature(LogisticRegression).parameters.get("penalty")
    old = default is not None and default.default == "l2"
    model = LogisticRegression(
        C=C,
        solver="liblinear",
        fit_intercept=False,
        random_state=123,
        **({"penalty": "l1"} if old else {"l1_ratio": 1.0}),
    )
    wins_N, losses_N = weight_N * y_N, weight_N * (1 - y_N)
    # liblinear needs both classes; where nobody ever won (or lost) a trace of it stands in.
    wins_N, losses_N = (side_N if side_N.any() else TRACE * weight_N for side_N in (wins_N, losses_N))
    labels_D = np.repeat([1, 0], len(y_N))
    model.fit(np.tile(X_NF, (2, 1)), labels_D, sample_weight=np.concatenate([wins_N, losses_N]))
    weights_F: Array = model.coef_[0]
    return weights_F


def _cross_entropy(weights_F: Array, X_NF: Array, y_N: Array, weight_N: Array) -> float:
    import numpy as np

    q_N = np.clip(_sigmoid(X_NF @ weights_F), 1e-15, 1 - 1e-15)
    return -float(np.mean(weight_N * (y_N * np.log(q_N) + (1 - y_N) * np.log(1 - q_N))))


def _sigmoid(x: Any) -> Any:
    import numpy as np

    return np.exp(-np.logaddexp(0, -x))


@dataclass(frozen=True)
class _Rows:
    """delta_M: chars(baseline) - chars(model); z_M: its tanh, standardised; y_M: preferences 0..1, NaN for none."""

    delta_M: Array
    z_M: Array
    y_M: Array


def _rows(annotations: Sequence[Mapping[str, Any]], where: str | None) -> _Rows:
    import numpy as np

    for i, row in enumerate(annotations):
        for name in ("output_1", "output_2"):
            if not isinstance(row.get(name), str):
                raise UsageError(
                    f"row {i} has no {name}", where=where, fix="length control needs both answers of every row"
                )
    delta_M = np.array([float(len(row["output_1"]) - len(row["output_2"])) for row in annotations])
    given = [preference(row.get("preference"), i) for i, row in enumerate(annotations)]
    y_M = np.array([math.nan if p is None else p - 1 for p in given])
    return _Rows(delta_M, standardised(delta_M, delta_M), y_M)


def standardised(delta_M: Array, sample: Array) -> Array:
    """tanh(D / sd): the differences in units of a sample's standard deviation (ddof 1, no centring), squashed.

    Answers whose lengths all differ alike tell nothing of length: 0.
    """
    import numpy as np

    spread = float(sample.std(ddof=1)) if len(sample) > 1 else 0.0
    return np.tanh(delta_M / spread) if spread > 0 else np.zeros_like(delta_M)


def _warnings(found: Mapping[str, Any]) -> list[str]:
    """AlpacaEval's rule for a fit that went astray."""
    raw, controlled = found["win_rate"], found["length_controlled_winrate"]
    if raw is None or min(0.75 * raw, raw - 10) <= controlled <= max(raw + (100 - raw) / 4, raw + 10):
        return []
    return [
        f"length control moved the win rate from {raw:.1f} % to {controlled:.1f} %: the fit may have failed, or the "
        "answers' lengths are made for it"
    ]


def _given(weights: Sequence[float] | str | Path, model: str | None) -> Weights:
    if not isinstance(weights, (str, Path)):
        return Weights(*weights)
    table = read_weights(weights)
    if model not in table:
        raise UsageError(
            f"has no weights of {model!r}",
            where=str(weights),
            fix="name the model as the file does, or leave `weights` out",
        )
    return table[model]
