"""What training did to the model itself: its own opinion of held-out pairs, and how far it went from the reference.

The implicit reward of an answer is β (log π(answer) - log ref(answer)) (Rafailov et al. 2023). Log-probabilities come
from the backends' `score`, prompts computed once for all their answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.backends.base import Backend, Refusal, Score, ScoreRequest
from prefloop.engine.tokens import encode_prompt
from prefloop.errors import UsageError
from prefloop.evaluate.stats import bootstrap_means
from prefloop.intervals import wilson
from prefloop.records import CandidatesRow, PreferenceRow, prompt_id
from prefloop.train.encode import Encoder, Example

BINS = 10
SIMULATIONS = 1000
FOREIGN = "no token ids: the answer was not sampled by the model itself"


@dataclass(frozen=True)
class Margins:
    """The implicit rewards' differences on pairs.

    Attributes:
        margins: reward of the chosen answer - of the rejected one, one per pair that could be scored.
        labels: probability that the chosen answer is the better one, of each.
        prompts: the pair's prompt id, of each.
        left_out: reason -> pairs that could not be scored.
    """

    margins: list[float]
    labels: list[float]
    prompts: list[str]
    left_out: dict[str, int]


def implicit_margins(
    policy: Backend, reference: Backend, rows: Iterable[PreferenceRow], encoder: Encoder, *, beta: float
) -> Margins:
    """Score both answers of every pair under both models.

    Args:
        policy, reference: models with one tokenizer.
        rows: held-out pairs; those with one answer are left out.
        encoder: of that tokenizer, for pairs (`takes` "pairs").
        beta: of the objective that trained the policy; it scales margins and changes no accuracy.

    Raises:
        UsageError: no pair could be scored.
    """
    left_out: dict[str, int] = {}
    found: list[tuple[str, Example]] = []
    for prompt, encoded in encoder(rows):
        if isinstance(encoded, list):
            found += [(prompt, example) for example in encoded]
        else:
            left_out[encoded["reason"]] = left_out.get(encoded["reason"], 0) + 1
    requests = [ScoreRequest(e.prompt_ids, response) for _, e in found for response in e.responses]
    ours, theirs = policy.answer(requests), reference.answer(requests)
    margins, labels, prompts = [], [], []
    for k, (prompt, example) in enumerate(found):
        scores = [*ours[2 * k : 2 * k + 2], *theirs[2 * k : 2 * k + 2]]
        totals = [s.total for s in scores if isinstance(s, Score)]
        if len(totals) < 4:
            reason = next(s.reason for s in scores if isinstance(s, Refusal))
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        margins.append(beta * ((totals[0] - totals[2]) - (totals[1] - totals[3])))
        labels.append(example.label)
        prompts.append(prompt)
    if not margins:
        raise UsageError(
            f"no held-out pair could be scored: {', '.join(left_out) or 'there is none'}",
            where="pairs",
            fix="give pairs that fit the model's context",
        )
    return Margins(margins, labels, prompts, left_out)


def reward_accuracy(found: Margins, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """How often, and how surely, the policy prefers the answers that were preferred.

    Returns:
        accuracy (share of pairs whose chosen answer has the higher implicit reward, an equal one half; with soft
        labels the expected share), margin (mean, in nats times β), each value, ci_low, ci_high over prompts; n
        (pairs), prompts, left_out; and `calibration`, see `calibration`.
    """
    accuracy = _mean_by_prompt(found, [_right(m, y) for m, y in zip(found.margins, found.labels)], resamples, seed)
    return {
        "accuracy": accuracy,
        "margin": _mean_by_prompt(found, found.margins, resamples, seed),
        "n": len(found.margins),
        "prompts": len(set(found.prompts)),
        "left_out": found.left_out,
        "calibration": calibration(found.margins, found.labels, seed),
    }


def calibration(margins: Sequence[float], labels: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Whether the policy is as often right as it is sure, by the Bradley-Terry probability σ(|margin|).

    Args:
        margins: chosen - rejected; the surer answer is the one that the margin's sign picks.
        labels: probability that the chosen answer is the better one.

    Returns:
        `bins`: of equal width over confidence 0.5..1, each low, high, n, confidence (mean), accuracy with ci_low and
        ci_high (Wilson; exact for hard labels); empty ones are left out. `ece`: the expected calibration error (Naeini
        et al. 2015), sum of n/N |accuracy - confidence|, 0..1. `ece_if_calibrated`: its mean, and `ece_limit` its 95th
        percentile, if the policy were perfectly calibrated: few pairs give an error above 0 even then (Bröcker and
        Smith 2007). `overconfidence`: mean confidence - accuracy.
    """
    import numpy as np

    sure_N = 1 / (1 + np.exp(-np.abs(np.asarray(margins, dtype=np.float64))))
    right_N = np.array([_right(m, y) for m, y in zip(margins, labels, strict=True)])
    place_N = np.minimum(((sure_N - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = []
    for b in range(BINS):
        inside_N = place_N == b
        if not (n := int(inside_N.sum())):
            continue
        accuracy = float(right_N[inside_N].mean())
        reach = wilson(round(accuracy * n), n)
        low, high = 0.5 + b / (2 * BINS), 0.5 + (b + 1) / (2 * BINS)
        bins.append(
            {
                "low": low,
                "high": high,
                "n": n,
                "confidence": float(sure_N[inside_N].mean()),
                "accuracy": accuracy,
                "ci_low": reach.low,
                "ci_high": reach.high,
            }
        )
    rng = np.random.default_rng(seed)
    chance = [_ece(place_N, sure_N, (rng.random(len(sure_N)) < sure_N).astype(float)) for _ in range(SIMULATIONS)]
    return {
        "bins": bins,
        "ece": _ece(place_N, sure_N, right_N),
        "ece_if_calibrated": float(np.mean(chance)),
        "ece_limit": float(np.percentile(chance, 95)),
        "overconfidence": float(sure_N.mean() - right_N.mean()),
    }


def _ece(place_N: Any, sure_N: Any, right_N: Any) -> float:
    import numpy as np

    gaps = np.bincount(place_N, weights=right_N - sure_N, minlength=BINS)
    return float(np.abs(gaps).sum() / len(sure_N))


def _right(margin: float, label: float) -> float:
    return 0.5 if margin == 0 else label if margin > 0 else 1 - label


def _mean_by_prompt(found: Margins, values: Sequence[float], resamples: int, seed: int) -> dict[str, float]:
    """Mean over pairs; a prompt's pairs are resampled together."""
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(found.prompts, values, strict=True):
        groups.setdefault(prompt, []).append(value)
    table = [[math.fsum(group), float(len(group))] for group in groups.values()]
    return bootstrap_means(table, _ratio, resamples, seed).json()


def _ratio(means_RC: Any) -> Any:
    return means_RC[:, 0] / means_RC[:, 1]


def divergence(
    policy: Backend,
    reference: Backend,
    rows: Sequence[CandidatesRow],
    encoder: Encoder,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """KL(policy || reference) in nats per answer, on the policy's own answers.

    Args:
        policy, reference: models with one tokenizer.
        rows: answers that the policy sampled at temperature 1 with nothing cut off its distribution (top_p 1, top_k
            0): of any others the figure is no divergence of the two models.
        encoder: its tokenizer and end of turn; an answer that ended on its own is scored with its end of turn.
        resamples, seed: of the bootstrap over prompts.

    Returns:
        k1: mean of log π - log ref over answers, unbiased, may be below 0 by chance; k3: the sum over tokens of r -
        1 - log r with r = ref / π, unbiased too, never below 0 and steadier (Schulman 2020); k1_per_token and
        k3_per_token; each value, ci_low, ci_high; n (answers), prompts, tokens, left_out (reason -> answers).

    Raises:
        UsageError: no answer could be scored.
    """
    requests: list[ScoreRequest] = []
    prompts: list[str] = []
    left_out: dict[str, int] = {}
    for row in rows:
        prompt_ids = tuple(encode_prompt(encoder.tokenizer, row["prompt"]))
        for completion in row["completions"]:
            if completion["token_ids"] is None:
                left_out[FOREIGN] = left_out.get(FOREIGN, 0) + 1
                continue
            end = () if completion["finish_reason"] == "length" else (encoder.end_of_turn,)
            requests.append(ScoreRequest(prompt_ids, (*completion["token_ids"], *end)))
            prompts.append(prompt_id(row["prompt"]))
    groups: dict[str, list[tuple[float, float, int]]] = {}
    for prompt, ours, theirs in zip(prompts, policy.answer(requests), reference.answer(requests), strict=True):
        if isinstance(ours, Score) and isinstance(theirs, Score):
            gaps = [p - r for p, r in zip(ours.token_logps, theirs.token_logps, strict=True)]
            k3 = math.fsum(math.expm1(-gap) + gap for gap in gaps)
            groups.setdefault(prompt, []).append((math.fsum(gaps), k3, len(gaps)))
        else:
            reason = next(s.reason for s in (ours, theirs) if isinstance(s, Refusal))
            left_out[reason] = left_out.get(reason, 0) + 1
    if not groups:
        raise UsageError(f"no answer could be scored: {', '.join(left_out) or 'there is none'}", where="answers")
    # Of each prompt: k1, k3, tokens and answers, summed.
    table = [[*(math.fsum(side) for side in zip(*group, strict=True)), float(len(group))] for group in groups.values()]

    def over(top: int, bottom: int) -> dict[str, float]:
        return bootstrap_means(table, lambda m: m[:, top] / m[:, bottom], resamples, seed).json()

    return {
        "k1": over(0, 3),
        "k3": over(1, 3),
        "k1_per_token": over(0, 2),
        "k3_per_token": over(1, 2),
        "n": sum(map(len, groups.values())),
        "prompts": len(groups),
        "tokens": int(sum(row[2] for row in table)),
        "left_out": left_out,
    }
