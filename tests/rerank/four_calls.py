"""The published step, written from its description: four calls of the encoder, plain means, one pass for each task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tiny_rerankers import WORDS
from torch import Tensor

from prefloop.rerank.groups import Group
from prefloop.rerank.model import forward, shared_parameters
from prefloop.rerank.weighting import mgda

TASKS = ("pointwise", "pairwise", "contrastive")


def published_groups(shared: bool = True) -> list[Group]:
    """Four queries with 1 + 4 + 2 + 2 documents; the classified one is the first of its side where they are shared."""

    def text(place: int) -> str:
        return " ".join(WORDS[(place * k + 11) % 60] for k in range(1, 4 + place % 5))

    groups = []
    for q in range(4):
        documents = tuple(text(10 * q + i) + f" w{i}" for i in range(9))
        classified = ((4, 1) if q % 2 else (6, 0)) if shared else (8, q % 2)
        groups.append(
            Group(
                id=str(q),
                query_id=str(q),
                query=f"w{q} w{2 * q + 20}",
                documents=documents,
                classified=(classified,),
                ranked=tuple((i, float(-i)) for i in range(4)),
                positives=(4, 5),
                negatives=(6, 7),
            )
        )
    return groups


def four_calls(model, groups: Sequence[Group], tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
    """The losses, each from the calls that it needs."""

    def encode(pairs: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        hidden, logits = forward(model, model.preprocess(pairs))
        return hidden[:, 0], logits

    def pairs(places) -> list[tuple[str, str]]:
        return [(g.query, g.documents[i]) for g in groups for i in places(g)]

    found = {}
    if "pointwise" in tasks:
        _, logits = encode(pairs(lambda g: [g.classified[0][0]]))
        labels = torch.tensor([g.classified[0][1] for g in groups])
        found["pointwise"] = -torch.log_softmax(logits, 1)[torch.arange(len(groups)), labels].mean()
    if "pairwise" in tasks:
        scores = encode(pairs(lambda g: [i for i, _ in g.ranked]))[1][:, 1].reshape(len(groups), 4)
        found["pairwise"] = torch.stack(
            [torch.log1p(torch.exp(s[j] - s[i])) for s in scores for i in range(4) for j in range(i + 1, 4)]
        ).mean()
    if "contrastive" in tasks:
        positives = encode(pairs(lambda g: g.positives))[0].reshape(len(groups), 2, -1)
        negatives = encode(pairs(lambda g: g.negatives))[0].reshape(len(groups), 2, -1)
        values = []
        for four in torch.cat([positives, negatives], 1):
            z = torch.stack([v / v.norm() for v in four])
            cosine = torch.exp(z @ z.T / 0.07)
            for i, partner in enumerate((1, 0, 3, 2)):
                values.append(-torch.log(cosine[i, partner] / (cosine[i].sum() - cosine[i, i])))
        found["contrastive"] = torch.stack(values).mean()
    return found


def published_step(model, groups: Sequence[Group], tasks: Sequence[str] = TASKS) -> tuple[Tensor, Tensor]:
    """A backward pass for each task over the shared weights, the weights of least norm, a pass of their sum.

    Returns:
        (weights, Gram matrix); the gradients are in the model.
    """
    found = list(four_calls(model, groups, tasks).values())
    shared = shared_parameters(model)
    flat = []
    for loss in found:
        pieces = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        dense = [torch.zeros_like(p) if g is None else g for p, g in zip(shared, pieces)]
        flat.append(torch.cat([g.flatten() for g in dense]))
    jacobian = torch.stack(flat)
    gram = (jacobian @ jacobian.T).double()
    weights = mgda(gram)
    sum(w * loss for w, loss in zip(weights.tolist(), found)).backward()
    return weights, gram
