"""How much a model repeats itself: distinct-n and self-BLEU of several answers to one prompt.

Self-BLEU is our own thirty lines: sacrebleu would bring four packages for one sum, and its corpus figures are not what
is asked here. tests/evaluate/test_diversity.py holds it to sacrebleu's sentence BLEU.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from prefloop.evaluate.answers import by_prompt
from prefloop.evaluate.stats import mean_interval
from prefloop.records import CandidatesRow

# Letters and digits in a row, or any other sign; a character of a script without spaces between words is a word.
_WORDS = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W぀-ヿ㐀-鿿豈-﫿]+|[^\w\s]")
ORDERS = (1, 2, 3, 4)


def words(text: str) -> list[str]:
    """The words and signs of a text, in lower case."""
    return _WORDS.findall(text.lower())


def diversity(rows: Sequence[CandidatesRow], resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Repetition within the answers to one prompt, as means over prompts with intervals.

    Args:
        rows: one model's answers. Only prompts with several of them say anything.
        resamples, seed: of the bootstrap over prompts.

    Returns:
        distinct_1, distinct_2, distinct_3 (different n-grams of a prompt's answers over all of them, 0..1; Li et al.
        2016), self_bleu (mean BLEU-4 of each answer against the prompt's others, 0..1; Zhu et al. 2018; high is
        alike), identical (share of answers that another one of the prompt repeats, 0..1), each value, ci_low,
        ci_high; `n` (prompts with several answers) and `answers` (of each). Both shrink or grow with the number and
        the length of the answers: compare models on equal numbers, and look at the lengths. Without such prompts
        only n = 0.
    """
    groups = [[c["text"] for row in group for c in row["completions"]] for group in by_prompt(rows, rows)]
    several = [[words(text) for text in texts] for texts in groups if len(texts) > 1]
    found: dict[str, Any] = {"n": len(several)}
    if not several:
        return found
    found["answers"] = sum(map(len, several)) / len(several)
    values = {f"distinct_{n}": [distinct(texts, n) for texts in several] for n in (1, 2, 3)}
    values["self_bleu"] = [self_bleu(texts) for texts in several]
    values["identical"] = [_identical(texts) for texts in several]
    return found | {name: mean_interval(column, resamples, seed).json() for name, column in values.items()}


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams over all n-grams of some texts, 0..1; 1 where they have none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def self_bleu(texts: Sequence[Sequence[str]]) -> float:
    """Mean BLEU of each text with the others as its references, 0..1."""
    return sum(bleu(text, [*texts[:i], *texts[i + 1 :]]) for i, text in enumerate(texts)) / len(texts)


def bleu(text: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Sentence BLEU-4 (Papineni et al. 2002), 0..1, as sacrebleu computes it: orders that the text is too short for
    are left out, and each order without a match counts half of the one before (its "exp" smoothing).

    Args:
        text, references: words.
    """
    if not text:
        return float(any(not reference for reference in references))
    logs: list[float] = []
    missed = 1.0
    for n in ORDERS[: len(text)]:
        own = Counter(_grams(text, n))
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= Counter(_grams(reference, n))
        hits = sum((own & most).values())
        if not hits and n == 1:
            return 0.0
        if not hits:
            missed *= 2
        logs.append(math.log((hits or 1 / missed) / sum(own.values())))
    closest = min((abs(len(r) - len(text)), len(r)) for r in references)[1]
    brevity = min(0.0, 1 - closest / len(text))
    return math.exp(brevity + sum(logs) / len(logs))


def _grams(text: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def _identical(texts: Sequence[Sequence[str]]) -> float:
    counts = Counter(tuple(text) for text in texts)
    return sum(count for count in counts.values() if count > 1) / len(texts)


def lengths(rows: Sequence[CandidatesRow], resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Mean lengths of one model's answers over prompts: chars, tokens where known, truncated (share cut off)."""
    found = {}
    groups = [[c for row in group for c in row["completions"]] for group in by_prompt(rows, rows)]
    columns: dict[str, list[list[float | None]]] = {
        "chars": [[float(len(c["text"])) for c in group] for group in groups],
        "tokens": [[None if c["token_ids"] is None else float(len(c["token_ids"])) for c in g] for g in groups],
        "truncated": [[float(c["finish_reason"] == "length") for c in group] for group in groups],
    }
    for name, column in columns.items():
        means = [sum(v for v in g if v is not None) / len(g) for g in column if None not in g]
        if len(means) == len(groups):
            found[name] = mean_interval(means, resamples, seed).json()
    return found
