"""Losses of a whole ranking per prompt. Shape letters: n prompts, K answers to each, best first."""

from __future__ import annotations

import torch
from torch import Tensor

from prefloop.train.losses import checks


def plackett_luce(
    policy: Tensor,
    reference: Tensor,
    *,
    beta: float = 0.1,
    margin: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Direct preference optimisation of a ranking: minus its log-probability under the Plackett-Luce model.

    With s = beta (policy - reference - margin), answers from best to worst:

        sum over k of ( log sum over j >= k of exp(s_j)  -  s_k )

    Rafailov et al. 2023 (arXiv 2305.18290), appendix A.3; K = 2 is sigmoid DPO. The last place costs nothing, so ties
    among the worst answers are best left out by `mask`. The gradient with respect to policy_k is
    beta (sum over i <= k of softmax_{j >= i}(s)_k - 1).

    Args:
        policy, reference: [n, K], summed log-probabilities in nats, best first.
        beta: > 0.
        margin: [n, K], nats taken off each answer's log-ratio; only differences within a row matter, and (m, 0) of two
            answers is `dpo`'s margin m. None is 0.
        mask: [n, K] of bool, the answers that are there (the others' numbers are not read); None is all.

    Returns:
        [n], at least 0: a sum over the places of the row, not divided by K.

    Raises:
        ValueError: beta not above 0; shapes that differ; a mask that is not bool, or leaves a row fewer than two
            answers; a margin that is not finite.
    """
    checks.positive(beta=beta)
    checks.same_table(policy=policy, reference=reference, margin=margin, mask=mask)
    checks.finite(margin=margin)
    if mask is None:
        mask = torch.ones_like(policy, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be of bool, not {mask.dtype}")
    answers_n = mask.sum(dim=1)
    if bool((answers_n < 2).any()):
        row = int((answers_n < 2).nonzero()[0, 0])
        raise ValueError(f"a ranking needs two answers, row {row} has {int(answers_n[row])}")

    ratio_nK = policy - reference
    score_nK = beta * (ratio_nK if margin is None else ratio_nK - margin)
    # Masked scores are replaced before any arithmetic, not after: 0 times the gradient of inf would be NaN
    # (tests/train/test_losses_other.py::test_masked_answers_are_not_read).
    score_nK = score_nK.masked_fill(~mask, 0.0)
    own_KK = torch.eye(policy.shape[1], dtype=torch.bool, device=policy.device)
    # Place k competes with the answers from k on; a masked place with itself, which costs nothing.
    rivals_nKK = (mask[:, None, :] & mask[:, :, None]).triu() | own_KK
    total_nK = score_nK[:, None, :].masked_fill(~rivals_nKK, -torch.inf).logsumexp(dim=2)
    return (total_nK - score_nK).sum(dim=1)
