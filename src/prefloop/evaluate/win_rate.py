"""Win rate of one model over another, through any signal; and AlpacaEval's summary of stored preferences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.backends.base import Backend
from prefloop.errors import PrefloopError, UsageError
from prefloop.evaluate.answers import by_prompt
from prefloop.evaluate.stats import mean_interval
from prefloop.intervals import wilson
from prefloop.records import CallRow, CandidatesRow, ScoredRow
from prefloop.signals.base import Signal
from prefloop.signals.bias import rates
from prefloop.signals.driver import rate

PART_ROWS = 256


def summarize(preferences: Sequence[float | str | None]) -> dict[str, float | None]:
    """AlpacaEval's win rate of a model against its baseline (alpaca_eval 0.6.6, `get_winrate`).

    Args:
        preferences: [n], 1 = the baseline is certainly better, 2 = the model is, 1.5 = tie; 0 is another code for a
            tie. None, NaN and anything else outside 1..2 do not count. Numbers may be given as text.

    Returns:
        win_rate and standard_error (of the mean, ddof 1) and discrete_win_rate (preferences rounded to a winner, ties
        half) in percent, AlpacaEval's convention; n_wins, n_wins_base, n_draws, n_total (those that count),
        n_excluded. Without anything to count the rates are None, and so is standard_error of a single preference.

    Raises:
        UsageError: a preference is a text that is no number.
    """
    values = [preference(p, i) for i, p in enumerate(preferences)]
    counted = [p - 1 for p in values if p is not None]
    n = len(counted)
    wins, losses = sum(p > 0.5 for p in counted), sum(p < 0.5 for p in counted)
    draws = n - wins - losses
    mean = math.fsum(counted) / n if n else None
    error = None
    if mean is not None and n > 1:
        error = 100 * math.sqrt(math.fsum((p - mean) ** 2 for p in counted) / (n - 1) / n)
    return {
        "win_rate": None if mean is None else 100 * mean,
        "standard_error": error,
        "discrete_win_rate": 100 * (wins + draws / 2) / n if n else None,
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": draws,
        "n_total": n,
        "n_excluded": len(values) - n,
    }


def preference(given: float | str | None, index: int) -> float | None:
    """One preference of AlpacaEval's in 1..2, or None where it does not count; 0 is a tie (1.5), text is read.

    Raises:
        UsageError: it is no number; names the `index`.
    """
    if given is None:
        return None
    try:
        value = float(given)
    except (TypeError, ValueError):
        raise UsageError(
            f"{given!r} is no number", where=f"preference {index}", fix="use 1 to 2, 0 for a tie, or null"
        ) from None
    if value == 0:
        return 1.5
    return value if 1 <= value <= 2 else None


@dataclass(frozen=True)
class Comparison:
    """Two models compared.

    Attributes:
        summary: what summary.json keeps as `evaluate.win_rate`, see `compare`.
        rows: the joined rows with the signal's scores of [base, aligned], for the record.
        preferences: P(the aligned answer is better) of each row, 0..1; None without a verdict.
        calls: the signal's calls.
        counts: the signal's counts.
    """

    summary: dict[str, Any]
    rows: list[ScoredRow]
    preferences: list[float | None]
    calls: list[CallRow]
    counts: dict[str, float]


def compare(
    rows: Sequence[CandidatesRow],
    signal: Signal,
    backends: Mapping[str, Backend],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Win rate of the second answers over the first.

    A pairwise signal says P(aligned better) itself; for any other the higher score wins and equal scores tie. Answers
    that are equal but for outer white space tie without a call. A row without verdict is excluded and counted.

    Args:
        rows: two completions each, [base, aligned] (`answers.join` makes them).
        signal, backends: as for `signals.driver.rate`.
        resamples, seed: of the bootstrap over prompts.
        on_progress: told (rows done, rows in all).

    Returns:
        `summary` has value, ci_low, ci_high (0..1) and n (prompts with a verdict); wins, losses, ties (identical
        answers among them), identical and nulls, in rows; longer_wins, the share of decided rows won by the longer
        answer, where there is any; and of a judge that reads pairs, consistency and first_seat (value, ci_low,
        ci_high by Wilson; 0.5 is unbiased).

    Raises:
        PrefloopError: no row at all got a verdict.
    """
    same = [a["text"].strip() == b["text"].strip() for a, b in (row["completions"] for row in rows)]
    different = [row for row, equal in zip(rows, same, strict=True) if not equal]
    scored: list[ScoredRow] = []
    calls: list[CallRow] = []
    counts: dict[str, float] = {}
    for start in range(0, len(different), PART_ROWS):
        part = different[start : start + PART_ROWS]
        rated = rate(signal, part, backends)
        scored += rated.rows
        calls += rated.calls
        counts = {name: counts.get(name, 0) + rated.counts.get(name, 0) for name in {**counts, **rated.counts}}
        if on_progress is not None:
            on_progress(sum(same) + start + len(part), len(rows))
    asked = iter(scored)
    judged = [_tie(row, signal) if equal else next(asked) for row, equal in zip(rows, same, strict=True)]
    preferences = [
        0.5 if equal else probability(row, signal.pairwise) for row, equal in zip(judged, same, strict=True)
    ]
    summary = _summary(judged, preferences, counts, resamples, seed)
    summary["identical"] = sum(same)
    return Comparison(summary, judged, preferences, calls, counts)


