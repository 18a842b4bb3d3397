"""An objective ties pairs to a loss: what it needs, the loss of each pair, and what to show of it.

Objectives see only small vectors, never a model, a layout or a row. Shape letter: n pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from prefloop.config import DpoObjectiveSection
from prefloop.train import losses


@dataclass(frozen=True)
class PairLogprobs:
    """Summed log-probabilities of pairs and the columns that travel with them; all [n], float32.

    Attributes:
        policy_chosen, policy_rejected: under the model in training; these carry the gradient.
        reference_chosen, reference_rejected: under the frozen start.
        tokens_chosen, tokens_rejected: scored tokens, end of turn included.
        weight, margin: the rows' columns; 1 and 0 where a row has none.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    tokens_chosen: Tensor
    tokens_rejected: Tensor
    weight: Tensor
    margin: Tensor

    def at_start(self) -> PairLogprobs:
        """The same pairs as a policy that equals its reference sees them: all log-ratios are 0."""
        return replace(self, policy_chosen=self.reference_chosen, policy_rejected=self.reference_rejected)


@dataclass(frozen=True)
class Objective:
    """How one method trains on pairs.

    Attributes:
        needs_reference: whether reference log-probabilities must be computed.
        losses: the unweighted loss of each pair, [n].
        metrics: name -> [n], without gradient; the trainer averages them over rows.
    """

    needs_reference: bool
    losses: Callable[[PairLogprobs, DpoObjectiveSection], Tensor]
    metrics: Callable[[PairLogprobs, DpoObjectiveSection], dict[str, Tensor]]


def _dpo_losses(pairs: PairLogprobs, section: DpoObjectiveSection) -> Tensor:
    return losses.dpo(
        pairs.policy_chosen,
        pairs.policy_rejected,
        pairs.reference_chosen,
        pairs.reference_rejected,
        beta=section.beta,
        label_smoothing=section.label_smoothing,
        margin=pairs.margin,
    )


def _dpo_metrics(pairs: PairLogprobs, section: DpoObjectiveSection) -> dict[str, Tensor]:
    """Implicit rewards beta * (policy - reference); accuracy compares them without the margin, ties count half."""
    chosen_n = section.beta * (pairs.policy_chosen.detach() - pairs.reference_chosen)
    rejected_n = section.beta * (pairs.policy_rejected.detach() - pairs.reference_rejected)
    return {
        "rewards/chosen": chosen_n,
        "rewards/rejected": rejected_n,
        "rewards/margins": chosen_n - rejected_n,
        "rewards/accuracies": ((chosen_n - rejected_n).sign() + 1) / 2,
        "logps/chosen": pairs.policy_chosen.detach(),
        "logps/rejected": pairs.policy_rejected.detach(),
    }


OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(needs_reference=True, losses=_dpo_losses, metrics=_dpo_metrics),
}
"""Name in a recipe's `train.objective.type` -> objective."""
