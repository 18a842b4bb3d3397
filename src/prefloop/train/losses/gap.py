"""Losses of one number per pair: the gap, by how much the policy's log-ratio of the chosen answer leads.

    h = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)        the gap is z = h - margin

Shape letter: n pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prefloop.train.losses import checks


def _sigmoid(gap_n: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid(beta * gap_n)


def _hinge(gap_n: Tensor, beta: float) -> Tensor:
    return torch.relu(1 - beta * gap_n)


def _squared(gap_n: Tensor, beta: float) -> Tensor:
    return (gap_n - 1 / (2 * beta)) ** 2


DPO_KINDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid,
    "robust": _sigmoid,
    "hinge": _hinge,
    "ipo": _squared,
    "ipo_norm": _squared,
}
"""Kind of `dpo` -> f(gap [n], beta) -> loss [n] of a pair whose label is certain."""

NEEDS_LENGTHS = frozenset({"sigmoid_norm", "ipo_norm"})
"""The kinds of `dpo` that divide each log-ratio by its answer's length."""


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
    label: Tensor | None = None,
) -> Tensor:
    """Direct preference optimisation, one loss per pair.

    ============  ===================================  ============================================================
    kind          f(z)                                 source
    ============  ===================================  ============================================================
    sigmoid       -log sigma(beta z)                   Rafailov et al. 2023 (arXiv 2305.18290), eq. 7
    sigmoid_norm  sigmoid on log-ratios per token      Lambert et al. 2024 (Tulu 3, 2411.15124), length-normalised
    robust        sigmoid, mixed as below              Chowdhury et al. 2024 (rDPO, 2403.00409), the unbiased loss
    hinge         max(0, 1 - beta z)                   Zhao et al. 2023 (SLiC-HF, 2305.10425) on log-ratios, as in
                                                       Liu et al. 2023 (RSO, 2309.06657)
    ipo           (z - 1 / (2 beta))^2                 Azar et al. 2023 (IPO, 2310.12036), eq. 17, tau = beta
    ipo_norm      ipo on log-ratios per token          its authors' later advice; what TRL calls ipo
    ============  ===================================  ============================================================

    With s the share by which the label stands, the loss is s f(z) + (1 - s) f(-z). From the `label` p (1 unless given)
    and e = `label_smoothing`:

    - robust: s = (p - e) / (1 - 2e). e is the rate at which labels were flipped at random; over such flips the loss
      has the mean of the loss with true labels. s may lie outside 0..1: the loss may be negative, without a bound.
    - all others: s = e + (1 - 2e) p, 1 - e for a certain label (for sigmoid: conservative DPO, Mitchell 2023).

    The gradient of sigmoid with respect to policy_chosen is -beta (s - sigma(beta z)), the opposite for
    policy_rejected. At h = 0 a margin m moves a pair's gradient from 1/2 to sigma(beta m) (both times beta).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [n], summed log-probabilities in nats.
        beta: > 0; how strongly the policy is held to the reference. The kinds per token need a larger one (Tulu 3: 5).
        kind: a key of `DPO_KINDS`.
        label_smoothing: in [0, 0.5), the share of labels taken to be wrong.
        margin: [n], nats of log-ratio (of log-ratio per token for the kinds per token) by which the chosen answer must
            lead; None is 0.
        lengths: tokens of the (chosen, rejected) answers, two [n]; read by the kinds per token only, which need them.
        label: [n] within 0..1, the probability that the chosen answer is the better one; None is 1.

    Returns:
        [n], in the dtype of the log-probabilities.

    Raises:
        ValueError: unknown kind; beta or label_smoothing out of range; shapes that differ; a margin that is not
            finite; a label outside 0..1; lengths missing or below 1.

    Example:
        >>> zero = torch.zeros(1)
        >>> round(dpo(zero, zero, zero, zero).item(), 4)
        0.6931
    """
    if kind not in DPO_KINDS:
        raise ValueError(f"unknown kind of dpo loss: {kind!r}; there are {', '.join(DPO_KINDS)}")
    checks.positive(beta=beta)
    checks.smoothing(label_smoothing)
    if kind not in NEEDS_LENGTHS:
        lengths = None
    elif lengths is None:
        raise ValueError(f"{kind} needs lengths: the tokens of the chosen and of the rejected answers")
    gap_n = _gap(policy_chosen, policy_rejected, reference_chosen, reference_rejected, margin, lengths)
    _check_label(label, policy_chosen)

    share: Tensor | float = 1.0 if label is None else label
    if kind == "robust":
        share = (share - label_smoothing) / (1 - 2 * label_smoothing)
    else:
        share = label_smoothing + (1 - 2 * label_smoothing) * share
    loss = DPO_KINDS[kind]
    if isinstance(share, float) and share == 1:
        return loss(gap_n, beta)
    return share * loss(gap_n, beta) + (1 - share) * loss(-gap_n, beta)


