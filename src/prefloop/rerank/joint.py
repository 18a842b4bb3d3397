"""One loss of up to three tasks over one pass of the encoder, and the gradient that a weighting makes of them.

The published code calls the encoder four times a step (classification, list, positives, negatives) and goes backward
once for each task and once more for the weighted sum. Here every distinct row is encoded once, and

    fixed      one backward pass;
    mgda_ub    the Gram matrix of the gradients in the encoder's output, which reach no further than the head, then
               one backward pass (Sener & Koltun 2018, section 3.3: an upper bound of MGDA's objective);
    mgda       one backward pass for each task, kept; their weighted sum is the gradient, so no pass is added.

Losses, values and gradients are those of the four calls (tests/rerank/test_joint.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prefloop.config import RerankSection
from prefloop.rerank import losses
from prefloop.rerank.batches import Batch
from prefloop.rerank.model import forward, shared_parameters
from prefloop.rerank.weighting import fixed, gram_of, mgda, normalized
from prefloop.train.precision import Precision


@dataclass(frozen=True)
class Weighed:
    """The tasks of a step: those from which the batch has something to learn.

    Attributes:
        losses: by name, in the order of the section's `losses`.
        weights: [t], float64.
        gram: [t, t], or None where no gradients were weighed.
    """

    losses: dict[str, Tensor]
    weights: Tensor
    gram: Tensor | None

    @property
    def total(self) -> Tensor:
        """The weighted sum; weights are constants in it."""
        if not self.losses:
            return torch.zeros(())
        values = torch.stack(list(self.losses.values()))
        return (self.weights.to(values) * values).sum()


class JointLoss(nn.Module):
    """The section's losses over a model.

    Args:
        model: with two logits.
        section: losses, temperature, form of the contrast, weighting.
    """

    def __init__(self, model: nn.Module, section: RerankSection, precision: Precision) -> None:
        super().__init__()
        self.model, self.section, self.precision = model, section, precision

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Losses by name, without those from which the batch has nothing to learn; and the encoder's outputs."""
        with self.precision.autocast():
            outputs = [forward(self.model, call) for call in batch.calls]  # type: ignore[arg-type]
        hidden = [h for h, _ in outputs]
        cls_Ud = torch.cat([h[:, 0].float() if h.dtype == torch.bfloat16 else h[:, 0] for h in hidden])
        logits_U2 = torch.cat([two.float() if two.dtype == torch.bfloat16 else two for _, two in outputs])
        found: dict[str, Tensor] = {}
        for name in self.section.losses:
            loss = getattr(self, f"_{name}")(batch, cls_Ud, logits_U2)
            if loss is not None:
                found[name] = loss
        return found, hidden

    def _pointwise(self, batch: Batch, cls_Ud: Tensor, logits_U2: Tensor) -> Tensor | None:
        if not len(batch.point_n):
            return None
        return losses.pointwise(logits_U2[batch.point_n], batch.label_n)

    def _pairwise(self, batch: Batch, cls_Ud: Tensor, logits_U2: Tensor) -> Tensor | None:
        scores_QK = logits_U2[batch.rank_QK, 1]
        if not bool(losses.ranked_pairs(scores_QK, batch.target_QK, batch.in_list_QK).any()):
            return None
        return losses.pairwise(scores_QK, batch.target_QK, batch.in_list_QK)

    def _contrastive(self, batch: Batch, cls_Ud: Tensor, logits_U2: Tensor) -> Tensor | None:
        if self.section.contrastive == "group":
            if not bool(losses.partners(batch.positive_QC, batch.in_group_QC).any()):
                return None
            return losses.grouped(
                cls_Ud[batch.side_QC], batch.positive_QC, batch.in_group_QC, temperature=self.section.temperature
            )
        owner_n, place_n = batch.in_group_QC.nonzero(as_tuple=True)
        positive_n = batch.positive_QC[owner_n, place_n]
        drawn_Qn, against_Qn = losses.anchored_sides(len(batch.query_Q), owner_n, positive_n)
        if not bool((drawn_Qn.any(-1) & against_Qn.any(-1)).any()):
            return None
        documents_nd = cls_Ud[batch.side_QC[owner_n, place_n]]
        return losses.anchored(
            cls_Ud[batch.query_Q], documents_nd, owner_n, positive_n, temperature=self.section.temperature
        )


