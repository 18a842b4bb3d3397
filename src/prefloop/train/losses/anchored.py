"""Losses of two numbers per pair: each answer's log-ratio is held against a fixed point, not only against the other's.

    a = policy_chosen - reference_chosen - margin / 2          b = policy_rejected - reference_rejected + margin / 2

A margin m is what it is for `dpo`: a reference that already has the chosen answer m nats further ahead, half of it on
either side. A label p, the probability that the chosen answer is the better one, gives the expected loss
p L(a, b) + (1 - p) L(b, a). Shape letter: n pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from prefloop.train.losses import checks


def sppo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 1e-3,
    win_chosen: Tensor | None = None,
    win_rejected: Tensor | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """Self-play preference optimisation: each log-ratio is regressed on how often its answer wins.

        (a - (win_chosen - 1/2) / beta)^2 + (b - (win_rejected - 1/2) / beta)^2

    Wu et al. 2024 (arXiv 2405.00675), eq. 4.7 with eta = 1 / beta (the paper's eta is 1000), one square per answer;
    the mean over answers there is half of the sum here. Without win probabilities they are 1 and 0, the hard form that
    TRL calls sppo_hard. The gradient with respect to policy_chosen is 2 (a - (win_chosen - 1/2) / beta).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [n], summed log-probabilities in nats;
            the reference is the policy that the answers were sampled from.
        beta: > 0.
        win_chosen, win_rejected: [n] within 0..1, the estimated probability that the answer beats one drawn from that
            policy; both or neither. They need not add up to 1: each is a mean over the other answers to its prompt.
        margin: [n], nats, half of it on either side; None is 0.

    Returns:
        [n], at least 0.

    Raises:
        ValueError: beta not above 0; one win probability without the other, or outside 0..1; shapes that differ; a
            margin that is not finite.
    """
    if (win_chosen is None) != (win_rejected is None):
        raise ValueError("sppo takes win_chosen and win_rejected together, or neither")
    ratios = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    chosen_n, rejected_n = _ratios(*ratios, beta=beta, margin=margin)
    checks.same_length(policy=policy_chosen, win_chosen=win_chosen, win_rejected=win_rejected)
    checks.shares(win_chosen=win_chosen, win_rejected=win_rejected)
    lead_chosen: Tensor | float = 0.5 if win_chosen is None else win_chosen - 0.5
    lead_rejected: Tensor | float = -0.5 if win_rejected is None else win_rejected - 0.5
    return (chosen_n - lead_chosen / beta) ** 2 + (rejected_n - lead_rejected / beta) ** 2


def nca(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    margin: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """Noise contrastive alignment of a pair: raises the chosen answer's own likelihood, not only its lead.

        -log sigma(beta a) - 1/2 log sigma(-beta a) - 1/2 log sigma(-beta b)

    Chen et al. 2024 (NCA, arXiv 2402.05369), the pair form. With a label p the first term becomes
    -p log sigma(beta a) - (1 - p) log sigma(beta b): their form for explicit rewards r with K = 2 and
    p = sigma((r_chosen - r_rejected) / alpha). The slope with respect to policy_chosen is
    beta (3/2 sigma(beta a) - 1), so a certain pair's chosen answer rests at sigma(beta a) = 2/3.

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [n], summed log-probabilities in nats.
        beta: > 0.
        margin: [n], nats, half of it on either side; None is 0.
        label: [n] within 0..1, the probability that the chosen answer is the better one; None is 1.

    Returns:
        [n], above 0.

    Raises:
        ValueError: beta not above 0; shapes that differ; a margin that is not finite; a label outside 0..1.
    """

    def loss(chosen_n: Tensor, rejected_n: Tensor) -> Tensor:
        noise_n = F.logsigmoid(-beta * chosen_n) + F.logsigmoid(-beta * rejected_n)
        return -F.logsigmoid(beta * chosen_n) - 0.5 * noise_n

    ratios = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    return _expected(loss, *_ratios(*ratios, beta=beta, margin=margin), label)


def bco(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    delta: Tensor | float,
    beta: float = 0.1,
    margin: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """Binary classifier optimisation of a pair: one classifier says "chosen", with the reward shift as its threshold.

        -log sigma(beta a - delta) - log sigma(-(beta b - delta))

    Jung et al. 2024 (BCO, arXiv 2404.04656). delta estimates (E[beta a] + E[beta b]) / 2 over chosen and rejected
    answers, by a running mean of detached rewards that the caller keeps (`train/shift.py`), so nothing here couples
    the rows of a batch. TRL 1.16's bco_pair has no shift: delta = 0.

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [n], summed log-probabilities in nats.
        delta: a number, a scalar tensor or [n], in units of the reward (beta times nats). No gradient follows it.
        beta: > 0.
        margin: [n], nats, half of it on either side; None is 0.
        label: [n] within 0..1, the probability that the chosen answer is the better one; None is 1.

    Returns:
        [n], above 0.

    Raises:
        ValueError: beta not above 0; shapes that differ; a margin or delta that is not finite; a label outside 0..1.
    """
    shift = checks.baseline(policy_chosen, delta=delta)

    def loss(chosen_n: Tensor, rejected_n: Tensor) -> Tensor:
        return -F.logsigmoid(beta * chosen_n - shift) - F.logsigmoid(shift - beta * rejected_n)

    ratios = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    return _expected(loss, *_ratios(*ratios, beta=beta, margin=margin), label)


def apo_zero(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    margin: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """Anchored preference optimisation for answers better than the model's own: chosen up, rejected down.

        1 - sigma(beta a) + sigma(beta b)

    D'Oosterlinck et al. 2024 (APO, arXiv 2408.06266), eq. 7, plus the constant 1 (as TRL has it), which makes it at
    least 0. The slope with respect to policy_chosen is -beta sigma(beta a) sigma(-beta a): largest at the reference.

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [n], summed log-probabilities in nats.
        beta: > 0.
        margin: [n], nats, half of it on either side; None is 0.
        label: [n] within 0..1, the probability that the chosen answer is the better one; None is 1.

    Returns:
        [n], within 0..2.

    Raises:
        ValueError: beta not above 0; shapes that differ; a margin that is not finite; a label outside 0..1.
    """

    def loss(chosen_n: Tensor, rejected_n: Tensor) -> Tensor:
        return (-beta * chosen_n).sigmoid() + (beta * rejected_n).sigmoid()

    ratios = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    return _expected(loss, *_ratios(*ratios, beta=beta, margin=margin), label)


def apo_down(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    margin: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """Anchored preference optimisation for answers worse than the model's own: both down, the rejected one further.

        sigma(beta a) + 1 - sigma(beta (a - b))

    D'Oosterlinck et al. 2024 (APO, arXiv 2408.06266), eq. 8, plus the constant 1 (as TRL has it).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [n], summed log-probabilities in nats.
        beta: > 0.
        margin: [n], nats, half of it on either side; None is 0.
        label: [n] within 0..1, the probability that the chosen answer is the better one; None is 1.

    Returns:
        [n], within 0..2.

    Raises:
        ValueError: beta not above 0; shapes that differ; a margin that is not finite; a label outside 0..1.
    """

    def loss(chosen_n: Tensor, rejected_n: Tensor) -> Tensor:
        return (beta * chosen_n).sigmoid() + (-beta * (chosen_n - rejected_n)).sigmoid()

    ratios = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    return _expected(loss, *_ratios(*ratios, beta=beta, margin=margin), label)


def _ratios(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    margin: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """a and b of the module's docstring, checked."""
    checks.positive(beta=beta)
    checks.same_length(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        margin=margin,
    )
    checks.finite(margin=margin)
    chosen_n, rejected_n = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return (chosen_n, rejected_n) if margin is None else (chosen_n - margin / 2, rejected_n + margin / 2)


def _expected(
    loss: Callable[[Tensor, Tensor], Tensor], chosen_n: Tensor, rejected_n: Tensor, label: Tensor | None
) -> Tensor:
    """The mean loss over draws of the label."""
    if label is None:
        return loss(chosen_n, rejected_n)
    checks.same_length(log_ratio=chosen_n, label=label)
    checks.shares(label=label)
    return label * loss(chosen_n, rejected_n) + (1 - label) * loss(rejected_n, chosen_n)
