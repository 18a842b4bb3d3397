"""Whether a text can pass for a rewrite of a passage, by rules that read no meaning."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from prefloop.config import RewriteSection

REASONS = ("cut_off", "undecodable", "empty", "label", "refusal", "language", "too_short", "too_long")
"""Why a rewrite is left out, in the order of the checks."""

FOREIGN = 0.1
"""Share of a rewrite's letters in scripts that its passage has not, from which on it is another language."""
_WIDE = frozenset({"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"})
"""Scripts of which a single letter counts: models drift into them for some words (Dai et al. 2025 drop every rewrite
with an ideograph)."""

_PREAMBLE = re.compile(
    r"^\W*(?:sure|certainly|of course|okay|ok|absolutely|here(?:'s| is| are| you)|below is|this is)\b[^.\n]{0,120}:",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^\W*(?:re-?written|re-?phrased|re-?worded|paraphrased?|new|revised|original)?\s*"
    r"(?:text|passage|version|rewrite|paraphrase)\s*\W?\s*:",
    re.IGNORECASE,
)
_REMARK = re.compile(r"(?:^|\n)\W*(?:note|explanation|comment|changes made)\b[^\n]{0,40}:", re.IGNORECASE)


def fault(text: str, passage: str, key: str, section: RewriteSection) -> str | None:
    """Why a decoded rewrite is left out, one of `REASONS`; None where it is not.

    A refusal is not among the faults found here: that rule belongs to the evaluation.

    Args:
        key: of the JSON object that was asked for; empty for plain text.
    """
    if not text:
        return "empty"
    if labelled(text, passage, key):
        return "label"
    if other_language(text, passage):
        return "language"
    if section.length_ratio is None:
        return None
    low, high = section.length_ratio
    ratio = length_ratio(text, passage)
    return "too_short" if ratio < low else "too_long" if ratio > high else None


def labelled(text: str, passage: str, key: str) -> bool:
    """Whether what belongs to the answer's form was left in: a preamble, a label, the key, a remark of its own."""
    if key and key.casefold() in text.casefold() and key.casefold() not in passage.casefold():
        return True
    if '{"' in text and '{"' not in passage:
        return True
    return any(rule.search(text) and not rule.search(passage) for rule in (_PREAMBLE, _LABEL, _REMARK))


def other_language(text: str, passage: str) -> bool:
    """Whether a text is written in a script that the passage has not; languages of one script are not told apart."""
    own, found = _scripts(passage), _scripts(text)
    foreign = {script: count for script, count in found.items() if script not in own}
    if any(script in _WIDE for script in foreign):
        return True
    return sum(foreign.values()) > FOREIGN * max(found.total(), 1)


def _scripts(text: str) -> Counter[str]:
    """Letters by script, as the first word of their Unicode names says it."""
    return Counter(unicodedata.name(letter, "?").split()[0].split("-")[0] for letter in text if letter.isalpha())


def length_ratio(text: str, passage: str) -> float:
    """Words of a text over words of its passage; characters where the passage is written without spaces."""
    words = len(passage.split())
    if len(passage) > 20 * words:
        return len(text) / max(len(passage), 1)
    return len(text.split()) / max(words, 1)
