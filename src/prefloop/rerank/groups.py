"""What one query teaches: which of its documents are classified, ranked and contrasted.

Two kinds of rows come to the same `Group`: our ranking rows, from which it is built, and the published example format,
which spells it out. A group names documents by their place among its distinct texts, so a document that stands in
three of its lists is encoded once (`batches.py`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.config import RerankSection
from prefloop.records import RankingRow, RejectRow, canonical_json, content_id


@dataclass(frozen=True)
class Group:
    """A query with its documents and what each loss takes of them.

    Attributes:
        documents: distinct texts.
        classified: (document, 1 for aligned or 0).
        ranked: (document, target), higher is better; a document may stand in it twice, as in published files.
        positives, negatives: documents of the contrastive loss.
    """

    id: str
    query_id: str
    query: str
    documents: tuple[str, ...]
    classified: tuple[tuple[int, int], ...] = ()
    ranked: tuple[tuple[int, float], ...] = ()
    positives: tuple[int, ...] = ()
    negatives: tuple[int, ...] = ()

    def teaches(self, section: RerankSection) -> bool:
        """Whether any of the section's losses takes something of it."""
        drawn = len(self.positives) + len(self.negatives) > 2  # two of them are of one class then
        found = {
            "pointwise": bool(self.classified),
            "pairwise": len({target for _, target in self.ranked}) > 1,
            "contrastive": drawn if section.contrastive == "group" else bool(self.positives),
        }
        return any(found[name] for name in section.losses)


def group_of(row: RankingRow, section: RerankSection, seed: int = 0) -> Group:
    """The group of a ranking row: labels decide what is classified and contrasted, scores what is ranked.

    Where the section bounds a number, the drawing follows from the row's id and the seed; of a ranked list, documents
    evenly spread over the order are taken, best and worst among them.
    """
    rng = random.Random(f"rerank {seed} {row['id']}")
    places = {text: place for place, text in enumerate(dict.fromkeys(row["documents"]))}
    labels = _agreed(row["documents"], row["labels"])
    scores = _agreed(row["documents"], row["scores"])
    positives = [places[text] for text, label in labels.items() if label == 1]
    negatives = [places[text] for text, label in labels.items() if label == 0]
    ranked = sorted(((places[t], float(s)) for t, s in scores.items() if s is not None), key=lambda p: -p[1])
    if section.list_length is not None and len(ranked) > section.list_length:
        last, steps = len(ranked) - 1, section.list_length - 1
        ranked = [ranked[i * last // steps] for i in range(section.list_length)]
    positives, negatives = _some(rng, positives, section.positives), _some(rng, negatives, section.negatives)
    classified = [(places[t], int(label)) for t, label in labels.items() if label is not None]
    if section.classify == "one" and classified:
        # First the class, then its first document: both classes are seen alike often, however many documents each has.
        label = rng.choice(sorted({label for _, label in classified}))
        classified = [((positives if label else negatives)[0], label)]
    return Group(
        row["id"],
        row["query_id"],
        row["query"],
        tuple(places),
        tuple(classified),
        tuple(ranked),
        tuple(positives),
        tuple(negatives),
    )


def ranking_of(group: Group) -> RankingRow:
    """The ranking row that a group says, for measuring: a document on both sides has no label."""
    sides: list[set[int]] = [set() for _ in group.documents]
    for place, label in [*group.classified, *((p, 1) for p in group.positives), *((n, 0) for n in group.negatives)]:
        sides[place].add(label)
    scores = dict(group.ranked)
    return {
        "id": group.id,
        "query_id": group.query_id,
        "query": group.query,
        "document_ids": [document_id(text) for text in group.documents],
        "documents": list(group.documents),
        "labels": [next(iter(side)) if len(side) == 1 else None for side in sides],
        "scores": [scores.get(place) for place in range(len(group.documents))],
        "source": "published",
    }


def prepare(
    rows: Sequence[RankingRow | Group], section: RerankSection, seed: int = 0
) -> tuple[list[Group], list[RejectRow]]:
    """Groups to train on, and the rows of which none of the section's losses takes anything, with the reason."""
    groups, rejects = [], []
    for row in rows:
        group = row if isinstance(row, Group) else group_of(row, section, seed)
        if group.teaches(section):
            groups.append(group)
            continue
        written = row if isinstance(row, Mapping) else ranking_of(group)
        reason = "no document has a label that a loss could learn, and no two differ in score"
        rejects.append(
            RejectRow(id=group.id, stage="rerank", reason=reason, attempts=1, row=canonical_json(dict(written)))
        )
    return groups, rejects


def document_id(text: str) -> str:
    """Id of a document that came without one."""
    return content_id("document", text)


def _agreed(documents: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """The value of each distinct document; null where two places of one text disagree."""
    found: dict[str, Any] = {}
    for text, value in zip(documents, values, strict=True):
        found[text] = value if text not in found or found[text] == value else None
    return found


def _some(rng: random.Random, places: list[int], most: int | None) -> list[int]:
    return places if most is None or len(places) <= most else sorted(rng.sample(places, most))
