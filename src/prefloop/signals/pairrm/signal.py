"""The signal `pairrm`: every two answers side by side in both orders; the whole matrix stands in the stored calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from prefloop.backends.base import Logits, PairScoreRequest, Result
from prefloop.records import CandidatesRow
from prefloop.signals.base import Call, Rating
from prefloop.signals.bias import (
    FEW_CASES,
    HIGH_LONGER_WINS,
    LOW_CONSISTENCY,
    count_orders,
    count_outcome,
    count_pair,
    rates,
)
from prefloop.signals.pairrm import matrix as arithmetic
from prefloop.signals.template import conversation

SEGMENTS = 3  # texts in one call
HIGH_TRUNCATED = 0.01


class PairRmSignal:
    """Scores from the matrix of all ordered pairs. Calls the backend named "pairrm".

    With `logit` a score is (1/N) Σ_j d(i, j), PairRM's own, which is no probability and on a scale that depends on N.
    With `win` it is the mean of σ(d(i, j)) over the other answers; of two answers that is P(better). Both come from
    the same calls, so changing from one to the other computes nothing anew.
    """

    def __init__(self, score: Literal["logit", "win"] = "logit") -> None:
        self.score = score
        self.pairwise = score == "win"
        self.name = f"pairrm-{score}"
        self.identity: dict[str, Any] = {"type": "pairrm", "score": score}

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """Score the completions of one row; answers that are equal but for outer white space are read once.

        The source is the bare text of a single user turn, else a transcript with roles. A row of equal answers makes
        no call; its answers tie. Counts: those of seats, orders and outcomes of a judge that reads pairs
        (`signals.bias`); verdicts (calls) and nulls (those without an answer); texts and truncated (segments read, and
        those cut).
        """
        texts = [completion["text"] for completion in row["completions"]]
        firsts, member = arithmetic.distinct(texts)
        kinds = [texts[i] for i in firsts]
        seats = arithmetic.ordered_pairs(len(kinds))
        source = conversation(row["prompt"])
        results: list[Result] = []
        if seats:
            results = yield [Call("pairrm", PairScoreRequest((source, kinds[i], kinds[j]))) for i, j in seats]
        known = {pair: r for pair, r in zip(seats, results, strict=True) if isinstance(r, Logits)}
        logits = {pair: result.values[0] for pair, result in known.items()}
        counts = _counts(kinds, logits)
        counts["verdicts"], counts["nulls"] = len(seats), len(seats) - len(known)
        counts["texts"] = SEGMENTS * len(known)
        counts["truncated"] = sum(result.truncated for result in known.values())
        if len(known) < len(seats):  # a mean over some of the answers would be on another scale
            return Rating([None] * len(texts), counts)
        matrix = arithmetic.expand(logits, member)
        return Rating([*(arithmetic.wins(matrix) if self.pairwise else arithmetic.scores(matrix))], counts)


def _counts(texts: Sequence[str], logits: Mapping[tuple[int, int], float]) -> dict[str, float]:
    counts: defaultdict[str, float] = defaultdict(float)
    count_orders(list(logits.values()), counts)
    for i, j in combinations(range(len(texts)), 2):
        forward, backward = logits.get((i, j)), logits.get((j, i))
        # One sign in both orders means that the seat decided, not the answer.
        count_pair([forward, None if backward is None else -backward], counts)
        p = None if forward is None or backward is None else arithmetic.logistic(forward - backward)
        count_outcome(texts[i], texts[j], p, counts)
    return dict(counts)


def card(counts: Mapping[str, float]) -> str | None:
    """PairRM's rates in one neutral line for people; None where no two answers were compared."""
    found = rates(counts)
    if "consistency" not in found:
        return None
    parts = [f"both orders agree on {found['consistency']:.0%} of {counts['compared']:,.0f} pairs"]
    for name, what in (("first_seat", "the answer shown first"), ("longer_wins", "the longer answer")):
        if name in found:
            parts.append(f"{what} wins {found[name]:.0%}")
    parts.append(f"{counts['truncated']:,.0f} of {counts['texts']:,.0f} texts were cut")
    return f"PairRM: {', '.join(parts)}"


def warning(counts: Mapping[str, float]) -> str | None:
    """What makes PairRM's scores doubtful, from its summed counts; None when nothing does."""
    found = rates(counts)
    said = []
    if counts.get("compared", 0) >= FEW_CASES and found.get("consistency", 1.0) < LOW_CONSISTENCY:
        said.append(
            f"PairRM decides only {found['consistency']:.0%} of the pairs alike in both orders: the answers are too "
            "much alike for it, or of a kind that it was not trained on"
        )
    if counts.get("longer_decided", 0) >= FEW_CASES and found["longer_wins"] > HIGH_LONGER_WINS:
        said.append(
            f"the longer answer wins {found['longer_wins']:.0%} of PairRM's decided pairs: training on them teaches "
            "length; set pair.max_length_ratio"
        )
    if counts.get("truncated", 0) > HIGH_TRUNCATED * counts.get("texts", 0):
        said.append(
            f"PairRM read only the beginning of {counts['truncated']:,.0f} of {counts['texts']:,.0f} texts: sample "
            "shorter answers (sample.max_new_tokens), or drop the prompts that are too long"
        )
    return "; ".join(said) or None
