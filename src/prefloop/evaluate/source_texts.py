"""How a rewrite's text differs from the human one: length, words, copies, meaning. Confounders of source bias."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prefloop.intervals import Z95, Interval, wilson

MATCHED = (0.9, 1.1)
"""Length ratios, rewrite to human in words, that count as equal lengths."""

_WORD = re.compile(r"\w+")


class Likeness(NamedTuple):
    """How a rewrite compares with the human text.

    Attributes:
        ratio: its words to one word of the human text; an empty human text counts as one word.
        overlap: Jaccard similarity of the sets of words, 0 to 1; of two texts without words 1.
        copied: the same words in the same order, whatever case, punctuation and spacing.
    """

    ratio: float
    overlap: float
    copied: bool

    @property
    def length_matched(self) -> bool:
        """Of about equal lengths (`MATCHED`)."""
        return MATCHED[0] <= self.ratio <= MATCHED[1]


def compare(human: str, other: str) -> Likeness:
    """A rewrite against the human text."""
    a, b = words(human), words(other)
    one, two = set(a), set(b)
    either = one | two
    return Likeness(len(b) / max(1, len(a)), len(one & two) / len(either) if either else 1.0, a == b)


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def describe(
    human: Mapping[str, str],
    other: Mapping[str, str],
    similarity: Callable[[Sequence[tuple[str, str]]], Sequence[float]] | None = None,
    similarity_of: Sequence[str] = (),
    likeness: Mapping[str, Likeness] | None = None,
) -> dict[str, Any]:
    """Figures of a source's texts against the human ones.

    Args:
        human, other: texts by passage id, the same ids.
        similarity: of (human, rewrite), such as an encoder's cosine; None leaves it out.
        similarity_of: ids of the passages for it.
        likeness: `compare` of each, where it is known already.

    Returns:
        length_ratio, overlap, copied and, where asked for, similarity: mean with its 95 % interval; but for copied
        also median and the 5th and 95th percentile. passages and length_matched are counts.
    """
    import numpy as np

    every = list(likeness.values()) if likeness else [compare(text, other[name]) for name, text in human.items()]
    found: dict[str, Any] = {
        "passages": len(every),
        "length_matched": sum(one.length_matched for one in every),
        "length_ratio": _spread([one.ratio for one in every]),
        "overlap": _spread([one.overlap for one in every]),
        "copied": wilson(sum(one.copied for one in every), len(every)).json(),
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