def backward(joint: JointLoss, batch: Batch) -> Weighed:
    """Losses of a batch and their weights; adds the gradient of the weighted sum to the model's.

    A batch from which no loss has anything to learn adds nothing: the last one of an epoch may hold a single query,
    which has no other query's documents to be drawn from.

    Raises:
        PrefloopError: the Gram matrix of the gradients is not finite.
    """
    found, hidden = joint(batch)
    if not found:
        return Weighed({}, torch.zeros(0, dtype=torch.float64), None)
    if joint.section.weighting == "mgda" and len(found) > 1:
        return _exact(joint, found, hidden)
    weighed = Weighed(found, *_weights(joint.section, found, hidden))
    weighed.total.backward()  # type: ignore[no-untyped-call]
    return weighed


def _weights(
    section: RerankSection, found: dict[str, Tensor], hidden: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Weights before the backward pass, and the Gram matrix that they come from."""
    if section.weighting == "fixed":
        given: dict[str, float] = dict(
            zip(section.losses, section.weights or [1.0] * len(section.losses), strict=True)
        )
        return fixed([given[name] for name in found]), None
    gradients = [
        torch.autograd.grad(loss, list(hidden), retain_graph=True, allow_unused=True) for loss in found.values()
    ]
    gram = gram_of(gradients)
    return _least(section, gram, found), gram.cpu()


def _least(section: RerankSection, gram: Tensor, found: dict[str, Tensor]) -> Tensor:
    """MGDA's weights of the gradients, normalised as the section says."""
    gram = gram.cpu()
    if section.normalize == "none":
        return mgda(gram)
    weights = torch.zeros(len(found), dtype=torch.float64)
    # A gradient of length 0 has no direction to weigh: it gets no weight, where it would get all of it otherwise.
    moving = gram.diagonal() > 0
    if not bool(moving.any()):
        return mgda(gram)
    values = [loss.item() for loss, moves in zip(found.values(), moving.tolist(), strict=True) if moves]
    weights[moving] = mgda(normalized(gram[moving][:, moving], values, section.normalize))
    return weights


def _exact(joint: JointLoss, found: dict[str, Tensor], hidden: Sequence[Tensor]) -> Weighed:
    """MGDA over the shared weights: a backward pass for each task, whose weighted sum is the gradient of all.

    A task's gradient goes through the calls whose rows it reads and through no others: autograd alone would carry
    zeros through all of them, at the price of numbers.
    """
    shared = shared_parameters(joint.model)  # type: ignore[arg-type]
    own = set(shared)
    head = [p for p in joint.model.parameters() if p.requires_grad and p not in own]
    parameters = [*shared, *head]
    gradients: list[list[Tensor | None]] = []
    for loss in found.values():
        upper = torch.autograd.grad(loss, [*hidden, *head], retain_graph=True, allow_unused=True)
        read = [(h, g) for h, g in zip(hidden, upper[: len(hidden)], strict=True) if g is not None and bool(g.any())]
        below: Sequence[Tensor | None] = [None] * len(shared)
        if read:
            outputs, inner = zip(*read, strict=True)
            below = torch.autograd.grad(outputs, shared, inner, retain_graph=True, allow_unused=True)
        gradients.append([*below, *upper[len(hidden) :]])
    gram = gram_of([pieces[: len(shared)] for pieces in gradients])
    weights = _least(joint.section, gram, found)
    for place, parameter in enumerate(parameters):
        for weight, pieces in zip(weights.tolist(), gradients, strict=True):
            piece = pieces[place]
            if piece is None or weight == 0:
                continue
            if parameter.grad is None:
                parameter.grad = piece * weight
            else:
                parameter.grad.add_(piece, alpha=weight)
    return Weighed(found, weights, gram.cpu())
