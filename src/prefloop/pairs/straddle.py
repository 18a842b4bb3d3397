"""Pairs around the human text: a rewrite that a retriever puts below it against one that it puts above.

For each judged query of a passage, with f the favours of its rewrites (`signals.retriever`): chosen has f < -T,
rejected f > T, and the pair's gap is f(rejected) - f(chosen). Both must mean what the human text means, and the gap
over the largest gap of all pairs becomes the pair's weight (Dai et al. 2025, LLM-SBM; their largest is that before the
semantic filter, and they put every pair behind every wording). Ids and counts are as of `build.build_pairs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from prefloop.config import PairSection
from prefloop.errors import UsageError
from prefloop.inputs.rewriting import asked, encode
from prefloop.pairs.filters import usable_answers
from prefloop.pairs.strategies import Answer
from prefloop.records import PreferenceRow, Rewrite, ScoredRow, content_id, prompt_id
from prefloop.signals.retriever import QUERY, SIMILARITY


@dataclass(frozen=True)
class Straddling:
    """A proposed pair of one query; `below` and `above` are the favours of its two rewrites."""

    row: ScoredRow
    query: str
    chosen: Answer
    rejected: Answer
    below: float
    above: float

    @property
    def gap(self) -> float:
        return self.above - self.below


def straddle(favours: Sequence[float | None], threshold: float) -> list[tuple[int, int]]:
    """(chosen, rejected) of every two rewrites that stand on both sides of the human text, by their places.

    Args:
        favours: of one query, above 0 for rewrites that are put above the human text; None for none.
        threshold: how far from it both must be, more than this.
    """
    return [
        (c, r)
        for c, below in enumerate(favours)
        for r, above in enumerate(favours)
        if below is not None and above is not None and below < -threshold and above > threshold
    ]


def weigh(gaps: Sequence[float], kept: Sequence[bool], largest: str) -> list[float]:
    """Gaps over the largest one, of the pairs that are kept: weights above 0, and 1 at most.

    Args:
        gaps: of all proposed pairs, above 0.
        kept: which of them pass the filters.
        largest: `kept` or `proposed`: of which pairs the largest is taken; by the second, as published, no weight may
            reach 1.
    """
    chosen = [gap for gap, stays in zip(gaps, kept, strict=True) if stays]
    most = max(gaps if largest == "proposed" else chosen, default=1.0)
    return [gap / most for gap in chosen]


def build_straddling(
    rows: Iterable[ScoredRow], section: PairSection, source: str
) -> tuple[list[PreferenceRow], dict[str, tuple[ScoredRow, str]], dict[str, float]]:
    """Pairs of all rows, weighted over all of them.

    Returns:
        (pairs; row id -> (row, reason) of rows that gave none; counts). Reasons: no_query (no query is judged relevant
        to the passage, or each is measured on), the reasons of `filters.usable_answers` where fewer than two answers
        are left, one_sided (all rewrites stand on one side of the human text, for every query), dissimilar (the pairs
        fell to the semantic filter), length_ratio. Counts, beside those of all strategies: pairs_proposed,
        queries_straddled, mean_gap, mean_weight.
    """
    proposed: list[Straddling] = []
    drops: list[str | None] = []
    reasons: dict[str, tuple[ScoredRow, str]] = {}
    left_out_all: Counter[str] = Counter()
    wordings: dict[str, Rewrite] = {}
    straddled = 0
    for row in rows:
        for completion in row["completions"]:
            wordings.setdefault(completion["rewrite"]["variant"], completion["rewrite"])
        units = {
            p["name"].removeprefix(QUERY): p["scores"] for p in row.get("parts", []) if p["name"].startswith(QUERY)
        }
        answers, left_out = usable_answers(row, section)
        if not units:
            reasons[row["id"]] = (row, "no_query")
            continue
        left_out_all.update(left_out)
        places = {completion["id"]: place for place, completion in enumerate(row["completions"])}
        here = [
            Straddling(row, query, answers[c], answers[r], *(favours[i] or 0.0 for i in (c, r)))
            for query, scores in units.items()
            for favours in [[scores[places[a.completion["id"]]] for a in answers]]
            for c, r in straddle(favours, section.threshold)
        ]
        straddled += len({pair.query for pair in here})
        dropped = [_drop(pair, places, section) for pair in here]
        proposed += here
        drops += dropped
        if all(reason is not None for reason in dropped):
            reasons[row["id"]] = (row, _reason(row, left_out, [d for d in dropped if d is not None]))
    kept = [reason is None for reason in drops]
    weights = iter(weigh([pair.gap for pair in proposed], kept, section.largest))
    chosen = [(pair, next(weights)) for pair, stays in zip(proposed, kept, strict=True) if stays]
    if section.replicate == "all":
        # By wording first, as published.
        pairs = [_preference(p, w, request, section, source) for request in wordings.values() for p, w in chosen]
    else:
        pairs = [_preference(p, w, p.chosen.completion["rewrite"], section, source) for p, w in chosen]
    counts: dict[str, float] = {"pairs_proposed": len(proposed), "queries_straddled": straddled}
    counts |= {f"pairs_dropped/{reason}": n for reason, n in sorted(Counter(filter(None, drops)).items())}
    counts |= {f"answers_left_out/{reason}": n for reason, n in sorted(left_out_all.items()) if n}
    if chosen:
        counts |= {"mean_gap": fmean(p.gap for p, _ in chosen), "mean_weight": fmean(w for _, w in chosen)}
    return pairs, reasons, counts


def _drop(pair: Straddling, places: Mapping[str, int], section: PairSection) -> str | None:
    sides = (pair.chosen, pair.rejected)
    if section.min_similarity is not None:
        found = [p["scores"] for p in pair.row.get("parts", []) if p["name"] == SIMILARITY]
        if not found:
            raise UsageError(
                "the scores have no similarity to the human text",
                where="pair.min_similarity",
                fix="set rate.similarity, or pair.min_similarity=null",
            )
        likeness = [found[0][places[side.completion["id"]]] for side in sides]
        if any(cosine is None or cosine < section.min_similarity for cosine in likeness):
            return "dissimilar"
    short, long = sorted(len(side.completion["text"]) for side in sides)
    if section.max_length_ratio is not None and long > section.max_length_ratio * short:
        return "length_ratio"
    return None


def _reason(row: ScoredRow, left_out: Mapping[str, int], drops: Sequence[str]) -> str:
    if drops:
        return Counter(drops).most_common(1)[0][0]
    remaining = len(row["completions"])
    for reason, count in left_out.items():
        remaining -= count
        if remaining < 2 and count:
            return reason
    return "fewer_than_two_answers" if remaining < 2 else "one_sided"


def _preference(pair: Straddling, weight: float, request: Rewrite, section: PairSection, source: str) -> PreferenceRow:
    chosen, rejected = pair.chosen.completion, pair.rejected.completion
    prompt = asked(pair.row["prompt"], request)
    return {
        "id": content_id("pair", prompt_id(prompt), pair.query, chosen["id"], rejected["id"]),
        "prompt_id": pair.row["id"],
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": encode(chosen["text"], request)}],
        "rejected": [{"role": "assistant", "content": encode(rejected["text"], request)}],
        # A score says how good an answer is: here, how little the retriever favours it.
        "score_chosen": -pair.below,
        "score_rejected": -pair.above,
        "weight": weight if section.weight == "gap" else None,
        "margin": pair.gap if section.margin == "gap" else None,
        "label": None,
        "source": source,
        "strategy": section.strategy,
        "chosen_id": chosen["id"],
        "rejected_id": rejected["id"],
        "chosen_finish": chosen["finish_reason"],
        "rejected_finish": rejected["finish_reason"],
        "evidence": pair.row["evidence"],
        "document": chosen["rewrite"]["document"],
        "query": pair.query,
    }
