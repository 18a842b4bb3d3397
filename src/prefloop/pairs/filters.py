"""What is left out before and after pairing, each with the one word that the counts and rejects use for it."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.config import PairSection
from prefloop.pairs.strategies import Answer, Pair
from prefloop.records import Completion, ScoredRow


def usable_answers(row: ScoredRow, section: PairSection) -> tuple[list[Answer], dict[str, int]]:
    """The answers of a row that may stand in a pair, and how many were left out, by reason.

    Reasons, in the order of the checks: empty (no text, and so no score), null_score, empty_cut_off (no text, and cut
    off before the end of the turn: training puts no end behind it, so it has no token to train on), truncated (cut off
    at max_new_tokens), echo (repeats the prompt or its note), duplicate (equal to an earlier sample for the same
    attribute but for outer white space; the first sample stays, with its score).
    """
    left_out = dict.fromkeys(("empty", "null_score", "empty_cut_off", "truncated", "echo", "duplicate"), 0)
    kept: dict[tuple[str, str], Answer] = {}
    samples = sorted(
        zip(row["completions"], row["scores"], strict=True), key=lambda x: (x[0]["sample_index"], x[0]["id"])
    )
    for completion, score in samples:
        contrast = completion.get("contrast")
        key = (completion["text"].strip(), "" if contrast is None else contrast["attribute"])
        if score is None:
            left_out["null_score" if completion["text"] else "empty"] += 1
        elif not completion["text"] and completion["finish_reason"] == "length":
            left_out["empty_cut_off"] += 1
        elif section.drop_truncated and completion["finish_reason"] == "length":
            left_out["truncated"] += 1
        elif section.drop_echo and _echoes(completion, row):
            left_out["echo"] += 1
        elif key in kept:
            left_out["duplicate"] += 1
        else:
            kept[key] = Answer(completion, score)
    return list(kept.values()), left_out


ECHO = 20
"""Characters from which on a text that stands in an answer is a repetition; shorter ones may stand there by chance."""


def _echoes(completion: Completion, row: ScoredRow) -> bool:
    """Whether an answer holds the last turn that it answers, or a note that it was sampled with."""
    contrast = completion.get("contrast")
    notes = [] if contrast is None else [contrast["positive"], contrast["negative"]]
    answer = _plain(completion["text"])
    for given in (row["prompt"][-1]["content"], *notes):
        text = _plain(given)
        if text and (text == answer or (len(text) >= ECHO and text in answer)):
            return True
    return False


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def drop_reason(pair: Pair, section: PairSection, row: ScoredRow) -> str | None:
    """Why a proposed pair is dropped, or None: equal_scores, min_gap, disagreement or length_ratio (in characters).

    A contrast is a pair by the notes that it was sampled with: equal scores, or a negative gap, make none of it.
    """
    better, worse = pair
    gap = better.score - worse.score
    if section.strategy == "contrast":
        gap = abs(gap)
    elif gap == 0:
        return "equal_scores"
    if gap < section.min_gap:
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

    With fewer than two usable answers, the first check that left fewer than two; one_sided where no attribute has a
    usable answer for it and one against it; else the filter that most proposed pairs reached: length_ratio comes after
    disagreement, that after min_gap, and that after equal_scores.
    """
    if not drops and len(row["completions"]) - sum(left_out.values()) >= 2:
        return "one_sided"
    remaining = len(row["completions"])
    if remaining < 2:
        return "fewer_than_two_answers"
    for reason, count in left_out.items():
        remaining -= count
        if remaining < 2:
            return reason
    return next(reason for reason in ("length_ratio", "disagreement", "min_gap", "equal_scores") if reason in drops)
