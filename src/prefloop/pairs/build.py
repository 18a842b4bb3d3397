"""From scored rows to preference pairs: one builder for all signals.

What a row becomes depends on that row, the section and the seed alone, not on other rows or any order
(tests/pairs/test_pairs_build.py holds it to that). Rows in = rows with a pair + rejected rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import correlation, mean, median
from typing import NamedTuple

from prefloop.config import PairSection
from prefloop.errors import UsageError
from prefloop.pairs.filters import drop_reason, reject_reason, usable_answers
from prefloop.pairs.strategies import STRATEGIES, Pair, ranked
from prefloop.records import Message, PreferenceRow, RejectRow, ScoredRow, canonical_json, content_id


class Built(NamedTuple):
    """Pairs, rejected rows and counts.

    Attributes:
        pairs: in the order of the rows; within a row from the best answer down.
        rejects: rows that gave no pair, each with one reason (see filters.reject_reason).
        counts: rows = rows_with_pairs + the sum of rejected/<reason>; pairs; pairs_dropped/<reason> (proposed and
            filtered out); answers_left_out/<reason>; mean_chars_chosen and mean_chars_rejected, when there are pairs;
            with strategy contrast also pairs_swapped, and what `_margins` says.
    """

    pairs: list[PreferenceRow]
    rejects: list[RejectRow]
    counts: dict[str, float]


def build_pairs(rows: Iterable[ScoredRow], section: PairSection, seed: int, source: str) -> Built:
    """Pair the answers of every row.

    Args:
        rows: scored candidates.
        section: strategy and filters.
        seed: of the random choices.
        source: says in every pair where it comes from.

    Raises:
        UsageError: a row's scores do not match its completions, or one is not finite.
    """
    if section.strategy == "straddle":
        return _straddling(rows, section, source)
    pairs: list[PreferenceRow] = []
    rejects: list[RejectRow] = []
    rows_in = swapped = 0
    answers_left_out: Counter[str] = Counter()
    pairs_dropped: Counter[str] = Counter()
    for row in rows:
        rows_in += 1
        _check(row)
        answers, left_out = usable_answers(row, section)
        answers_left_out.update(left_out)
        key = content_id(seed, row["id"])
        proposed = STRATEGIES[section.strategy](ranked(answers), key) if len(answers) > 1 else []
        if section.swap_negative:
            turned = [(worse, better) if better.score < worse.score else (better, worse) for better, worse in proposed]
            swapped += sum(a is not b for (a, _), (b, _) in zip(turned, proposed, strict=True))
            proposed = turned
        verdicts = [(pair, drop_reason(pair, section, row)) for pair in proposed]
        drops = [reason for _, reason in verdicts if reason is not None]
        pairs_dropped.update(drops)
        kept = [pair for pair, reason in verdicts if reason is None]
        if kept:
            pairs.extend(_preference(row, pair, section, source) for pair in kept)
        else:
            rejects.append(_reject(row, reject_reason(row, left_out, drops)))
    rejected = Counter(reject["reason"] for reject in rejects)
    counts: dict[str, float] = {"rows": rows_in, "rows_with_pairs": rows_in - len(rejects), "pairs": len(pairs)}
    counts |= {f"rejected/{reason}": rejected[reason] for reason in sorted(rejected)}
    counts |= {f"pairs_dropped/{reason}": pairs_dropped[reason] for reason in sorted(pairs_dropped)}
    counts |= {f"answers_left_out/{reason}": count for reason, count in sorted(answers_left_out.items()) if count}
    if pairs:
        # If the chosen answers are the longer ones, length is what the policy will learn.
        counts["mean_chars_chosen"] = _mean_chars(pair["chosen"] for pair in pairs)
        counts["mean_chars_rejected"] = _mean_chars(pair["rejected"] for pair in pairs)
        if section.strategy == "contrast":
            counts |= {"pairs_swapped": swapped} if section.swap_negative else {}
            counts |= _margins(pairs)
    return Built(pairs, rejects, counts)


def _straddling(rows: Iterable[ScoredRow], section: PairSection, source: str) -> Built:
    """As `build_pairs`; a pair's weight depends on the largest gap of all rows."""
    from prefloop.pairs.straddle import build_straddling

    rows = list(rows)
    for row in rows:
        _check(row)
    pairs, reasons, said = build_straddling(rows, section, source)
    rejects = [_reject(row, reason) for row, reason in reasons.values()]
    rejected = Counter(reject["reason"] for reject in rejects)
    counts: dict[str, float] = {"rows": len(rows), "rows_with_pairs": len(rows) - len(rejects), "pairs": len(pairs)}
    counts |= {f"rejected/{reason}": rejected[reason] for reason in sorted(rejected)} | said
    if pairs:
        counts["mean_chars_chosen"] = _mean_chars(pair["chosen"] for pair in pairs)
        counts["mean_chars_rejected"] = _mean_chars(pair["rejected"] for pair in pairs)
    return Built(pairs, rejects, counts)


