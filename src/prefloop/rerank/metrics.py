"""What a reranker is measured by: does it tell aligned documents from unaligned ones, and does it put them first?

Classification counts labelled documents, class 1 where logit₁ exceeds logit₀. Ranking counts queries with an aligned
document and at least two documents; documents without a label are not relevant. Ranking measures are those of
ir-measures; documents of equal score stay in the order in which they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prefloop.records import RankingRow

Scores = Sequence[Sequence[float]]


def classification(labels: Sequence[int], predicted: Sequence[bool]) -> dict[str, float]:
    """Precision, recall and F1 of class 1; 0 where a division has nothing to divide by.

    Args:
        labels: 1 or 0.
        predicted: of the same documents.
    """
    hits = sum(1 for label, said in zip(labels, predicted, strict=True) if label == 1 and said)
    said, aligned = sum(map(bool, predicted)), sum(labels)
    # 2·tp / (2·tp + fp + fn), which is defined whenever anything is said or aligned, tp = 0 among it.
    return {
        "precision": hits / said if said else 0.0,
        "recall": hits / aligned if aligned else 0.0,
        "f1": 2 * hits / (said + aligned) if said + aligned else 0.0,
    }


def ranking(rows: Sequence[RankingRow], scores: Scores) -> dict[str, float]:
    """Means over the queries that can be ranked well or badly; empty where there is none.

    Args:
        scores: one list a row, by place.
    """
    import ir_measures
    from ir_measures import RR, P, Success, nDCG

    measures: dict[str, Any] = {
        "ndcg@10": nDCG @ 10,
        "mrr": RR,
        "hit@1": Success @ 1,
        "hit@3": Success @ 3,
        "precision@1": P @ 1,
        "precision@3": P @ 3,
    }
    truth: list[Any] = []
    run: list[Any] = []
    counted = 0
    for number, (row, own) in enumerate(zip(rows, scores, strict=True)):
        if 1 not in row["labels"] or len(row["documents"]) < 2:
            continue
        counted += 1
        for place, (label, score) in enumerate(zip(row["labels"], own, strict=True)):
            # Of equal scores ir-measures puts the larger id first; `rerank apply` keeps the order that was given.
            name = f"{len(own) - place:09d}"
            truth.append(ir_measures.Qrel(str(number), name, int(label == 1)))
            run.append(ir_measures.ScoredDoc(str(number), name, float(score)))
    if not counted:
        return {}
    found = ir_measures.calc_aggregate(list(measures.values()), truth, run)
    return {name: float(found[measure]) for name, measure in measures.items()} | {"ranked_queries": float(counted)}


def measure(rows: Sequence[RankingRow], differences: Scores, second: Scores | None = None) -> dict[str, float]:
    """All measures of rows; those of classification are left out where no document has a label.

    Args:
        differences: logit₁ − logit₀ of each document, by which it is classified and ranked.
        second: logit₁, where the model is to rank by that.
    """
    labelled = [
        (label, value > 0)
        for row, own in zip(rows, differences, strict=True)
        for label, value in zip(row["labels"], own, strict=True)
        if label is not None
    ]
    found: dict[str, float] = {}
    if labelled:
        found = classification([label for label, _ in labelled], [said for _, said in labelled])
        found["labelled_documents"] = float(len(labelled))
    return found | ranking(rows, differences if second is None else second)


def two_logits(
    model: Any, rows: Sequence[RankingRow], *, batch_size: int = 32
) -> tuple[list[list[float]], list[list[float]]]:
    """(logit₁ − logit₀, logit₁) of every document, by a model in training; equal pairs are scored once."""
    pairs = list(dict.fromkeys((row["query"], text) for row in rows for text in row["documents"]))
    found = model.predict(pairs, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    by_pair = dict(zip(pairs, found.tolist(), strict=True))
    differences, second = [], []
    for row in rows:
        own = [by_pair[row["query"], text] for text in row["documents"]]
        differences.append([one - zero for zero, one in own])
        second.append([one for _, one in own])
    return differences, second
