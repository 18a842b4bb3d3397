"""An objective ties examples to a loss: what it reads, the loss of each example, and what to show of it.

Objectives see only small vectors, never a model, a layout or a row. Shape letters: n examples, R responses, K
responses of an example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prefloop.train import contrast, losses
from prefloop.train.encode import Takes


@dataclass(frozen=True)
class Scored:
    """Summed log-probabilities of a micro-batch and the columns that travel with them; float32.

    Attributes:
        policy: [R], under the model in training; carries the gradient.
        reference: [R], under the frozen start; NaN where the objective asks for none.
        tokens: [R], scored tokens, end of turn included.
        counts: responses of each example.
        weight, margin, label: [n], the rows' columns; 1, 0 and 1 where a row has none.
        drift: the mean log-ratio of the whole step's answers to other prompts, at least 0; see `Objective.drifts`.
        shift: the mean of `Objective.shifts` over all examples of the steps before.
        by_token: what `policy` is summed from; only for an objective that asks for it.
    """

    policy: Tensor
    reference: Tensor
    tokens: Tensor
    counts: tuple[int, ...]
    weight: Tensor
    margin: Tensor
    label: Tensor
    drift: float = 0.0
    shift: float = 0.0
    by_token: contrast.Tokens | None = None

    def at_start(self) -> Scored:
        """The same examples as a policy that equals its reference sees them: all log-ratios are 0."""
        return replace(self, policy=self.reference, drift=0.0)

    def pairs(self, values_R: Tensor) -> tuple[Tensor, Tensor]:
        """(chosen [n], rejected [n]) of a vector over responses."""
        values_n2 = values_R.view(-1, 2)
        return values_n2[:, 0], values_n2[:, 1]

    def lists(self, values_R: Tensor) -> Tensor:
        """A vector over responses as [n, K], padded with 0 where an example has fewer than the most; see `present`."""
        parts = torch.split(values_R, list(self.counts))
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)

    def present(self) -> Tensor:
        """[n, K], bool: where `lists` holds a response."""
        counts_n = torch.tensor(self.counts, device=self.policy.device)
        return torch.arange(max(self.counts), device=self.policy.device) < counts_n[:, None]


Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """How one method trains.

    Attributes:
        takes: what it reads from preference rows.
        needs_reference: whether reference log-probabilities must be computed.
        losses: (scored, the recipe's objective section) -> the unweighted loss of each example, [n].
        metrics: name -> [n], without gradient; the trainer averages them over examples, without those that are NaN.
        drifts: whether the loss is measured from `Scored.drift`, which takes one more forward pass per step.
        shifts: (scored, section) -> what `Scored.shift` is the running mean of, [n]; None where a loss has no shift.
        beside: (scored, section) -> what the step's loss has beside the weighted one, [n]; itself without weights.
        per_token: the step's loss is divided by its scored tokens and not by its examples.
        by_token: whether it needs `Scored.by_token`.
    """

    takes: Takes
    needs_reference: bool
    losses: Callable[[Scored, Any], Tensor]
    metrics: Callable[[Scored, Any], Metrics]
    drifts: bool = False
    shifts: Callable[[Scored, Any], Tensor] | None = None
    beside: Callable[[Scored, Any], Tensor | None] = field(default=lambda scored, section: None)
    per_token: Callable[[Any], bool] = field(default=lambda section: False)
    by_token: bool = False


def _anchored(loss: Callable[..., Tensor], scored: Scored, section: Any, **settings: Any) -> Tensor:
    """A loss of two log-ratios with its columns, plus the recipe's likelihood term."""
    chosen_n, rejected_n = scored.pairs(scored.policy)
    losses_n = loss(
        chosen_n,
        rejected_n,
        *scored.pairs(scored.reference),
        beta=section.beta,
        margin=scored.margin,
        **settings,
    )
    return losses_n if _apart(section) else losses_n + _likelihood(scored, chosen_n, section)


def _apart(section: Any) -> bool:
    """Whether weights are the preference's alone, so that the likelihood term stands beside it without them."""
    return getattr(section, "weight_alpha", None) is not None


def _beside(scored: Scored, section: Any) -> Tensor | None:
    if not _apart(section) or not section.sft_weight:
        return None
    return _likelihood(scored, scored.pairs(scored.policy)[0], section)


def _likelihood(scored: Scored, chosen_n: Tensor, section: Any) -> Tensor:
    weight: float = section.sft_weight
    if not weight:
        return torch.zeros_like(chosen_n)
    return weight * losses.sft(chosen_n, scored.pairs(scored.tokens)[0])


def _with_margins(scored: Scored, section: Any) -> Scored:
    """The same examples with the margins that the section makes of the rows' own; DLMA's clipping and weight."""
    if section.margin_weight is None:
        return scored
    low, high = section.margin_clip or (-float("inf"), float("inf"))
    return replace(scored, margin=losses.scale_margin(scored.margin, section.margin_weight, low, high))


def _dpo(scored: Scored, section: Any) -> Tensor:
    scored = _with_margins(scored, section)
    if section.kind == "discopop":
        return _anchored(losses.discopop, scored, section, label=scored.label)
    if section.kind == "exo":
        smoothing = section.label_smoothing or EXO_SMOOTHING
        return _anchored(losses.exo, scored, section, label=scored.label, label_smoothing=smoothing)
    return _anchored(
        losses.dpo,
        scored,
        section,
        kind=section.kind,
        label=scored.label,
        label_smoothing=section.label_smoothing,
        lengths=scored.pairs(scored.tokens),
    )


def _sppo(scored: Scored, section: Any) -> Tensor:
    return _anchored(losses.sppo, scored, section, win_chosen=scored.label, win_rejected=1 - scored.label)


def _simpo(scored: Scored, section: Any) -> Tensor:
    chosen_n, rejected_n = scored.pairs(scored.policy)
    losses_n = losses.simpo(
        chosen_n,
        rejected_n,
        lengths=scored.pairs(scored.tokens),
        beta=section.beta,
        gamma=section.gamma,
        margin=scored.margin,
        label=scored.label,
    )
    return losses_n + _likelihood(scored, chosen_n, section)


def _cpo(scored: Scored, section: Any) -> Tensor:
    return losses.cpo(
        *scored.pairs(scored.policy),
        beta=section.beta,
        nll_weight=section.nll_weight,
        margin=scored.margin,
        label=scored.label,
    )


def _orpo(scored: Scored, section: Any) -> Tensor:
    return losses.orpo(
        *scored.pairs(scored.policy),
        lengths=scored.pairs(scored.tokens),
        odds_weight=section.odds_weight,
        margin=scored.margin,
        label=scored.label,
    )


def _kto(scored: Scored, section: Any) -> Tensor:
    return losses.kto(
        scored.policy,
        scored.reference,
        desirable=scored.label > 0.5,
        z0=scored.drift,
        beta=section.beta,
        desirable_weight=section.desirable_weight,
        undesirable_weight=section.undesirable_weight,
        margin=scored.margin,
    )


def _plackett_luce(scored: Scored, section: Any) -> Tensor:
    return losses.plackett_luce(
        scored.lists(scored.policy), scored.lists(scored.reference), beta=section.beta, mask=scored.present()
    )


def _sft(scored: Scored, section: Any) -> Tensor:
    return losses.sft(scored.policy, None if section.average == "tokens" else scored.tokens)


def _sft_metrics(scored: Scored, section: Any) -> Metrics:
    return {"logps/chosen": scored.policy.detach(), "nll_per_token": -scored.policy.detach() / scored.tokens}


def _implicit_rewards(scored: Scored, section: Any) -> Metrics:
    """Implicit rewards beta * (policy - reference); accuracy compares them without the margin, ties count half."""
    ratio_R = scored.policy.detach() - scored.reference
    return _compared(scored, *scored.pairs(section.beta * ratio_R)) | {"kl": _divergence(scored)}


def _dpo_metrics(scored: Scored, section: Any) -> Metrics:
    """As of all implicit rewards; with `margin_weight` also the margin in use and the share of pairs it is clipped in.

    A share near 1 means that the margins tell sure pairs from doubtful ones no longer: they all reach the same end.
    """
    found = _implicit_rewards(scored, section)
    if section.margin_weight is None:
        return found
    low, high = section.margin_clip or (-float("inf"), float("inf"))
    clipped_n = (scored.margin <= low) | (scored.margin >= high)
    return found | {
        "margins/used": _with_margins(scored, section).margin,
        "margins/clipped": clipped_n.to(scored.margin),
    }


def _middle_reward(scored: Scored, section: Any) -> Tensor:
    """Half-way between the implicit rewards of the two answers."""
    chosen_n, rejected_n = scored.pairs(scored.policy.detach() - scored.reference)
    return section.beta * (chosen_n + rejected_n) / 2  # type: ignore[no-any-return]


def _shifted_rewards(scored: Scored, section: Any) -> Metrics:
    return _implicit_rewards(scored, section) | {"rewards/shift": torch.full_like(scored.margin, scored.shift)}


def _average_rewards(scored: Scored, section: Any) -> Metrics:
    """Rewards without a reference: beta times the mean log-probability of a token."""
    return _compared(scored, *scored.pairs(section.beta * scored.policy.detach() / scored.tokens))


def _mean_rewards(scored: Scored, section: Any) -> Metrics:
    """Rewards of an objective that compares odds: the mean log-probability of a token."""
    return _compared(scored, *scored.pairs(scored.policy.detach() / scored.tokens))


def _summed_rewards(scored: Scored, section: Any) -> Metrics:
    """Rewards without a reference that are not averaged: beta times the log-probability of the answer."""
    return _compared(scored, *scored.pairs(section.beta * scored.policy.detach()))


def _compared(scored: Scored, chosen_n: Tensor, rejected_n: Tensor) -> Metrics:
    logps_chosen_n, logps_rejected_n = scored.pairs(scored.policy.detach())
    return {
        "rewards/chosen": chosen_n,
        "rewards/rejected": rejected_n,
        "rewards/margins": chosen_n - rejected_n,
        "rewards/accuracies": ((chosen_n - rejected_n).sign() + 1) / 2,
        "logps/chosen": logps_chosen_n,
        "logps/rejected": logps_rejected_n,
    }


def _divergence(scored: Scored) -> Tensor:
    """[n]: the mean of reference - policy over an example's responses, in nats.

    Where the responses were sampled from the reference, as in the loop's first round, its average over examples is an
    unbiased estimate of KL(reference || policy) under the pairing's choice of answers; elsewhere it tells how much
    likelihood the answers have lost.
    """
    lost_R = scored.reference - scored.policy.detach()
    counts_n = torch.tensor(scored.counts, device=lost_R.device)
    return scored.lists(lost_R).sum(-1) / counts_n


def _single_rewards(scored: Scored, section: Any) -> Metrics:
    """Implicit rewards of single answers; `rewards/signed` counts the bad ones with a minus and should rise."""
    rewards_n = section.beta * (scored.policy.detach() - scored.reference)
    sign_n = 2 * (scored.label > 0.5).to(rewards_n) - 1
    return {
        "rewards/signed": sign_n * rewards_n,
        "rewards/accuracies": ((sign_n * (rewards_n - section.beta * scored.drift)).sign() + 1) / 2,
        "kl": torch.full_like(rewards_n, scored.drift),
    }


def _list_rewards(scored: Scored, section: Any) -> Metrics:
    """Rewards of the best and of the last answer, and how often the order of two answers is the given one."""
    rewards_nK = scored.lists(section.beta * (scored.policy.detach() - scored.reference))
    present_nK = scored.present()
    last_n1 = present_nK.sum(-1, keepdim=True) - 1
    gap_nKK = rewards_nK[:, :, None] - rewards_nK[:, None, :]
    ordered_nKK = (present_nK[:, :, None] & present_nK[:, None, :]).triu(1)
    right_n = (((gap_nKK.sign() + 1) / 2) * ordered_nKK).sum((1, 2)) / ordered_nKK.sum((1, 2))
    best_n, worst_n = rewards_nK[:, 0], rewards_nK.gather(1, last_n1)[:, 0]
    logps_nK = scored.lists(scored.policy.detach())
    return {
        "rewards/chosen": best_n,
        "rewards/rejected": worst_n,
        "rewards/margins": best_n - worst_n,
        "rewards/accuracies": right_n,
        "logps/chosen": logps_nK[:, 0],
        "logps/rejected": logps_nK.gather(1, last_n1)[:, 0],
        "kl": _divergence(scored),
    }


def _cut(scored: Scored, section: Any) -> Tensor:
    assert scored.by_token is not None
    return contrast.contrast(scored.by_token, section)


def _cut_metrics(scored: Scored, section: Any) -> Metrics:
    assert scored.by_token is not None
    return contrast.metrics(scored.by_token, section)


EXO_SMOOTHING = 1e-3
"""EXO's target distribution must leave something to the rejected answer; its authors' value."""


def _gap_objective(loss: Callable[[Scored, Any], Tensor]) -> Objective:
    return Objective("pairs", needs_reference=True, losses=loss, metrics=_implicit_rewards)


OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective("pairs", needs_reference=True, losses=_dpo, metrics=_dpo_metrics, beside=_beside),
    "sppo": _gap_objective(_sppo),
    "nca": _gap_objective(lambda scored, section: _anchored(losses.nca, scored, section, label=scored.label)),
    "bco": Objective(
        "pairs",
        needs_reference=True,
        losses=lambda scored, section: _anchored(losses.bco, scored, section, label=scored.label, delta=scored.shift),
        metrics=_shifted_rewards,
        shifts=_middle_reward,
    ),
    "apo_zero": _gap_objective(
        lambda scored, section: _anchored(losses.apo_zero, scored, section, label=scored.label)
    ),
    "apo_down": _gap_objective(
        lambda scored, section: _anchored(losses.apo_down, scored, section, label=scored.label)
    ),
    "simpo": Objective("pairs", needs_reference=False, losses=_simpo, metrics=_average_rewards),
    "cpo": Objective("pairs", needs_reference=False, losses=_cpo, metrics=_summed_rewards),
    "orpo": Objective("pairs", needs_reference=False, losses=_orpo, metrics=_mean_rewards),
    "kto": Objective("unpaired", needs_reference=True, losses=_kto, metrics=_single_rewards, drifts=True),
    "plackett_luce": Objective("lists", needs_reference=True, losses=_plackett_luce, metrics=_list_rewards),
    "sft": Objective(
        "answers",
        needs_reference=False,
        losses=_sft,
        metrics=_sft_metrics,
        per_token=lambda section: section.average == "tokens",
    ),
    "cut": Objective("judgments", needs_reference=False, losses=_cut, metrics=_cut_metrics, by_token=True),
}
"""Name in a recipe's `train.objective.type` -> objective."""