def _margins(pairs: Sequence[PreferenceRow]) -> dict[str, float]:
    """Mean and spread of the score gaps, the share below 0, and how much of their size is length.

    `margin_length_correlation` is Pearson's, of a gap's size with the characters of both answers: sums over tokens
    grow with length, so near 1 the surer pairs are merely the longer ones.
    """
    gaps = [(p["score_chosen"] or 0.0) - (p["score_rejected"] or 0.0) for p in pairs]
    found = {
        "mean_margin": mean(gaps),
        "median_margin": median(gaps),
        "negative_margins": sum(gap < 0 for gap in gaps) / len(gaps),
    }
    sizes = [abs(gap) for gap in gaps]
    lengths = [float(sum(len(m["content"]) for m in [*(p["chosen"] or ()), *(p["rejected"] or ())])) for p in pairs]
    if len(set(sizes)) > 1 and len(set(lengths)) > 1:
        found["margin_length_correlation"] = correlation(sizes, lengths)
    return found


def _mean_chars(answers: Iterable[list[Message] | None]) -> float:
    lengths = [len(message["content"]) for answer in answers for message in answer or ()]
    return sum(lengths) / len(lengths)


def _check(row: ScoredRow) -> None:
    if len(row["scores"]) != len(row["completions"]):
        raise UsageError(
            f"{len(row['scores'])} scores for {len(row['completions'])} completions",
            where=f"row {row['id']}, field scores",
            fix="give one score per completion, null where there is none",
        )
    if any(score is not None and not math.isfinite(score) for score in row["scores"]):
        raise UsageError(
            f"a score that is not finite: {row['scores']}",
            where=f"row {row['id']}, field scores",
            fix="use null for a missing score",
        )


def _preference(row: ScoredRow, pair: Pair, section: PairSection, source: str) -> PreferenceRow:
    chosen, rejected = pair
    return {
        "id": content_id("pair", row["id"], chosen.completion["id"], rejected.completion["id"]),
        "prompt_id": row["id"],
        "prompt": row["prompt"],
        "chosen": [{"role": "assistant", "content": chosen.completion["text"]}],
        "rejected": [{"role": "assistant", "content": rejected.completion["text"]}],
        "score_chosen": chosen.score,
        "score_rejected": rejected.score,
        "weight": None,
        "margin": chosen.score - rejected.score if section.margin == "gap" else None,
        "label": None,
        "source": source,
        "strategy": section.strategy,
        "chosen_id": chosen.completion["id"],
        "rejected_id": rejected.completion["id"],
        "chosen_finish": chosen.completion["finish_reason"],
        "rejected_finish": rejected.completion["finish_reason"],
        "evidence": row["evidence"],
    }


def _reject(row: ScoredRow, reason: str) -> RejectRow:
    return {"id": row["id"], "stage": "pair", "reason": reason, "attempts": 1, "row": canonical_json(row)}
