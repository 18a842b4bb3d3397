"""Losses of single answers that are marked as good or bad. Shape letter: n answers."""

from __future__ import annotations

import torch
from torch import Tensor

from prefloop.train.losses import checks


def kto(
    policy: Tensor,
    reference: Tensor,
    *,
    desirable: Tensor,
    z0: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    margin: Tensor | None = None,
) -> Tensor:
    """Kahneman-Tversky optimisation: the value lost by an answer on the wrong side of a baseline.

    With r = policy - reference:

        desirable:      desirable_weight   * (1 - sigma(beta (r - z0 - margin)))
        undesirable:    undesirable_weight * (1 - sigma(beta (z0 - r - margin)))

    Ethayarajh et al. 2024 (KTO, arXiv 2402.01306), eq. 7 and 8. z0 estimates the KL divergence of policy from
    reference, max(0, mean log-ratio of answers under prompts that they do not belong to); the caller computes it, so
    nothing here couples the rows of a batch. z0 = 0 is the unpaired form of APO-zero. The slope of a desirable row is
    -desirable_weight beta sigma(x) sigma(-x) with x = beta (r - z0 - margin).

    Args:
        policy, reference: [n], summed log-probabilities in nats.
        desirable: [n] of bool.
        z0: a number, a scalar tensor or [n], nats, at least 0. No gradient follows it.
        beta: > 0.
        desirable_weight, undesirable_weight: > 0; the paper sets them so that weight times number of rows is of like
            size for the two kinds.
        margin: [n], nats by which the answer must be on its side of the baseline; None is 0.

    Returns:
        [n], within 0..weight.

    Raises:
        ValueError: beta or a weight not above 0; shapes that differ; `desirable` not bool (a soft label has no meaning
            here); a margin or z0 that is not finite, or z0 below 0.
    """
    checks.positive(beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    checks.same_length(policy=policy, reference=reference, desirable=desirable, margin=margin)
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable must be of bool, not {desirable.dtype}: kto takes no soft label")
    checks.finite(margin=margin)
    level = checks.baseline(policy, z0=z0)
    if bool((level < 0).any()):
        raise ValueError("z0 estimates a divergence and must be at least 0: clamp the estimate")
    above_n = policy - reference - level
    reach_n = torch.where(desirable, above_n, -above_n)
    if margin is not None:
        reach_n = reach_n - margin
    lost_n = (-beta * reach_n).sigmoid()
    return torch.where(desirable, desirable_weight * lost_n, undesirable_weight * lost_n)
