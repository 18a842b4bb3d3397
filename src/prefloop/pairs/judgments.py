"""From answers that a critic rated to judgment rows: each answer by itself, no pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from prefloop.records import JudgmentRow, RejectRow, ScoredRow, canonical_json, content_id

STAGE = "judgments"


@dataclass
class Made:
    """What came of some scored rows; answers in = rows + rejects.

    Attributes:
        counts: `criticised` and `satisfactory` rows.
    """

    rows: list[JudgmentRow] = field(default_factory=list)
    rejects: list[RejectRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def judgment_rows(scored: Sequence[ScoredRow], source: str) -> Made:
    """A row for every answer that has a verdict; the others, and answers that a prompt has twice, are rejected.

    Args:
        scored: rows of a signal that writes judgments, with a score of None where it gave none.
        source: its type, which rows of it carry.
    """
    made = Made()
    for row in scored:
        judgments = row.get("judgments") or [None] * len(row["completions"])
        seen: set[str] = set()
        for completion, score, judgment in zip(row["completions"], row["scores"], judgments, strict=True):
            reason = "no judgment" if score is None else "the same answer twice" if completion["text"] in seen else ""
            if reason:
                whole = canonical_json({"prompt": row["prompt"], "completion": completion})
                made.rejects.append(
                    {"id": completion["id"], "stage": STAGE, "reason": reason, "attempts": 1, "row": whole}
                )
                continue
            seen.add(completion["text"])
            made.counts["satisfactory" if judgment is None else "criticised"] += 1
            made.rows.append(
                {
                    "id": content_id("judgment", completion["id"], judgment),
                    "prompt_id": row["id"],
                    "prompt": row["prompt"],
                    "completion": [{"role": "assistant", "content": completion["text"]}],
                    "judgment": judgment,
                    "score": score,
                    "weight": None,
                    "source": source,
                    "completion_id": completion["id"],
                    "finish": completion["finish_reason"],
                    "evidence": row["evidence"],
                }
            )
    return made
