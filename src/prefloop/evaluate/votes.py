"""Judges' verdicts beside people's votes, from files of AlpacaEval's form.

Votes are rows of instruction, output_1, output_2, preference (1 for the first answer, 2 for the second, 0 or 1.5 for a
tie), several for one pair where several people voted: told apart by `annotator_index`, else `index`, else `annotator`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.errors import UsageError
from prefloop.evaluate.agreement import between_judges, human_agreement, sign, table
from prefloop.evaluate.alpaca_eval import read_annotations
from prefloop.inputs.agreement import krippendorff_alpha
from prefloop.records import content_id

Pair = tuple[str, str, str]
Votes = dict[Pair, float | None]


def read_votes(path: str | Path) -> dict[str, Votes]:
    """Votes of each rater in a file: rater -> pair -> P(the second answer is better), None where there is no verdict.

    Raises:
        UsageError: a row lacks a text, or a rater voted twice on one pair.
    """
    raters: dict[str, Votes] = {}
    for i, row in enumerate(read_annotations(path)):
        pair = (row["instruction"], row["output_1"], row["output_2"])
        if not all(isinstance(text, str) for text in pair):
            raise UsageError("has no instruction or answer", where=f"{path}, row {i}", fix="give all three texts")
        rater = next((str(row[k]) for k in ("annotator_index", "index", "annotator") if row.get(k) is not None), "")
        votes = raters.setdefault(rater, {})
        if pair in votes:
            raise UsageError(
                f"rater {rater or 'without a name'!r} votes on this pair again",
                where=f"{path}, row {i}",
                fix="tell the raters apart by annotator_index",
            )
        votes[pair] = None if row["preference"] is None else row["preference"] - 1
    return raters


def mode(votes: Sequence[float | None]) -> float | None:
    """What most of the votes say: 1 for the second answer, 0 for the first, 0.5 for a tie, also between two modes."""
    counts = Counter(sign(v) for v in votes if v is not None)
    if not counts:
        return None
    modes = [value for value, n in counts.items() if n == max(counts.values())]
    return (modes[0] + 1) / 2 if len(modes) == 1 else 0.5


def compare_votes(
    people: str | Path, judges: Mapping[str, str | Path], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """How judges, trivial ones among them, agree with people, people with each other, and judges with each other.

    Args:
        people: the votes.
        judges: name -> file of verdicts, one for each pair; pairs without people's votes do not count.
        resamples, seed: of the bootstrap over pairs.

    Returns:
        judges: name -> what `agreement.table` says of it against the people's mode, human_agreement (of two people or
        more) and unknown (verdicts on pairs without votes); people: {n, pairs, alpha, human_agreement (of one with the
        others)}; between: what `between_judges` says.

    Raises:
        UsageError: a judge's file has several raters, or judges none of the pairs.
    """
    raters = list(read_votes(people).values())
    pairs = list(dict.fromkeys(pair for votes in raters for pair in votes))
    votes_RN = [[votes.get(pair) for pair in pairs] for votes in raters]
    said: dict[str, list[float | None]] = {}
    unknown = {}
    for name, path in judges.items():
        found = list(read_votes(path).values())
        if len(found) > 1:
            raise UsageError(f"has {len(found)} raters", where=str(path), fix="one judge a file")
        if not found[0].keys() & set(pairs):
            raise UsageError(
                "judges none of the pairs that people voted on", where=str(path), fix="compare like pairs"
            )
        said[name] = [found[0].get(pair) for pair in pairs]
        unknown[name] = len(found[0].keys() - set(pairs))
    ids = [content_id("pair", *pair) for pair in pairs]
    lengths = [(len(first), len(second)) for _, first, second in pairs]
    gold = [mode(column) for column in zip(*votes_RN, strict=True)]
    rows = table(said, gold, lengths, ids, resamples=resamples, seed=seed)
    for name, count in unknown.items():
        rows[name]["unknown"] = count
    several = len(raters) > 1
    if several:
        for name, verdicts in said.items():
            rows[name]["human_agreement"] = human_agreement([verdicts], votes_RN)
    labels = [[sign(v) for v in column if v is not None] for column in zip(*votes_RN, strict=True)]
    return {
        "judges": rows,
        "people": {
            "n": len(raters),
            "pairs": len(pairs),
            "alpha": krippendorff_alpha(labels),
            "human_agreement": human_agreement(votes_RN, votes_RN) if several else None,
        },
        "between": between_judges(said, ids),
    }
