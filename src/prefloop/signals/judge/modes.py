"""How a row's answers become questions, and verdicts scores: one by one, two by two, or all at once.

Each mode gets the different texts of a row once, however often they occur, and gives a score for each completion.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Sequence
from itertools import combinations

from prefloop.backends.base import Result
from prefloop.records import CandidatesRow, content_id
from prefloop.signals import bias
from prefloop.signals.base import Call
from prefloop.signals.judge.ask import Asking, Counts, Question
from prefloop.signals.judge.verdicts import Ranks, Ratings, Verdict, rating, seats

# Scores are rounded to this many decimals: float noise in a sum must not turn a tie into a preference
# (tests/signals/test_judge.py::test_a_judge_that_prefers_a_seat_sees_a_tie).
DECIMALS = 9

Ask = Callable[[Sequence[Question]], Asking]
Scores = list[float | None]
Scoring = Generator[list[Call], list[Result], Scores]
Wins = dict[tuple[int, int], float | None]


class Texts:
    """The different texts of a row (of those equal but for outer white space the first), and whose they are.

    Attributes:
        texts: [m].
        member: [n], for each completion the index of its text.
    """

    def __init__(self, row: CandidatesRow) -> None:
        index: dict[str, int] = {}
        self.texts: list[str] = []
        self.member: list[int] = []
        for completion in row["completions"]:
            key = completion["text"].strip()
            if key not in index:
                index[key] = len(self.texts)
                self.texts.append(completion["text"])
            self.member.append(index[key])

    def __len__(self) -> int:
        return len(self.texts)


def pointwise(of: Texts, ratings: Sequence[int], ask: Ask, counts: Counts) -> Scoring:
    """Each answer alone; its score is the expected rating."""
    verdicts = yield from ask([Question((text,), rating(ratings)) for text in of.texts])
    scores = [None if numbers is None else round(numbers[0], DECIMALS) for numbers in verdicts]
    _count_scores(of, scores, counts)
    return [scores[i] for i in of.member]


def pairwise(of: Texts, ask: Ask, counts: Counts) -> Scoring:
    """Every two answers in both orders; a score is the mean win probability against the other answers."""
    pairs = list(combinations(range(len(of)), 2))
    seatings = [seating for i, j in pairs for seating in ((i, j), (j, i))]
    verdicts = yield from ask([Question((of.texts[i], of.texts[j]), seats()) for i, j in seatings])
    wins: Wins = {}
    for (i, j), forward, backward in zip(pairs, verdicts[::2], verdicts[1::2], strict=True):
        # For each order how far it prefers x, the answer that is first in `forward`, -0.5 to 0.5.
        orders = [None if v is None else v[seat] - 0.5 for v, seat in ((forward, 0), (backward, 1))]
        bias.count_orders([None if forward is None else forward[0] - 0.5], counts)
        bias.count_orders([None if backward is None else backward[0] - 0.5], counts)
        bias.count_pair(orders, counts)
        # Null unless both orders gave a verdict: one order alone carries the judge's preference for a seat.
        p = None if forward is None or backward is None else round((forward[0] + backward[1]) / 2, DECIMALS)
        wins[i, j], wins[j, i] = p, None if p is None else 1 - p
        bias.count_outcome(of.texts[i], of.texts[j], p, counts)
    return [_mean_win(seat, of.member, wins) for seat in range(len(of.member))]


def listwise(of: Texts, ratings: tuple[int, ...], orders: int, ask: Ask, counts: Counts) -> Scoring:
    """All answers in one reply, in several orders; a score is the mean of an answer's ratings."""
    by_order = yield from _in_orders(of, Ratings(ratings, len(of)), orders, ask, counts)
    scores: Scores = [None] * len(of)
    if by_order is not None:
        scores = [round(math.fsum(column) / len(column), DECIMALS) for column in zip(*by_order, strict=True)]
    _count_scores(of, scores, counts)
    return [scores[i] for i in of.member]


def ranking(of: Texts, orders: int, ask: Ask, counts: Counts) -> Scoring:
    """All answers put in order by one reply, in several orders; a score is the mean win rate against the others."""
    wins: Wins = dict.fromkeys(((i, j) for i in range(len(of)) for j in range(len(of))), None)
    if len(of) > 1:
        by_order = yield from _in_orders(of, Ranks(len(of)), orders, ask, counts)
        for i, j in combinations(range(len(of)), 2):
            if by_order is not None:
                p = math.fsum(ranks[i] > ranks[j] for ranks in by_order) / len(by_order)
                wins[i, j], wins[j, i] = p, 1 - p
            bias.count_outcome(of.texts[i], of.texts[j], wins[i, j], counts)
    return [_mean_win(seat, of.member, wins) for seat in range(len(of.member))]


def shuffles(texts: Sequence[str], orders: int) -> list[list[int]]:
    """Different orders of the texts, drawn by their content: a shuffle, the same backwards, another, …

    Two by two every text stands as far from the front as from the end. There are fewer than asked for where there are
    fewer at all.
    """
    found: list[list[int]] = []
    random_order = random.Random(content_id("orders", sorted(texts)))
    places = sorted(range(len(texts)), key=texts.__getitem__)
    while len(found) < min(orders, math.factorial(min(len(texts), 10))):
        random_order.shuffle(places)
        for order in (places, places[::-1]):
            if order not in found and len(found) < orders:
                found.append(list(order))
    return found


def _in_orders(
    of: Texts, verdict: Verdict, orders: int, ask: Ask, counts: Counts
) -> Generator[list[Call], list[Result], list[list[float]] | None]:
    """For each order the numbers of the texts [m], by their index; None unless every order gave a verdict."""
    shown = shuffles(of.texts, orders)
    verdicts = yield from ask([Question(tuple(of.texts[i] for i in order), verdict) for order in shown])
    by_order: list[list[float] | None] = []
    for order, numbers in zip(shown, verdicts, strict=True):
        if numbers is not None:
            bias.count_orders([a - b for a, b in combinations(numbers, 2)], counts)
        by_order.append(None if numbers is None else [numbers[order.index(i)] for i in range(len(of))])
    for i, j in combinations(range(len(of)), 2):
        bias.count_pair([None if numbers is None else numbers[i] - numbers[j] for numbers in by_order], counts)
    complete = [numbers for numbers in by_order if numbers is not None]
    return complete if len(complete) == len(by_order) else None


def _count_scores(of: Texts, scores: Sequence[float | None], counts: Counts) -> None:
    """What the scores of a row say of every two of its texts."""
    for i, j in combinations(range(len(of)), 2):
        a, b = scores[i], scores[j]
        p = None if a is None or b is None else 0.5 + ((a > b) - (a < b)) / 2
        bias.count_outcome(of.texts[i], of.texts[j], p, counts)


def _mean_win(seat: int, member: list[int], wins: Wins) -> float | None:
    """Mean win probability of one completion against the others; None when no judged pair of its has a verdict."""
    others = [other for i, other in enumerate(member) if i != seat]
    chances = [0.5 if other == member[seat] else wins[member[seat], other] for other in others]
    verdicts = [p for p in chances if p is not None]
    judged = [other for other in others if other != member[seat]]
    if not verdicts or (judged and all(wins[member[seat], other] is None for other in judged)):
        return None
    # fsum does not depend on the order, so equal texts have equal scores.
    return round(math.fsum(verdicts) / len(verdicts), DECIMALS)
