"""How a rewrite's text differs from the human one: length, words, copies, meaning. Confounders of source bias."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefloop.intervals import Z95, Interval, wilson

MATCHED = (0.9, 1.1)
"""Length ratios, rewrite to human in words, that count as equal lengths."""

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def length_ratio(human: str, other: str) -> float:
    """Words of the rewrite to one word of the human text; an empty human text counts as one word."""
    return len(words(other)) / max(1, len(words(human)))


def overlap(human: str, other: str) -> float:
    """Jaccard similarity of the sets of words, 0 to 1; of two texts without words 1."""
    a, b = set(words(human)), set(words(other))
    return len(a & b) / len(a | b) if a | b else 1.0


def is_copy(human: str, other: str) -> bool:
    """The same words in the same order, whatever case, punctuation and spacing."""
    return words(human) == words(other)


def length_matched(human: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    """Ids of the passages whose two versions are of about equal length (`MATCHED`)."""
    low, high = MATCHED
    return {name for name, text in human.items() if low <= length_ratio(text, other[name]) <= high}


def describe(
    human: Mapping[str, str],
    other: Mapping[str, str],
    similarity: Callable[[Sequence[tuple[str, str]]], Sequence[float]] | None = None,
    similarity_of: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures of a source's texts against the human ones.

    Args:
        human, other: texts by passage id, the same ids.
        similarity: of (human, rewrite), such as an encoder's cosine; None leaves it out.
        similarity_of: ids of the passages for it.

    Returns:
        length_ratio, overlap, copied and, where asked for, similarity: mean with its 95 % interval; of the first two
        also median and the 5th and 95th percentile. passages and length_matched are counts.
    """
    import numpy as np

    ratios = [length_ratio(text, other[name]) for name, text in human.items()]
    overlaps = [overlap(text, other[name]) for name, text in human.items()]
    copies = [is_copy(text, other[name]) for name, text in human.items()]
    found: dict[str, Any] = {
        "passages": len(human),
        "length_matched": sum(MATCHED[0] <= ratio <= MATCHED[1] for ratio in ratios),
        "length_ratio": _spread(ratios),
        "overlap": _spread(overlaps),
        "copied": wilson(sum(copies), len(copies)).json(),
    }
    if similarity is not None and similarity_of:
        values = np.asarray(similarity([(human[name], other[name]) for name in similarity_of]), dtype=float)
        found["similarity"] = _spread(values.tolist()) | {"n": len(values)}
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Mean with its interval by the standard error: passages are many, and a bootstrap of them all would take long."""
    import numpy as np

    p5, median, p95 = np.percentile(values, [5, 50, 95]).tolist()
    mean = sum(values) / len(values)
    half = Z95 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    found = Interval(mean, mean - half, mean + half)
    return found.json() | {"median": median, "p5": p5, "p95": p95}
