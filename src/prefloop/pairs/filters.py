"""What is left out before and after pairing, each with the one word that the counts and rejects use for it."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.config import PairSection
from prefloop.pairs.strategies import Answer, Pair
from prefloop.records import ScoredRow


def usable_answers(row: ScoredRow, section: PairSection) -> tuple[list[Answer], dict[str, int]]:
    """The answers of a row that may stand in a pair, and how many were left out, by reason.

    Reasons, in the order of the checks: null_score, empty_cut_off (no text, and cut off before the end of the turn:
    training puts no end behind it, so it has no token to train on), truncated (cut off at max_new_tokens), duplicate
    (equal to an earlier sample but for outer white space; the first sample stays, with its score).
    """
    left_out = {"null_score": 0, "empty_cut_off": 0, "truncated": 0, "duplicate": 0}
    kept: dict[str, Answer] = {}
    samples = sorted(
        zip(row["completions"], row["scores"], strict=True), key=lambda x: (x[0]["sample_index"], x[0]["id"])
    )
    for completion, score in samples:
        if score is None:
            left_out["null_score"] += 1
        elif not completion["text"] and completion["finish_reason"] == "length":
            left_out["empty_cut_off"] += 1
        elif section.drop_truncated and completion["finish_reason"] == "length":
            left_out["truncated"] += 1
        elif completion["text"].strip() in kept:
            left_out["duplicate"] += 1
        else:
            kept[completion["text"].strip()] = Answer(completion, score)
    return list(kept.values()), left_out


def drop_reason(pair: Pair, section: PairSection, row: ScoredRow) -> str | None:
    """Why a proposed pair is dropped, or None: equal_scores, min_gap, disagreement or length_ratio (in characters)."""
    better, worse = pair
    if better.score == worse.score:
        return "equal_scores"
    if better.score - worse.score < section.min_gap:
        return "min_gap"
    if section.min_agree is not None and _agreeing(pair, row) < section.min_agree:
        return "disagreement"
    short, long = sorted(len(answer.completion["text"]) for answer in pair)
    if section.max_length_ratio is not None and long > section.max_length_ratio * short:
        return "length_ratio"
    return None


def _agreeing(pair: Pair, row: ScoredRow) -> int:
    """How many judges of a panel prefer the better answer; a part with a slash is one criterion of a judge."""
    seats = [[c["id"] for c in row["completions"]].index(answer.completion["id"]) for answer in pair]
    judges = [part["scores"] for part in row.get("parts") or () if "/" not in part["name"]]
    sides = [[scores[seat] for seat in seats] for scores in judges]
    return sum(a is not None and b is not None and a > b for a, b in sides)


def reject_reason(row: ScoredRow, left_out: dict[str, int], drops: Sequence[str]) -> str:
    """The one reason why a row gave no pair.

    With fewer than two usable answers, the first check that left fewer than two; else the filter that most proposed
    pairs reached: length_ratio comes after disagreement, that after min_gap, and that after equal_scores.
    """
    remaining = len(row["completions"])
    if remaining < 2:
        return "fewer_than_two_answers"
    for reason, count in left_out.items():
        remaining -= count
        if remaining < 2:
            return reason
    return next(reason for reason in ("length_ratio", "disagreement", "min_gap", "equal_scores") if reason in drops)
