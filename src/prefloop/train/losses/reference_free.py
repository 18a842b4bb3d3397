"""Losses that need no reference: of the policy's log-probabilities alone. Shape letter: n rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prefloop.train.losses import checks


def sft(policy: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of one answer per row: -policy, or -policy / lengths.

    Added to a pair's loss it keeps the chosen answer likely: `dpo(...) + alpha * sft(policy_chosen, lengths)` is
    iterative reasoning preference optimisation (Pang et al. 2024, arXiv 2404.19733, eq. 1, alpha 1). A mean of these
    rows counts every answer alike, however long; trainers that average over the tokens of a batch (TRL's sft, the
    likelihood terms of its CPO and ORPO) count long answers more.

    Args:
        policy: [n], summed log-probabilities in nats of the answers to learn.
        lengths: [n], tokens of the answers; the loss is then per token.

    Returns:
        [n], at least 0.

    Raises:
        ValueError: shapes that differ, or a length below 1.
    """
    checks.same_length(policy=policy, lengths=lengths)
    if lengths is None:
        return -policy
    checks.token_counts(lengths=lengths)
    return -policy / lengths


def cpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    beta: float = 0.1,
    nll_weight: float = 1.0,
    margin: Tensor | None = None,
    label: Tensor | None = None,
    lengths_chosen: Tensor | None = None,
) -> Tensor:
    """Contrastive preference optimisation: sigmoid DPO under a uniform reference, and the likelihood of the chosen.

        -log sigma(beta (policy_chosen - policy_rejected - margin)) + nll_weight * NLL(chosen)

    Xu et al. 2024 (CPO, arXiv 2401.08417), eq. 3 and its behaviour-cloning term, nll_weight 1. There the NLL is summed
    over tokens; with `lengths_chosen` it is per token. TRL averages it over the tokens of the batch.

    Args:
        policy_chosen, policy_rejected: [n], summed log-probabilities in nats.
        beta: > 0.
        nll_weight: >= 0, of the likelihood term.
        margin: [n], nats by which the chosen answer must lead; None is 0.
        label: [n] within 0..1, the probability p that the chosen answer is the better one: the first term becomes
            p f(z) + (1 - p) f(-z). The likelihood term does not know it. None is 1.
        lengths_chosen: [n], tokens of the chosen answers.

    Returns:
        [n], at least 0.

    Raises:
        ValueError: beta or nll_weight out of range; shapes that differ; a margin that is not finite; a label outside
            0..1; a length below 1.
    """
    checks.positive(beta=beta)
    checks.not_negative(nll_weight=nll_weight)
    _check_rows(policy_chosen, policy_rejected, margin, label)
    gap_n = beta * _less(policy_chosen - policy_rejected, margin)
    return _logistic(gap_n, -gap_n, label) + nll_weight * sft(policy_chosen, lengths_chosen)


def simpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    lengths: Sequence[Tensor] | Tensor,
    beta: float = 2.0,
    gamma: float = 1.0,
    margin: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """Simple preference optimisation: log-probabilities per token as rewards, with a target margin.

        -log sigma(beta (policy_chosen / lengths_chosen - policy_rejected / lengths_rejected - margin) - gamma)

    Meng et al. 2024 (SimPO, arXiv 2405.14734), eq. 6. gamma is the reward that the winner must lead by (its authors
    tune gamma / beta); a row's `margin` adds beta * margin to it. With a label p the loss is the expected one: the
    answer that wins must lead by gamma, whichever it is. In TRL's CPO trainer label_smoothing takes gamma off when the
    label is wrong.

    Args:
        policy_chosen, policy_rejected: [n], summed log-probabilities in nats.
        lengths: tokens of the (chosen, rejected) answers, two [n].
        beta: > 0; 2 to 10 in the paper.
        gamma: >= 0; 0.3 to 1.6 in the paper.
        margin: [n], nats per token; None is 0.
        label: [n] within 0..1, the probability that the chosen answer is the better one; None is 1.

    Returns:
        [n], above 0.

    Raises:
        ValueError: beta or gamma out of range; shapes that differ; a margin that is not finite; a label outside 0..1;
            a length below 1.
    """
    checks.positive(beta=beta)
    checks.not_negative(gamma=gamma)
    _check_rows(policy_chosen, policy_rejected, margin, label)
    mean_chosen_n, mean_rejected_n = _per_token(policy_chosen, policy_rejected, lengths)
    gap_n = beta * _less(mean_chosen_n - mean_rejected_n, margin)
    return _logistic(gap_n - gamma, -gap_n - gamma, label)


def orpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    lengths: Sequence[Tensor] | Tensor,
    odds_weight: float = 0.1,
    margin: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """Odds ratio preference optimisation: likelihood of the chosen answer, and the odds of chosen against rejected.

    With the mean log-probability per token u = log P and the log-odds o(u) = u - log(1 - exp(u)):

        -u_chosen + odds_weight * -log sigma(o(u_chosen) - o(u_rejected) - margin)

    Hong et al. 2024 (ORPO, arXiv 2403.07691), eq. 6 and 7; odds_weight is the paper's lambda, which TRL calls beta.
    The slope of the log-odds is 1 / (1 - P). TRL takes its likelihood term over prompt and answer, as a mean over the
    tokens of the batch; here, as in the paper, it is of the answer alone.

    Args:
        policy_chosen, policy_rejected: [n], summed log-probabilities in nats, at most 0. Means closer to 0 than the
            precision of their type (1.2e-7 in float32) have odds that no float holds; they count as that close.
        lengths: tokens of the (chosen, rejected) answers, two [n].
        odds_weight: > 0; 0.1 to 0.25 in the paper.
        margin: [n], nats of log-odds by which the chosen answer must lead; None is 0.
        label: [n] within 0..1, the probability p that the chosen answer is the better one: the second term becomes
            p f(x) + (1 - p) f(-x). The likelihood term does not know it. None is 1.

    Returns:
        [n], above 0.

    Raises:
        ValueError: odds_weight not above 0; shapes that differ; a margin that is not finite; a label outside 0..1; a
            length below 1.
    """
    checks.positive(odds_weight=odds_weight)
    _check_rows(policy_chosen, policy_rejected, margin, label)
    mean_chosen_n, mean_rejected_n = _per_token(policy_chosen, policy_rejected, lengths)
    gap_n = _less(_log_odds(mean_chosen_n) - _log_odds(mean_rejected_n), margin)
    return -mean_chosen_n + odds_weight * _logistic(gap_n, -gap_n, label)


def _log_odds(mean_n: Tensor) -> Tensor:
    """log(P / (1 - P)) of log P; expm1 keeps 1 - P exact near P = 1."""
    below_one_n = mean_n.clamp(max=-torch.finfo(mean_n.dtype).eps)
    return mean_n - (-torch.expm1(below_one_n)).log()


def _logistic(forward_n: Tensor, swapped_n: Tensor, label: Tensor | None) -> Tensor:
    """The mean of -log sigma over draws of the label: of `forward` where chosen wins, of `swapped` where it loses."""
    if label is None:
        return -F.logsigmoid(forward_n)
    return -label * F.logsigmoid(forward_n) - (1 - label) * F.logsigmoid(swapped_n)


def _less(gap_n: Tensor, margin: Tensor | None) -> Tensor:
    return gap_n if margin is None else gap_n - margin


def _per_token(
    policy_chosen: Tensor, policy_rejected: Tensor, lengths: Sequence[Tensor] | Tensor
) -> tuple[Tensor, Tensor]:
    length_chosen_n, length_rejected_n = checks.lengths_of_both(lengths)
    checks.same_length(policy=policy_chosen, lengths_chosen=length_chosen_n, lengths_rejected=length_rejected_n)
    return policy_chosen / length_chosen_n, policy_rejected / length_rejected_n


def _check_rows(policy_chosen: Tensor, policy_rejected: Tensor, margin: Tensor | None, label: Tensor | None) -> None:
    checks.same_length(policy_chosen=policy_chosen, policy_rejected=policy_rejected, margin=margin, label=label)
    checks.finite(margin=margin)
    checks.shares(label=label)
