"""Texts of models, made safe to print."""

from __future__ import annotations

# All of C0 but newline and tab, DEL, and C1: an answer must not move the cursor, recolour or retitle a terminal.
_CONTROL = dict.fromkeys([*(c for c in range(32) if c not in (9, 10)), *range(127, 160)])


def without_controls(text: str) -> str:
    """The text without its control characters; those of an escape sequence that can be seen stay."""
    return text.translate(_CONTROL)