def uncompared(rows: Sequence[CandidatesRow]) -> Comparison:
    """The answers side by side, without anybody's verdict."""
    bare: list[ScoredRow] = [
        {
            "id": row["id"],
            "prompt": row["prompt"],
            "completions": row["completions"],
            "scores": [None, None],
            "signal": "",
            "evidence": [],
        }
        for row in rows
    ]
    return Comparison({}, bare, [None] * len(bare), [], {})


def _tie(row: CandidatesRow, signal: Signal) -> ScoredRow:
    """A row of equal answers: not asked, so without scores of its own unless a pair's probability is the score."""
    scores: list[float | None] = [0.5, 0.5] if signal.pairwise else [None, None]
    return {
        "id": row["id"],
        "prompt": row["prompt"],
        "completions": row["completions"],
        "scores": scores,
        "signal": signal.name,
        "evidence": [],
    }


def probability(row: ScoredRow, pairwise: bool) -> float | None:
    """P(the aligned answer is better), 0..1, by the scores of [base, aligned]; None without a verdict."""
    base, aligned = row["scores"]
    if base is None or aligned is None:
        return None
    return aligned if pairwise else (1.0 if aligned > base else 0.0 if aligned < base else 0.5)


def _summary(
    rows: Sequence[ScoredRow],
    preferences: Sequence[float | None],
    counts: dict[str, float],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    verdicts = [p for p in preferences if p is not None]
    if not verdicts:
        raise PrefloopError(
            f"none of {len(rows)} comparisons got a verdict", where="win rate", fix="look at the calls of the signal"
        )
    units = [[p for p in group if p is not None] for group in by_prompt(rows, preferences)]
    means = [sum(group) / len(group) for group in units if group]
    summary: dict[str, Any] = mean_interval(means, resamples, seed).json() | {
        "n": len(means),
        "wins": sum(p > 0.5 for p in verdicts),
        "losses": sum(p < 0.5 for p in verdicts),
        "ties": sum(p == 0.5 for p in verdicts),
        "nulls": len(preferences) - len(verdicts),
    }
    longer = [
        (len(aligned["text"]) > len(base["text"])) == (p > 0.5)
        for (base, aligned), p in zip((row["completions"] for row in rows), preferences, strict=True)
        if p is not None and p != 0.5 and len(base["text"]) != len(aligned["text"])
    ]
    if longer:
        summary["longer_wins"] = sum(longer) / len(longer)
    card = rates(counts)
    if "consistency" in card:
        summary["consistency"] = card["consistency"]
    if "first_seat" in card:
        summary["first_seat"] = wilson(int(counts["first_wins"]), int(counts["first_decided"])).json()
    return summary
