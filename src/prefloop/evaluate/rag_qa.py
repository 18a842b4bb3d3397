"""Retrieval-augmented answering on held-out questions: the whole system against plain retrieval and without its parts.

A system is a reader with an order of the retrieved documents, of which it reads the first k. Systems are compared on
the same questions, with paired tests; the documents they read are told apart by what they do to the first reader.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.evaluate.contrasts import contrast, decide
from prefloop.evaluate.qa import summarise
from prefloop.evaluate.stats import mean_interval, paired_difference
from prefloop.signals.qa import Judged, containment, judge

PLAIN, ALIGNED = "plain", "aligned"


@dataclass(frozen=True)
class System:
    """What one system did.

    Attributes:
        answers: of each question, in the order of the questions.
        orders: of each question, the places of its documents among the retrieved ones, best first.
    """

    answers: Sequence[str]
    orders: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Asked:
    """A held-out question.

    Attributes:
        documents: the retrieved texts, in the retriever's order.
        labels: by place, what a document does to the first reader, where that was found out.
    """

    id: str
    query: str
    answers: Sequence[str]
    documents: Sequence[str]
    labels: Mapping[int, str]


def measure(
    asked: Sequence[Asked],
    systems: Mapping[str, System],
    *,
    top_k: int,
    accuracy: str,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """`rag_qa` of summary.json.

    Args:
        systems: `plain` and `aligned` among them; the others are the ablations.
        accuracy: which measure of an answer is called so: containment or exact_match.

    Returns:
        accuracy (plain, aligned, n, difference), documents (shares of aligned and of misleading ones among the first
        k, in the same form), systems (each one's measures of answers and of its order), and ablations (each system
        against `aligned`, with tests corrected for their number).
    """
    judged = {n: [judge(a, q.answers) for a, q in zip(s.answers, asked, strict=True)] for n, s in systems.items()}
    settings = {"resamples": resamples, "seed": seed}
    plain, aligned = (_right(judged[name], accuracy) for name in (PLAIN, ALIGNED))
    orders = {name: _order_measures(asked, system.orders, top_k) for name, system in systems.items()}
    found: dict[str, Any] = {
        "accuracy": _pair(plain, aligned, resamples, seed) | {"measure": accuracy},
        "systems": {
            name: {
                "answers": summarise(judged[name], resamples=resamples, seed=seed),
                "retrieval": {
                    key: mean_interval(values, resamples, seed).json()
                    for key, values in orders[name].items()
                    if values
                },
            }
            for name in systems
        },
    }
    for key in ("aligned_share", "misleading_share"):
        sides = [orders[name][key] for name in (PLAIN, ALIGNED)]
        if sides[0] and sides[1]:
            found[key] = _pair(sides[0], sides[1], resamples, seed)
    if "misleading_share" in found:
        found["misleading_share"]["lower_is_better"] = True
    against = [name for name in systems if name != ALIGNED]
    contrasts = [
        contrast(_right(judged[name], accuracy), aligned, **settings) | {"a": name, "b": ALIGNED} for name in against
    ]
    decide(contrasts)
    return found | {"ablations": contrasts, "top_k": top_k}


def _right(judged: Sequence[Judged], accuracy: str) -> list[float]:
    return [float(getattr(j, accuracy)) for j in judged]


def _pair(plain: Sequence[float], aligned: Sequence[float], resamples: int, seed: int) -> dict[str, Any]:
    return {
        "plain": sum(plain) / len(plain),
        "aligned": sum(aligned) / len(aligned),
        "n": len(plain),
        "difference": paired_difference(plain, aligned, resamples, seed).json(),
    }


def _order_measures(asked: Sequence[Asked], orders: Sequence[Sequence[int]], k: int) -> dict[str, list[float]]:
    """Measures of an order, one value a question. A document is relevant if it contains a reference answer.

    The shares are over the first k documents of which it is known what they do to the first reader.
    """
    found: dict[str, list[float]] = {f"hit@{k}": [], "hit@1": [], "mrr": [], "ndcg@10": []}
    found |= {"aligned_share": [], "misleading_share": []}
    for question, order in zip(asked, orders, strict=True):
        relevant = [bool(containment(question.documents[place], question.answers)) for place in order]
        found[f"hit@{k}"].append(float(any(relevant[:k])))
        if k != 1:
            found["hit@1"].append(float(relevant[0]))
        first = next((i for i, r in enumerate(relevant) if r), None)
        found["mrr"].append(0.0 if first is None else 1 / (1 + first))
        found["ndcg@10"].append(_ndcg(relevant, 10))
        labels = [question.labels[place] for place in order[:k] if place in question.labels]
        # A question with none known counts as none: sides are compared question by question.
        for name, label in (("aligned_share", "aligned"), ("misleading_share", "unaligned")):
            found[name].append(labels.count(label) / len(labels) if labels else 0.0)
    return found


def _ndcg(relevant: Sequence[bool], depth: int) -> float:
    """Of binary relevance; 0 where nothing that was retrieved is relevant."""
    gain = sum(1 / math.log2(i + 2) for i, r in enumerate(relevant[:depth]) if r)
    ideal = sum(1 / math.log2(i + 2) for i in range(min(depth, sum(relevant))))
    return gain / ideal if ideal else 0.0


def by_score(scores: Sequence[float]) -> list[int]:
    """Places by falling score; equal ones keep their order."""
    return sorted(range(len(scores)), key=lambda i: -scores[i])
