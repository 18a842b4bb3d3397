"""ROUGE (Lin 2004) of two models' answers against reference answers, by Google's rouge-score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefloop.evaluate.answers import by_prompt
from prefloop.evaluate.stats import paired_difference
from prefloop.records import CandidatesRow
from prefloop.signals.references import References

KINDS = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
"""Our names and the library's."""


def rouge(
    rows: Sequence[CandidatesRow], references: References, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """F1 of words and of longest common subsequences, words stemmed; rows without a reference do not count.

    `rouge_lsum` takes an answer line by line. The library's tokenizer knows Latin letters and digits only.

    Args:
        rows: two completions each, [base, aligned] (`answers.join` makes them).
        resamples, seed: of the bootstrap over prompts.

    Returns:
        of each of `KINDS` what a checker has: base, aligned, n, excluded, difference.

    Raises:
        UsageError: no row at all has a reference.
    """
    from rouge_score.rouge_scorer import RougeScorer

    references.require_match(rows)
    scorer = RougeScorer(list(KINDS.values()), use_stemmer=True)
    scored: list[list[dict[str, Any]] | None] = []
    for row in rows:
        target = references.of(row)
        scored.append(None if target is None else [scorer.score(target, c["text"]) for c in row["completions"]])
    groups = [[sides for sides in group if sides is not None] for group in by_prompt(rows, scored)]
    found: dict[str, dict[str, Any]] = {}
    for name, kind in KINDS.items():
        base_N, aligned_N = (
            [sum(sides[seat][kind].fmeasure for sides in group) / len(group) for group in groups if group]
            for seat in (0, 1)
        )
        found[name] = {
            "base": sum(base_N) / len(base_N),
            "aligned": sum(aligned_N) / len(aligned_N),
            "n": len(base_N),
            "excluded": sum(sides is None for sides in scored),
            "difference": paired_difference(base_N, aligned_N, resamples, seed).json(),
        }
    return found
