"""From documents that a reader labelled to rows that a reranker learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prefloop.config.rag import RankingSection
from prefloop.records import AugmentedRow, LabelledRow, RankingRow, RejectRow, canonical_json, content_id

STAGE = "pair"
POSITIVE: dict[str, tuple[str, ...]] = {"flips": ("aligned",), "outcomes": ("aligned", "both_correct")}
NEGATIVE: dict[str, tuple[str, ...]] = {
    "flips": ("unaligned",),
    "outcomes": ("unaligned", "both_incorrect", "abstained"),
}


@dataclass
class Ranked:
    """What came of some labelled questions: each gives a row, and one more for each rewriting, or a reject.

    Attributes:
        counts: `questions` that gave rows, `positive` and `negative` documents of theirs.
    """

    rows: list[RankingRow] = field(default_factory=list)
    rejects: list[RejectRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def ranking_rows(
    labelled: Iterable[LabelledRow],
    section: RankingSection,
    rewritings: Mapping[str, Sequence[AugmentedRow]] | None = None,
) -> Ranked:
    """Ranking rows; a question of which no document is positive or negative is rejected.

    The order is by `o = a·retriever + (1 - a)·reader`, both from 0 to 1 within the question (the fusion of DPA-RAG, of
    which the published weight a is not known).

    Args:
        rewritings: of each question, by its id; they inherit its documents, labels and order.
    """
    made = Ranked()
    for row in labelled:
        labels = [_label(section, label) for label in row["labels"]]
        if not any(label is not None for label in labels):
            reason = "no document helps or misleads the reader"
            made.rejects.append(
                {"id": row["id"], "stage": STAGE, "reason": reason, "attempts": 1, "row": canonical_json(row)}
            )
            continue
        made.counts["questions"] += 1
        made.counts["positive"] += labels.count(1)
        made.counts["negative"] += labels.count(0)
        scores = _fused(row, section.retriever_share)
        texts = [row["query"], *(a["text"] for a in (rewritings or {}).get(row["id"], ()))]
        for text in texts:
            made.rows.append(
                {
                    "id": content_id("ranking", row["id"], text),
                    "query_id": row["id"],
                    "query": text,
                    "document_ids": row["document_ids"],
                    "documents": row["documents"],
                    "labels": labels,
                    "scores": scores,
                    "source": row["signal"],
                }
            )
    return made


def _label(section: RankingSection, label: str | None) -> int | None:
    if label in POSITIVE[section.labels]:
        return 1
    return 0 if label in NEGATIVE[section.labels] else None


def _fused(row: LabelledRow, share: float) -> list[float | None]:
    """The order's target; null where the reader gave no score."""
    known = [i for i, score in enumerate(row["scores"]) if score is not None]
    read = _unit([float(row["scores"][i] or 0.0) for i in known])
    retrieved = _unit([row["retrieval_scores"][i] for i in known])
    fused: list[float | None] = [None] * len(row["scores"])
    for i, reader, retriever in zip(known, read, retrieved, strict=True):
        fused[i] = share * retriever + (1 - share) * reader
    return fused


def _unit(values: Sequence[float]) -> list[float]:
    """From 0 to 1; values that are all equal say nothing and become 0."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]
