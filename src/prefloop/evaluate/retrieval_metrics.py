"""Metrics of rankings, with two ways to treat equal scores.

`trec` is trec_eval's: scores are compared as float32, and equal ones are ordered by document id, descending, where an
id is followed by "-" and its source. So of a verbatim copy the version with the later name always stands first, and
"llama…" is later than "human". Published figures are made so (Cocktail, Dai et al. 2024). The metrics come from
ir-measures.

`neutral` is the expected value over all orders of the equal ones, in closed form (McSherry and Najork, ECIR 2008). A
copy then stands first half of the time.

ndcg@k has the grade as gain, log2(rank + 1) as discount, and the ideal of all judged documents; map@k and recall@k
are divided by all relevant documents, p@k by k. A document is relevant from grade 1. Without a relevant one all are 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

Ties = Literal["trec", "neutral"]
Version = tuple[str, str]
"""A document: id and source."""


class Found(NamedTuple):
    """A retrieved document."""

    document: Version
    score: float


Run = Mapping[str, Sequence[Found]]
"""What was found by query, in any order; a query for which nothing was found is absent."""
Judgements = Mapping[str, Mapping[Version, int]]
Values = dict[str, dict[str, float]]
"""query id -> metric -> value"""

METRICS = ("ndcg", "map", "recall", "p")


def metric_names(ks: Sequence[int]) -> list[str]:
    """ndcg@1, map@1, … of every cut-off."""
    return [f"{name}@{k}" for k in ks for name in METRICS]


def metrics(run: Run, judgements: Judgements, ks: Sequence[int], ties: Ties = "trec") -> Values:
    """ndcg, map, recall and p at every k, of each query that is both in the run and judged.

    Args:
        run: what was found. Whoever cuts a run short keeps what ties with its last document.
        judgements: grades of documents, by query.
        ks: cut-offs.
        ties: how equal scores are ordered.
    """
    if ties == "neutral":
        return {q: _expected(groups(run[q]), judgements[q], ks) for q in judgements if q in run}
    return _trec(run, judgements, ks)


def groups(found: Sequence[Found]) -> list[list[Version]]:
    """Documents of equal scores together, best first; within a group as trec_eval orders them."""
    import numpy as np

    scores = np.asarray([f.score for f in found], dtype=np.float32).tolist()
    # Two stable sorts: by name, descending, then by score.
    order = sorted(range(len(found)), key=lambda i: "-".join(found[i].document).encode(), reverse=True)
    order.sort(key=lambda i: -scores[i])
    return [[found[i].document for i in some] for _, some in groupby(order, key=lambda i: scores[i])]


def source_rate(run: Run, source: str, ks: Sequence[int], ties: Ties = "trec") -> Values:
    """rate@k: how much of the top k is of a source, divided by k also where less was found.

    With `trec` equal scores stay in the order of the run: published rates are counted so, other than the metrics.
    """
    found: Values = {}
    for query, hits in run.items():
        if ties == "trec":
            tied = [[hit.document] for hit in sorted(hits, key=lambda hit: -hit.score)]
        else:
            tied = groups(hits)
        shares = [sum(d[1] == source for d in group) / len(group) for group in tied for _ in group]
        found[query] = {f"rate@{k}": sum(shares[:k]) / k for k in ks}
    return found


def tied_share(run: Run, k: int) -> float:
    """The share of the places from 1 to k, over all queries, that a document of equal score could take as well."""
    tied = total = 0
    for hits in run.values():
        sizes = [len(group) for group in groups(hits) for _ in group][:k]
        tied += sum(size > 1 for size in sizes)
        total += len(sizes)
    return tied / total if total else 0.0


def _trec(run: Run, judgements: Judgements, ks: Sequence[int]) -> Values:
    """By ir-measures. Documents go by number and places by decreasing scores, so no order is left to it."""
    import ir_measures
    from ir_measures import AP, P, R, nDCG

    measures = {m: f"{name}@{k}" for k in ks for name, m in zip(METRICS, (nDCG @ k, AP @ k, R @ k, P @ k))}
    numbers: dict[Version, str] = {}

    def named(document: Version) -> str:
        return numbers.setdefault(document, str(len(numbers)))

    ranked = {
        q: {named(d): float(-place) for place, d in enumerate(d for group in groups(run[q]) for d in group)}
        for q in judgements
        if q in run
    }
    judged = {q: {named(d): grade for d, grade in judgements[q].items()} for q in ranked}
    values: Values = {q: {} for q in ranked}
    for found in ir_measures.iter_calc(list(measures), judged, ranked):
        values[found.query_id][measures[found.measure]] = float(found.value)
    return values


def _expected(tied: Sequence[Sequence[Version]], grades: Mapping[Version, int], ks: Sequence[int]) -> dict[str, float]:
    """The expected values of one query."""
    most = max(ks)
    ideal = sorted((g for g in grades.values() if g > 0), reverse=True)
    relevant = len(ideal)
    if relevant == 0:
        return dict.fromkeys(metric_names(ks), 0.0)
    gains: list[float] = []  # expected, by place, like the next two
    hits: list[float] = []
    precisions: list[float] = []
    before = 0  # relevant documents above the group
    for group in tied:
        if len(gains) >= most:
            break
        own = [max(0, grades.get(document, 0)) for document in group]
        size, count = len(own), sum(g > 0 for g in own)
        for i in range(min(size, most - len(gains))):
            place = len(gains) + 1
            # If the document here is relevant, the i in front of it in the group are drawn from the other size - 1.
            others = i * (count - 1) / (size - 1) if size > 1 else 0.0
            gains.append(sum(own) / size)
            hits.append(count / size)
            precisions.append(count / size * (before + 1 + others) / place if count else 0.0)
        before += count
    found = {}
    for k in ks:
        best = sum(g / math.log2(i + 2) for i, g in enumerate(ideal[:k]))
        found[f"ndcg@{k}"] = sum(g / math.log2(i + 2) for i, g in enumerate(gains[:k])) / best
        found[f"map@{k}"] = sum(precisions[:k]) / relevant
        found[f"recall@{k}"] = sum(hits[:k]) / relevant
        found[f"p@{k}"] = sum(hits[:k]) / k
    return found
