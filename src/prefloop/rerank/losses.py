"""The three losses of DPA-RAG's reranker (Dong et al. 2024, arXiv 2406.18676), and their general forms.

Shape letters: n documents, Q queries, K documents in a list, C documents in a group, d the width of a representation.
Every function returns a mean, and an exact zero that is tied to the graph where nothing is eligible; `joint.py` leaves
such a loss out of the weighting. All are written with softplus and logsumexp: no argument is exponentiated alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07


def pointwise(logits: Tensor, labels: Tensor) -> Tensor:
    """Is a document aligned? Two-way cross-entropy, which is binary cross-entropy on the difference of the logits.

        mean_n −log softmax(logits_n)[label_n]

    Args:
        logits: [n, 2].
        labels: [n], 1 for aligned, 0 for unaligned.

    Returns:
        Scalar.
    """
    if not len(logits):
        return logits.sum()
    return F.cross_entropy(logits, labels.long())


def pairwise(scores: Tensor, targets: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Is the better document of a list scored higher? RankNet's loss (Burges et al. 2005) in nats.

        mean over queries of the mean over pairs (i better than j) of log(1 + exp(−(s_i − s_j)))

    Args:
        scores: [Q, K].
        targets: [Q, K], higher is better, equal targets make no pair. None: the lists stand best first.
        mask: [Q, K], False for places that a shorter list does not fill. None: all lists are full.

    Returns:
        Scalar, over the queries that have a pair.

    Example:
        >>> round(float(pairwise(torch.tensor([[2.0, 0.0]]))), 4)
        0.1269
    """
    better_QKK = ranked_pairs(scores, targets, mask)
    loss_QKK = F.softplus(scores.unsqueeze(1) - scores.unsqueeze(2))
    return _mean_of_means(loss_QKK.flatten(1), better_QKK.flatten(1))


def ranked_pairs(scores: Tensor, targets: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """[Q, K, K] bool: place i of the list is better than place j; see `pairwise`."""
    if targets is None:
        targets = -torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    better_QKK = targets.unsqueeze(2) > targets.unsqueeze(1)
    return better_QKK if mask is None else better_QKK & mask.unsqueeze(1) & mask.unsqueeze(2)


def contrastive(embeddings: Tensor, positives: int, temperature: float = TEMPERATURE) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2) in groups of p positives and m negatives of one query.

    The published form: every document is an anchor, so the negatives attract each other too, and no query and no
    other query's document takes part.

    Args:
        embeddings: [q, p+m, d], the positives first; normalised here.
        positives: p.
        temperature: divides the cosines.

    Returns:
        Scalar.
    """
    positive_QC = torch.arange(embeddings.shape[1], device=embeddings.device) < positives
    return grouped(embeddings, positive_QC.expand(embeddings.shape[:2]), temperature=temperature)


def grouped(
    embeddings: Tensor, positive: Tensor, mask: Tensor | None = None, *, temperature: float = TEMPERATURE
) -> Tensor:
    """`contrastive` for any numbers of positives and negatives.

        mean over queries, mean over anchors i, mean over partners p of
            log Σ_{k≠i} exp(z_i·z_k/τ) − z_i·z_p/τ

    Partners of i are the group's other documents of its own class. Anchors without a partner are left out, and so are
    groups of two documents: the sum is the partner alone, and the loss 0 whatever the representations are.

    Args:
        embeddings: [Q, C, d].
        positive: [Q, C] bool.
        mask: [Q, C], False for places that a smaller group does not fill.

    Returns:
        Scalar, over the queries that have an anchor.
    """
    partner_QCC = partners(positive, mask)
    z_QCd = F.normalize(embeddings, dim=-1)
    cosine_QCC = z_QCd @ z_QCd.transpose(1, 2) / temperature
    other_QCC = ~torch.eye(positive.shape[1], dtype=torch.bool, device=positive.device).expand_as(cosine_QCC)
    if mask is not None:
        other_QCC = other_QCC & mask.unsqueeze(1)
    # A finite floor: a row of −inf alone, as an empty place has, would give NaN in the backward pass.
    floor = torch.finfo(cosine_QCC.dtype).min / 2
    total_QC = torch.logsumexp(cosine_QCC.masked_fill(~other_QCC, floor), dim=-1)
    count_QC = partner_QCC.sum(-1)
    drawn_QC = (cosine_QCC * partner_QCC).sum(-1) / count_QC.clamp(min=1)
    return _mean_of_means(total_QC - drawn_QC, count_QC > 0)


def partners(positive: Tensor, mask: Tensor | None = None) -> Tensor:
    """[Q, C, C] bool: which documents of a group attract each other; see `grouped`."""
    filled_QC = torch.ones_like(positive) if mask is None else mask
    same_QCC = positive.unsqueeze(1) == positive.unsqueeze(2)
    same_QCC = same_QCC & ~torch.eye(positive.shape[1], dtype=torch.bool, device=positive.device)
    same_QCC = same_QCC & filled_QC.unsqueeze(1) & filled_QC.unsqueeze(2)
    return same_QCC & (filled_QC.sum(-1) > 2)[:, None, None]


def anchored(
    queries: Tensor, documents: Tensor, owner: Tensor, positive: Tensor, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Contrastive loss with the query as anchor and negatives from the whole batch (van den Oord et al. 2018).

        mean over queries, mean over aligned documents p of
            log(exp(q·z_p/τ) + Σ_n exp(q·z_n/τ)) − q·z_p/τ

    Negatives n are the query's own unaligned documents and all documents of the batch's other queries; a query's
    other aligned documents are neither.

    Args:
        queries: [Q, d].
        documents: [n, d].
        owner: [n], the query of each document.
        positive: [n] bool.

    Returns:
        Scalar, over the queries that have an aligned document and a negative.
    """
    cosine_Qn = F.normalize(queries, dim=-1) @ F.normalize(documents, dim=-1).T / temperature
    positive_Qn, negative_Qn = anchored_sides(len(queries), owner, positive)
    floor = torch.finfo(cosine_Qn.dtype).min / 2
    against_Q1 = torch.logsumexp(cosine_Qn.masked_fill(~negative_Qn, floor), dim=-1, keepdim=True)
    return _mean_of_means(F.softplus(against_Q1 - cosine_Qn), positive_Qn & negative_Qn.any(-1, keepdim=True))


def anchored_sides(queries: int, owner: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Two [Q, n] bool: which documents draw a query, and which it is drawn from; see `anchored`."""
    own_Qn = torch.arange(queries, device=owner.device).unsqueeze(1) == owner
    return own_Qn & positive, ~(own_Qn & positive)


def _mean_of_means(values_Qm: Tensor, counted_Qm: Tensor) -> Tensor:
    """The mean over rows of the mean over a row's counted values; rows without one do not count."""
    count_Q = counted_Qm.sum(-1)
    means_Q = torch.where(counted_Qm, values_Qm, 0.0).sum(-1) / count_Q.clamp(min=1)
    return means_Q.sum() / (count_Q > 0).sum().clamp(min=1)
