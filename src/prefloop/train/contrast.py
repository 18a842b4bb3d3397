"""The objective `cut`: an answer's tokens behind the plain prompt and behind the one with its judgment.

Each criticised answer is scored twice; one that is satisfactory once, and nothing stands in for its other context.
Shape letters: n examples, R responses, N scored tokens, M of them of criticised answers behind the plain prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prefloop.train import losses


@dataclass(frozen=True)
class Totals:
    """Of an optimiser step, over all its micro-batches and processes; fillers left out.

    Attributes:
        examples: how many.
        tokens: of the answers, each counted once.
        judged_tokens: of the criticised answers.
    """

    examples: float
    tokens: float
    judged_tokens: float


@dataclass(frozen=True)
class Tokens:
    """A micro-batch's token log-probabilities, float32.

    Attributes:
        policy: [N], under the model in training; carries the gradient.
        response: [N], int64, which of the R responses a token is of. Equal answers stand together: the plain context
            first, the judged one behind it.
        counts: responses of each example: 2 of a criticised answer, else 1.
        totals: of the whole step.
        detector: [N], without gradient and dropout, from which flags are made; None: `policy` will do.
        flags: [M], bool, found by a frozen model; None: they are made of the detector.
    """

    policy: Tensor
    response: Tensor
    counts: tuple[int, ...]
    totals: Totals
    detector: Tensor | None = None
    flags: Tensor | None = None

    @cached_property
    def judged(self) -> Tensor:
        """[n], bool: whether the answer is criticised."""
        return torch.tensor([count > 1 for count in self.counts], device=self.policy.device)

    @cached_property
    def example(self) -> Tensor:
        """[N]: which example a token is of."""
        counts_n = torch.tensor(self.counts, device=self.policy.device)
        return torch.repeat_interleave(torch.arange(len(self.counts), device=self.policy.device), counts_n)[
            self.response
        ]

    @cached_property
    def first(self) -> Tensor:
        """[N], bool: where a token stands in the context that likelihood is learned in: judged, or the only one."""
        last_R = [place == count - 1 for count in self.counts for place in range(count)]
        return torch.tensor(last_R, device=self.policy.device)[self.response]

    @cached_property
    def lengths(self) -> Tensor:
        """[n]: tokens of each answer, counted once."""
        return self.sums(torch.ones_like(self.policy)[self.first], self.first)

    def sums(self, values: Tensor, where: Tensor) -> Tensor:
        """[n]: sums of a vector over the tokens of `where`, by example."""
        zeros_n = torch.zeros(len(self.counts), dtype=values.dtype, device=values.device)
        return zeros_n.index_add(0, self.example[where], values)

    def pair(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(judged [M], plain [M]) of a vector [N]: the same tokens in the same order, of criticised answers."""
        twice = self.judged[self.example]
        return values[twice & self.first], values[~self.first]


def terms(tokens: Tokens, section: Any) -> tuple[Tensor, Tensor]:
    """(the plain context's terms [M], flags [M]) of the criticised answers; see `losses.cut`."""
    judged_M, plain_M = tokens.pair(tokens.policy)
    flags_M = tokens.flags
    if flags_M is None and tokens.detector is not None:
        flags_M = losses.flags(*tokens.pair(tokens.detector), threshold=section.threshold)
    return losses.cut(
        judged_M,
        plain_M,
        threshold=section.threshold,
        unlike_weight=section.unlike_weight,
        gamma=section.gamma,
        flagged=flags_M,
    )


def contrast(tokens: Tokens, section: Any) -> Tensor:
    """The loss of each example, [n], of which a step takes the weighted mean.

    With A an answer's negative log-likelihood in its first context (judged, or the only one), U the sum of its plain
    context's terms (0 for a satisfactory one) and L its tokens:

        sequence:  A / L, of a criticised answer (A + U) / 2L: the published code at micro-batches of one row
        paper:     A / L + U / L
        token:     n (A / N_all + U / N_judged) / 2: the step is the published code's loss of all its tokens together
    """
    terms_M, _ = terms(tokens, section)
    likelihood_n = tokens.sums(-tokens.policy[tokens.first], tokens.first)
    contrast_n = tokens.sums(terms_M, ~tokens.first)
    if section.normalize == "token":
        totals = tokens.totals
        if not totals.judged_tokens:
            return totals.examples * likelihood_n / totals.tokens
        return totals.examples * (likelihood_n / totals.tokens + contrast_n / totals.judged_tokens) / 2
    means_n = (likelihood_n + contrast_n) / tokens.lengths
    return means_n if section.normalize == "paper" else torch.where(tokens.judged, means_n / 2, means_n)


@torch.no_grad()
def metrics(tokens: Tokens, section: Any) -> dict[str, Tensor]:
    """Of each example, [n], NaN where it has none: likelihoods of satisfactory ones, flags of criticised ones.

    `likelihood/…` and `unlikelihood/flagged` are nats per token of the answer, before any normalisation.
    """
    terms_M, flags_M = terms(tokens, section)
    judged_M, plain_M = tokens.pair(tokens.policy if tokens.detector is None else tokens.detector)
    plain = ~tokens.first
    nothing = torch.full_like(tokens.lengths, float("nan"))

    def of_judged(values_M: Tensor) -> Tensor:
        """Per token of a criticised answer."""
        return torch.where(tokens.judged, tokens.sums(values_M, plain) / tokens.lengths, nothing)

    flagged_M = flags_M.to(terms_M)
    flagged_n = tokens.sums(flagged_M, plain)
    first_n = tokens.sums(-tokens.policy[tokens.first], tokens.first) / tokens.lengths
    return {
        "judged": tokens.judged.to(first_n),
        "likelihood/satisfactory": torch.where(tokens.judged, nothing, first_n),
        "likelihood/judged": torch.where(tokens.judged, first_n, nothing),
        "likelihood/kept": of_judged(terms_M * (1 - flagged_M)),
        "unlikelihood/flagged": of_judged(terms_M * flagged_M),
        "flags/rate": of_judged(flagged_M),
        "flags/log_ratio": of_judged(judged_M - plain_M),
        "flags/probability": torch.where(
            flagged_n > 0, tokens.sums(plain_M.exp() * flagged_M, plain) / flagged_n, nothing
        ),
    }
