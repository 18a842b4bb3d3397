"""Which of a prompt's answers are set against each other.

A strategy gets the answers of one prompt from best to worst and proposes (better, worse) pairs. It may propose
answers with equal scores; the filters drop those, so that what was lost is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from prefloop.records import Completion, content_id


@dataclass(frozen=True)
class Answer:
    """A completion with its score."""

    completion: Completion
    score: float


SIDES = ("positive", "negative")
Pair = tuple[Answer, Answer]
Strategy = Callable[[Sequence[Answer], str], list[Pair]]


def ranked(answers: Sequence[Answer]) -> list[Answer]:
    """Best first; equal scores by sample index, then id, so that the order of the input does not matter."""
    return sorted(answers, key=lambda a: (-a.score, a.completion["sample_index"], a.completion["id"]))


def best_worst(answers: Sequence[Answer], key: str) -> list[Pair]:
    """The highest score against the lowest."""
    return [(answers[0], answers[-1])]


def best_random(answers: Sequence[Answer], key: str) -> list[Pair]:
    """The highest score against a random lower one (Zephyr, Tunstall et al. 2023).

    The draw is the least hash of (key, answer): it depends on the seed and the prompt in `key` and on nothing else,
    neither on the order of the rows nor on other rows.
    """
    lower = [answer for answer in answers if answer.score < answers[0].score]
    if not lower:
        return [(answers[0], answers[-1])]
    return [(answers[0], min(lower, key=lambda answer: content_id("best_random", key, answer.completion["id"])))]


def all_pairs(answers: Sequence[Answer], key: str) -> list[Pair]:
    """Every two answers."""
    return list(combinations(answers, 2))


def adjacent(answers: Sequence[Answer], key: str) -> list[Pair]:
    """Neighbours in score: the hardest pairs."""
    return list(pairwise(answers))


def contrast(answers: Sequence[Answer], key: str) -> list[Pair]:
    """Of each attribute the highest of the answers sampled for it against the lowest of those against it.

    With one answer a side it is the published pair, the margin of which may be negative; with several it has the
    largest margin of all.
    """
    sides: dict[str, dict[str, list[Answer]]] = {}
    for answer in answers:
        asked = answer.completion.get("contrast")
        if asked is not None:
            sides.setdefault(asked["attribute"], {}).setdefault(asked["side"], []).append(answer)
    return [
        (both["positive"][0], both["negative"][-1]) for _, both in sorted(sides.items()) if both.keys() == set(SIDES)
    ]


STRATEGIES: dict[str, Strategy] = {
    "best_worst": best_worst,
    "best_random": best_random,
    "all_pairs": all_pairs,
    "adjacent": adjacent,
    "contrast": contrast,
}
