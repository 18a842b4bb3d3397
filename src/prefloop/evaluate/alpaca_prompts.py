"""AlpacaEval's 805 prompts, known by their hashes: which they are and in which order they stand.

The length-controlled win rate looks a prompt's difficulty up by the row's *position*, so it means something for these
prompts in this order and for nothing else. The prompts themselves are CC BY-NC 4.0 and not in this package;
`alpaca_eval_prompts.txt` has the first twelve hex digits of the SHA-256 of each, outer white space taken off, in the
order of every published annotation file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from prefloop.errors import UsageError

PROMPTS = 805
DIGITS = 12

Row = TypeVar("Row", bound=Mapping[str, Any])


@cache
def positions() -> dict[str, int]:
    """Hash of a prompt -> its position, 0..804."""
    text = resources.files("prefloop").joinpath("evaluate", "alpaca_eval_prompts.txt").read_text(encoding="ascii")
    return {line: i for i, line in enumerate(text.split())}


def position(instruction: str) -> int | None:
    """Where a prompt stands in AlpacaEval, 0..804; None: it is not one of them."""
    # surrogatepass: text from elsewhere may hold lone surrogates, and must be refused as no prompt, not as no text.
    digest = hashlib.sha256(instruction.strip().encode("utf-8", "surrogatepass")).hexdigest()
    return positions().get(digest[:DIGITS])


def require_canonical(instructions: Sequence[str], where: str | None = None) -> None:
    """Make sure that these are AlpacaEval's prompts, all of them, in their order.

    Raises:
        UsageError: they are not; says which row is the first that differs, and whether sorting would help.
    """
    found = [position(text) for text in instructions]
    if found == list(range(PROMPTS)):
        return
    fix = (
        "length_controlled_minimal is made for other prompts; the three-parameter form needs these 805 rows in their "
        "order, a row without verdict kept with preference null"
    )
    if sorted(p for p in found if p is not None) == list(range(PROMPTS)) and len(found) == PROMPTS:
        what = "the rows are AlpacaEval's prompts in another order"
        fix = "put them in order: prefloop.evaluate.alpaca_prompts.in_order"
    elif not any(p is not None for p in found):
        what = f"none of the {len(found)} prompts is AlpacaEval's"
    else:
        first = next((i for i, p in enumerate(found) if p != i), len(found))
        what = (
            f"{len(found)} rows, not AlpacaEval's {PROMPTS} prompts in their order; row {first} is the first to differ"
        )
        missing = sorted(set(range(PROMPTS)) - {p for p in found if p is not None})
        if missing:
            what += f"; {len(missing)} prompts are missing, the first is number {missing[0]}"
    raise UsageError(f"length control: {what}", where=where, fix=fix)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows (with `instruction`) in AlpacaEval's order.

    Raises:
        UsageError: they are not the 805 prompts, each once.
    """
    placed = {p: row for row in rows if (p := position(row["instruction"])) is not None}
    ordered = [placed[p] for p in sorted(placed)]
    if len(rows) != len(ordered):
        ordered = list(rows)
    require_canonical([row["instruction"] for row in ordered])
    return ordered