def exo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
    margin: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """Efficient exact optimisation for pairs: the reverse KL divergence from the policy's preference to the label.

    With q = sigma(beta z) and the target s = e + (1 - 2e) p, e = `label_smoothing` and p = `label`:

        q log(q / s) + (1 - q) log((1 - q) / (1 - s))            Ji et al. 2024 (EXO, arXiv 2402.00856), eq. 16

    It is 0 where q = s, and its slope with respect to policy_chosen, beta q (1 - q) (beta z - log(s / (1 - s))),
    vanishes at both ends. A reward model's scores r give the label p = sigma((r_chosen - r_rejected) / beta_r).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [n], summed log-probabilities in nats.
        beta: > 0, the paper's beta_pi.
        label_smoothing: in [0, 0.5); above 0 unless every label lies strictly within 0..1.
        margin: [n], nats by which the chosen answer must lead; None is 0.
        label: [n] within 0..1, the probability that the chosen answer is the better one; None is 1.

    Returns:
        [n], at least 0.

    Raises:
        ValueError: beta or label_smoothing out of range; a target of exactly 0 or 1, for which the divergence is
            infinite; shapes that differ; a margin that is not finite; a label outside 0..1.
    """
    checks.positive(beta=beta)
    checks.smoothing(label_smoothing)
    gap_n = _gap(policy_chosen, policy_rejected, reference_chosen, reference_rejected, margin, None)
    _check_label(label, policy_chosen)
    label_n = torch.ones_like(gap_n) if label is None else label
    # Both made by addition: 1 - target would lose the digits of a small label_smoothing.
    target_n = label_smoothing + (1 - 2 * label_smoothing) * label_n
    rest_n = label_smoothing + (1 - 2 * label_smoothing) * (1 - label_n)
    if not bool(((target_n > 0) & (rest_n > 0)).all()):
        raise ValueError("exo cannot reach a certain label: give a label_smoothing above 0 (the paper's is 0.001)")
    chosen_n, rejected_n = beta * gap_n, -beta * gap_n
    return chosen_n.sigmoid() * (F.logsigmoid(chosen_n) - target_n.log()) + rejected_n.sigmoid() * (
        F.logsigmoid(rejected_n) - rest_n.log()
    )


def discopop(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.05,
    tau: float = 0.05,
    margin: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """DiscoPOP, the log-ratio modulated loss: logistic where the gap is negative, exponential where it is positive.

    With x = beta z:

        f(x) = (1 - sigma(x / tau)) (-log sigma(x)) + sigma(x / tau) exp(-x)

    Lu et al. 2024 (arXiv 2406.08414), eq. 5, found with beta = tau = 0.05, where x / tau is z. It is not monotone:
    with tau 0.05 it has a local minimum at x = -0.119 and a maximum at x = 0.072, so a pair that begins at z = 0 may
    come to rest on the wrong side.
    With a `label` p the loss is p f(x) + (1 - p) f(-x).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [n], summed log-probabilities in nats.
        beta: > 0.
        tau: in (0, 1], how sharply the two halves are divided. Above 1 the exponential would outgrow its weight.
        margin: [n], nats by which the chosen answer must lead; None is 0.
        label: [n] within 0..1, the probability that the chosen answer is the better one; None is 1.

    Returns:
        [n], at least 0.

    Raises:
        ValueError: beta or tau out of range; shapes that differ; a margin that is not finite; a label outside 0..1.
    """
    checks.positive(beta=beta)
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1], not {tau}")
    gap_n = _gap(policy_chosen, policy_rejected, reference_chosen, reference_rejected, margin, None)
    _check_label(label, policy_chosen)

    def loss(x_n: Tensor) -> Tensor:
        # One exponent for exp(-x) sigma(x / tau): apart, they are inf * 0 at large negative x
        # (tests/train/test_losses_pairs.py::test_finite_at_extreme_gaps).
        exponential_n = (F.logsigmoid(x_n / tau) - x_n).exp()
        return (-x_n / tau).sigmoid() * -F.logsigmoid(x_n) + exponential_n

    if label is None:
        return loss(beta * gap_n)
    return label * loss(beta * gap_n) + (1 - label) * loss(-beta * gap_n)


def _gap(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    margin: Tensor | None,
    lengths: Sequence[Tensor] | Tensor | None,
) -> Tensor:
    """z [n], checked; per token where lengths are given."""
    checks.same_length(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        margin=margin,
    )
    checks.finite(margin=margin)
    ratio_chosen_n = policy_chosen - reference_chosen
    ratio_rejected_n = policy_rejected - reference_rejected
    if lengths is not None:
        length_chosen_n, length_rejected_n = checks.lengths_of_both(lengths)
        checks.same_length(policy=policy_chosen, lengths_chosen=length_chosen_n, lengths_rejected=length_rejected_n)
        ratio_chosen_n, ratio_rejected_n = ratio_chosen_n / length_chosen_n, ratio_rejected_n / length_rejected_n
    gap_n = ratio_chosen_n - ratio_rejected_n
    return gap_n if margin is None else gap_n - margin


def _check_label(label: Tensor | None, policy_n: Tensor) -> None:
    checks.same_length(policy=policy_n, label=label)
    checks.shares(label=label)
