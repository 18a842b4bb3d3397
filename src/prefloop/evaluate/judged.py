"""Held-out answers with judgments, scored by two models: what was forgotten of the good and unlearned of the bad.

Nothing is sampled here: the answers are fixed texts, and each model says how probable it finds their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.backends.base import AnswerScoreRequest, Backend, Score, freeze
from prefloop.errors import UsageError
from prefloop.evaluate.stats import paired_difference
from prefloop.records import JudgmentRow, message_text
from prefloop.train.judged import JudgedPrompt

LIMIT = 500
"""Satisfactory and criticised answers that are scored, of each so many at most: the first ones."""


@dataclass(frozen=True)
class Probabilities:
    """One model's natural log-probabilities of an answer's tokens.

    Attributes:
        plain: behind the prompt as it is.
        judged: behind the one with the judgment in it; the same as `plain` of a satisfactory answer.
    """

    plain: list[float]
    judged: list[float]


def chosen(rows: Sequence[JudgmentRow], limit: int = LIMIT) -> list[JudgmentRow]:
    """The rows that are scored: those with an answer, of each kind the first ones."""
    there = [row for row in rows if message_text(row["completion"][0])]
    good = [row for row in there if row["judgment"] is None][:limit]
    return good + [row for row in there if row["judgment"] is not None][:limit]


def score(
    rows: Sequence[JudgmentRow],
    backend: Backend,
    form: JudgedPrompt,
) -> list[Probabilities | None]:
    """What a model finds probable: of each row, None where it cannot take a prompt, or `form` cannot make the judged
    one (behind the results of a tool); training has rejected such a row."""
    requests: list[Any] = []
    counts: list[int] = []
    for row in rows:
        text, said, prompts = message_text(row["completion"][0]), row["judgment"], [row["prompt"]]
        try:
            prompts += [] if said is None else [form(row["prompt"], said)]
        except UsageError:
            prompts = []
        requests += [AnswerScoreRequest(freeze(prompt), text) for prompt in prompts]
        counts.append(len(prompts))
    results = iter(backend.answer(requests))
    found: list[Probabilities | None] = []
    for count in counts:
        if not count:
            found.append(None)
            continue
        plain = next(results)
        judged = plain if count == 1 else next(results)
        known = isinstance(plain, Score) and isinstance(judged, Score)
        found.append(Probabilities(plain.token_logps, judged.token_logps) if known else None)  # type: ignore[union-attr]
    return found


def compare(
    rows: Sequence[JudgmentRow],
    base: Sequence[Probabilities | None],
    aligned: Sequence[Probabilities | None],
    threshold: float,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The two models on the same texts; rows that one of them could not take count for neither.

    Args:
        threshold: of CUT's flags, see `train.losses.flags`.
        resamples, seed: of the bootstrap over prompts.

    Returns:
        as a checker's figures (base, aligned, n prompts, excluded rows, difference), where there are such answers:
        `satisfactory_text`, the geometric mean of a satisfactory answer's token probabilities, which falls where good
        text is forgotten; and `criticised_tokens`, the mean probability, behind the plain prompt, of the tokens that
        the base's probabilities flag, of answers with any, which should fall. It also has `flag_rate`: the share of
        criticised answers' tokens that each model's own probabilities flag.
    """
    good: dict[str, list[tuple[float, float]]] = {}
    bad: dict[str, list[tuple[float, float]]] = {}
    rates: list[list[float]] = [[], []]
    excluded = [0, 0]
    for row, before, after in zip(rows, base, aligned, strict=True):
        criticised = row["judgment"] is not None
        if before is None or after is None:
            excluded[criticised] += 1
        elif not criticised:
            good.setdefault(row["prompt_id"], []).append((_geometric(before.plain), _geometric(after.plain)))
        else:
            for rate, side in zip(rates, (before, after), strict=True):
                rate.append(_mean([float(flag) for flag in _flags(side, threshold)]))
            where = [token for token, flag in enumerate(_flags(before, threshold)) if flag]
            if where:
                sides = tuple(_mean([math.exp(side.plain[token]) for token in where]) for side in (before, after))
                bad.setdefault(row["prompt_id"], []).append(sides)  # type: ignore[arg-type]
    found: dict[str, dict[str, Any]] = {}
    if good:
        found["satisfactory_text"] = _figure(good, excluded[0], resamples, seed)
    if bad:
        found["criticised_tokens"] = _figure(bad, excluded[1], resamples, seed) | {
            "lower_is_better": True,
            "flag_rate": {name: _mean(rate) for name, rate in zip(("base", "aligned"), rates, strict=True)},
        }
    return found


def _flags(side: Probabilities, threshold: float) -> list[bool]:
    return [a - b > math.log(threshold) for a, b in zip(side.judged, side.plain, strict=True)]


def _geometric(logps: Sequence[float]) -> float:
    return math.exp(_mean(logps))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figure(groups: dict[str, list[tuple[float, float]]], excluded: int, resamples: int, seed: int) -> dict[str, Any]:
    base_N, aligned_N = ([_mean([pair[seat] for pair in group]) for group in groups.values()] for seat in (0, 1))
    return {
        "base": _mean(base_N),
        "aligned": _mean(aligned_N),
        "n": len(base_N),
        "excluded": excluded,
        "difference": paired_difference(base_N, aligned_N, resamples, seed).json(),
    }
