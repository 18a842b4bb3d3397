"""Contrastive unlikelihood: of an answer that a judgment criticises, each token is kept or held back.

The answer is scored twice, behind the prompt with the judgment in it ("write what this judgment describes") and behind
the plain prompt. A token whose probability falls when the judgment is taken out is one that the judgment speaks of.
Shape letter: N tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prefloop.train.losses import checks


def cut(
    judged: Tensor,
    plain: Tensor,
    *,
    threshold: float,
    unlike_weight: float,
    gamma: float = 0.0,
    flagged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The terms of an answer's tokens behind the plain prompt: likelihood, or weighted unlikelihood where flagged.

        flagged:  log p_judged - log p_plain > log(threshold)
        term:     -log p_plain, or where flagged  -unlike_weight p_judged^gamma log(1 - p_plain)

    Xu et al. 2024 (CUT, arXiv 2312.14591), eq. 6; their code is gamma = 0, the paper's factor is gamma > 0. Neither
    the flags nor that factor carry a gradient, so none flows through `judged`. The slope with respect to a flagged
    token's log-probability is unlike_weight p_plain / (1 - p_plain): for a threshold t > 1 at most
    unlike_weight / (t - 1).

    Args:
        judged, plain: [N], log-probabilities in nats of the same tokens with the judgment in the prompt and without.
        threshold: > 0, of the ratio of probabilities; 1.1 to 1.5 in the paper. At 1 or below a flagged token may be a
            certain one; its probability counts as below 1 by the precision of its type then.
        unlike_weight: at least 0, the paper's alpha.
        gamma: at least 0.
        flagged: [N], bool, decided elsewhere (without dropout, by a frozen model); None decides here.

    Returns:
        (terms [N], at least 0; flags [N], bool).

    Raises:
        ValueError: a setting out of its range; shapes that differ.
    """
    checks.not_negative(unlike_weight=unlike_weight, gamma=gamma)
    checks.same_length(judged=judged, plain=plain, flagged=flagged)
    if flagged is None:
        flagged = flags(judged, plain, threshold=threshold)
    weight_N = unlike_weight * torch.exp(gamma * judged.detach())
    # What is not flagged must not reach log(1 - p): at p = 1 its slope is infinite, and 0 times that is NaN
    # (tests/train/test_losses_cut.py::test_certain_tokens_have_finite_gradients).
    held_back_N = plain.where(flagged, torch.full_like(plain, -math.log(2)))
    return torch.where(flagged, -weight_N * log1mexp(held_back_N), -plain), flagged


def flags(judged: Tensor, plain: Tensor, *, threshold: float) -> Tensor:
    """Which tokens the judgment speaks of, [N], bool; see `cut`."""
    checks.positive(threshold=threshold)
    checks.same_length(judged=judged, plain=plain)
    return judged.detach() - plain.detach() > math.log(threshold)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, exact near 0 and far below; x counts as below 0 by the precision of its type.

    Mächler 2012, "Accurately computing log(1 - exp(-|a|))": expm1 above -log 2, log1p below.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -math.log(2)
    # Each branch is given a harmless value where the other one holds: the slope of an unused branch must be finite.
    half = torch.full_like(x, -math.log(2))
    return torch.where(near, (-torch.expm1(x.where(near, half))).log(), torch.log1p(-x.where(~near, half).exp()))
