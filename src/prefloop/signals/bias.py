"""Habits of whoever compares answers: what verdicts depend on besides them. Counted row by row, told at the end.

Counts add up over rows; rates are made from their sums. Only the rank correlation with length needs the rows
themselves.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from prefloop.records import ScoredRow

# When a rate is warned of, and over how many cases; below them a rate says little.
LOW_CONSISTENCY = 0.6  # tossed coins agree in half of the pairs
HIGH_LONGER_WINS = 0.8
FEW_CASES = 20

_LIST_ITEM = re.compile(r"^ {0,3}(?:[-*+•]|\d{1,3}[.)])\s+\S", re.MULTILINE)


def count_orders(preferences: Sequence[float | None], counts: defaultdict[str, float]) -> None:
    """Seats: `first_decided`, verdicts on two seats that prefer one, and `first_wins`, those for the earlier one.

    Args:
        preferences: for two seats of one prompt how far the earlier one is preferred, above or below 0.
    """
    for preference in preferences:
        if preference:
            counts["first_decided"] += 1
            counts["first_wins"] += preference > 0


def count_pair(orders: Sequence[float | None], counts: defaultdict[str, float]) -> None:
    """Orders: `pairs` judged in several orders, `null_pairs` (an order has no verdict), `undecided_pairs` (no order
    prefers either answer) and `consistent` (all prefer the same).

    Args:
        orders: how far each order prefers the one answer over the other, above or below 0; None without a verdict.
    """
    counts["pairs"] += 1
    found = [preference for preference in orders if preference is not None]
    if len(found) < len(orders):
        counts["null_pairs"] += 1
        return
    counts["consistent"] += all(p > 0 for p in found) or all(p < 0 for p in found)
    counts["undecided_pairs"] += not any(found)


def count_outcome(a: str, b: str, p: float | None, counts: defaultdict[str, float]) -> None:
    """Outcomes: `compared` pairs of answers, `ties`, `longer_decided` (decided, of different lengths), `longer_wins`,
    `list_decided` (decided, one of the two has a list in it) and `list_wins`.

    Args:
        a, b: the texts.
        p: above 0.5 where a is the better one, below where b is; None without a verdict.
    """
    if p is None:
        return
    counts["compared"] += 1
    if p == 0.5:
        counts["ties"] += 1
        return
    if len(a) != len(b):
        counts["longer_decided"] += 1
        counts["longer_wins"] += (len(a) > len(b)) == (p > 0.5)
    if has_list(a) != has_list(b):
        counts["list_decided"] += 1
        counts["list_wins"] += has_list(a) == (p > 0.5)


def has_list(text: str) -> bool:
    """Whether a text has a list in it: two lines or more that begin as items do."""
    return len(_LIST_ITEM.findall(text)) > 1


def rates(counts: Mapping[str, float]) -> dict[str, float]:
    """A judge's bias card from its summed counts; a rate without any case is absent.

    Returns:
        null_rate (of verdicts); label_mass (mean, of chosen verdicts); consistency (of pairs that any order decides,
        those that all orders decide alike); first_seat (decided verdicts for the answer shown earlier; 0.5 is
        unbiased); tie_rate (of compared pairs); longer_wins (decided pairs of different lengths won by the longer
        answer); list_wins (decided pairs of an answer with a list and one without won by the one with).
    """
    return {name: part / whole for name, (part, whole) in _table(counts).items() if whole}


def cases(counts: Mapping[str, float]) -> dict[str, float]:
    """Of how many cases each of the `rates` is a share; those without any are absent."""
    return {name: whole for name, (_, whole) in _table(counts).items() if whole}


def _table(counts: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Of each rate how many of how many."""
    get = counts.get
    verdicts = get("verdicts", 0)
    return {
        "null_rate": (get("nulls", 0), verdicts),
        # Ratings of runs before verdicts were written have no count of the chosen ones: all were.
        "label_mass": (get("label_mass", 0), get("by_choose", verdicts) if "label_mass" in counts else 0),
        "consistency": (
            get("consistent", 0),
            get("pairs", 0) - get("null_pairs", 0) - get("undecided_pairs", 0),
        ),
        "first_seat": (get("first_wins", 0), get("first_decided", 0)),
        "tie_rate": (get("ties", 0), get("compared", 0)),
        "longer_wins": (get("longer_wins", 0), get("longer_decided", 0)),
        "list_wins": (get("list_wins", 0), get("list_decided", 0)),
    }


def length_correlation(rows: Iterable[ScoredRow]) -> float | None:
    """Spearman's rank correlation between the difference in length (characters) of two answers and that of their
    scores, over every two answers of a row that have both; -1..1, 0 is unbiased.

    None where there are fewer than `FEW_CASES` pairs, or all are alike in length or score. The pair's order is that
    of the row: turned round, both differences change their sign.
    """
    lengths: list[int] = []
    scores: list[float] = []
    for row in rows:
        scored = [(c["text"], s) for c, s in zip(row["completions"], row["scores"], strict=True) if s is not None]
        for (text_a, a), (text_b, b) in combinations(scored, 2):
            lengths.append(len(text_a) - len(text_b))
            scores.append(a - b)
    if len(lengths) < FEW_CASES or len(set(lengths)) == 1 or len(set(scores)) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(lengths, scores).statistic)
