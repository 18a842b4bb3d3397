"""Preference losses: vectors of log-probabilities in, one loss per pair out.

No function here takes a mean, draws a number or keeps state. Weights and margins are therefore ordinary columns:
`reduce` applies the weights, once, at the end. Shape letter: n pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _sigmoid(gap_n: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid(beta * gap_n)


def _hinge(gap_n: Tensor, beta: float) -> Tensor:
    return torch.relu(1 - beta * gap_n)


def _squared(gap_n: Tensor, beta: float) -> Tensor:
    return (gap_n - 1 / (2 * beta)) ** 2


DPO_KINDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _squared,
    "ipo_norm": _squared,
}
"""Kind of `dpo` -> f(gap [n], beta) -> loss [n]."""


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
    margin: Tensor | None = None,
    lengths: Sequence[Tensor] | Tensor | None = None,
) -> Tensor:
    """Direct preference optimisation, one loss per pair.

    With h = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected) and the gap z = h - margin:

    ==========  ============================================  ==================================================
    kind        f(z)                                          source
    ==========  ============================================  ==================================================
    sigmoid     -log sigma(beta z)                            Rafailov et al. 2023 (arXiv 2305.18290), eq. 7
    hinge       max(0, 1 - beta z)                            Zhao et al. 2023 (SLiC-HF, 2305.10425) on log-ratios
    ipo         (z - 1 / (2 beta))^2                          Azar et al. 2023 (2310.12036), eq. 17
    ipo_norm    ipo with each log-ratio divided by its        its authors' later advice; what most trainers
                answer's length in tokens                     call ipo
    ==========  ============================================  ==================================================

    The loss is (1 - e) f(z) + e f(-z) with e = label_smoothing, the share of labels taken to be wrong (conservative
    DPO, Mitchell 2023). For sigmoid the gradient weight of a pair is beta sigma(-beta z), so at h = 0 a margin m
    moves it from 1/2 to sigma(beta m) (both times beta).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [n], summed log-probabilities in nats.
        beta: > 0; how strongly the policy is held to the reference.
        margin: [n], nats of log-ratio by which the chosen answer must lead; None is 0.
        lengths: tokens of the (chosen, rejected) answers, two [n]; read by ipo_norm only, which needs them.

    Returns:
        [n], in the dtype of the arguments.

    Raises:
        ValueError: unknown kind, beta or label_smoothing out of range, shapes that differ, lengths missing.

    Example:
        >>> zero = torch.zeros(1)
        >>> round(dpo(zero, zero, zero, zero).item(), 4)
        0.6931
    """
    if kind not in DPO_KINDS:
        raise ValueError(f"unknown kind of dpo loss: {kind!r}; there are {', '.join(DPO_KINDS)}")
    if not beta > 0:
        raise ValueError(f"beta must be above 0, not {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), not {label_smoothing}")
    vectors = [policy_chosen, policy_rejected, reference_chosen, reference_rejected]
    _same_shape(vectors if margin is None else [*vectors, margin])

    ratio_chosen_n = policy_chosen - reference_chosen
    ratio_rejected_n = policy_rejected - reference_rejected
    if kind == "ipo_norm":
        if lengths is None:
            raise ValueError("ipo_norm needs lengths: the tokens of the chosen and of the rejected answers")
        length_chosen_n, length_rejected_n = lengths
        _same_shape([*vectors, length_chosen_n, length_rejected_n])
        ratio_chosen_n, ratio_rejected_n = ratio_chosen_n / length_chosen_n, ratio_rejected_n / length_rejected_n
    gap_n = ratio_chosen_n - ratio_rejected_n
    if margin is not None:
        gap_n = gap_n - margin

    loss = DPO_KINDS[kind]
    losses_n = loss(gap_n, beta)
    if label_smoothing > 0:
        losses_n = (1 - label_smoothing) * losses_n + label_smoothing * loss(-gap_n, beta)
    return losses_n


def scale_margin(margin: Tensor, weight: float, low: float, high: float) -> Tensor:
    """weight * clamp(margin, low, high), [n]: a self-reward difference made into a margin for `dpo`.

    Liu et al. 2024 (DLMA, arXiv 2402.11907) use weight 0.2 and the range -40..40.

    Raises:
        ValueError: weight not above 0 (the margins would have no effect, or the opposite one), an empty range, or a
            margin that is not a number.
    """
    if not weight > 0:
        raise ValueError(f"the weight of margins must be above 0, not {weight}")
    if not low < high:
        raise ValueError(f"the range of margins is empty: {low} .. {high}")
    if bool(margin.isnan().any()):
        raise ValueError("a margin is not a number")
    return weight * margin.clamp(low, high)


def reduce(losses: Tensor, weight: Tensor | None = None) -> Tensor:
    """sum(weight * losses) / n, a scalar. Weights are taken as given and never rescaled within a batch.

    Dividing by n and not by the sum of weights keeps the result the same however a batch is split: the sums of the
    parts add up (tests/train/test_trainer.py::test_a_batch_is_the_sum_of_its_parts).
    """
    if losses.numel() == 0:
        raise ValueError("no losses to reduce")
    if weight is None:
        return losses.sum() / losses.numel()
    _same_shape([losses, weight])
    return (weight * losses).sum() / losses.numel()


def _same_shape(vectors: Sequence[Tensor]) -> None:
    shapes = [tuple(v.shape) for v in vectors]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"expected vectors of one length, got shapes {', '.join(map(str, shapes))}")
