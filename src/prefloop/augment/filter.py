"""Rewritings that contradict their question are dropped (DPA-RAG's filter by natural language inference).

The premise is the question, the hypothesis its rewriting; the most probable class decides, without a threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prefloop.backends.base import Backend, Logits, PairScoreRequest, Refusal
from prefloop.backends.nli import CLASSES
from prefloop.config.rag import NliSection
from prefloop.errors import PrefloopError
from prefloop.records import AugmentedRow, RejectRow, canonical_json

LEGACY_CHECKED = 3
"""Rewritings of a question that the published filter looks at."""


@dataclass
class Filtered:
    """What the filter left; rows in = rows + rejects. `counts` are the classes that were given."""

    rows: list[AugmentedRow] = field(default_factory=list)
    rejects: list[RejectRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def keep_consistent(
    section: NliSection, rows: Sequence[AugmentedRow], questions: Mapping[str, str], backend: Backend
) -> Filtered:
    """Filter rewritings.

    Args:
        rows: the rewritings of a question all among them, in the order of the strategies.
        questions: text of each question, by id.
        backend: the classifier (`backends.nli`).
    """
    checked = _first(rows) if section.whole_row else list(rows)
    requests = [PairScoreRequest((questions[row["question_id"]], row["text"])) for row in checked]
    if section.bidirectional:
        requests += [PairScoreRequest((row["text"], questions[row["question_id"]])) for row in checked]
    classes = [_class(result) for result in backend.answer(requests)] if requests else []
    there = {row["id"]: name for row, name in zip(checked, classes, strict=False)}
    back = {row["id"]: name for row, name in zip(checked, classes[len(checked) :], strict=False)}
    bad = {name for found in (there, back) for name, said in found.items() if said == "contradiction"}
    bad_questions = {row["question_id"] for row in rows if row["id"] in bad}
    made = Filtered(counts=Counter(there.values()))
    for row in rows:
        row = {**row, "inference": there.get(row["id"]), "inference_back": back.get(row["id"])}
        if row["id"] in bad:
            reason = f"{row['strategy']}: contradicts its question"
        elif section.whole_row and row["question_id"] in bad_questions:
            reason = f"{row['strategy']}: another rewriting contradicts the question"
        else:
            made.rows.append(row)
            continue
        made.rejects.append(
            {"id": row["id"], "stage": "augment", "reason": reason, "attempts": 1, "row": canonical_json(row)}
        )
    return made


def _first(rows: Sequence[AugmentedRow]) -> list[AugmentedRow]:
    """The first three of each question, by the order of strategies, as published."""
    seen: Counter[str] = Counter()
    found = []
    for row in rows:
        seen[row["question_id"]] += 1
        if seen[row["question_id"]] <= LEGACY_CHECKED:
            found.append(row)
    return found


def _class(result: object) -> str:
    if isinstance(result, Logits):
        return CLASSES[max(range(len(CLASSES)), key=lambda i: result.values[i])]
    reason = result.reason if isinstance(result, Refusal) else f"a {type(result).__name__}"
    raise PrefloopError(f"the classifier of inference gave no class: {reason}", where="augment.nli")
