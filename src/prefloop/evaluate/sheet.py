"""CSV for spreadsheets: texts of models may not become formulas there."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

Cell = str | int | float | None

# What spreadsheets take for the beginning of a formula, the wide forms of East Asian keyboards too, and the white
# space that some of them pass over before one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table as CSV (RFC 4180, lines end in CR LF), safe to open in a spreadsheet.

    Args:
        header: names of the columns; may come from outside as well.
        rows: texts, which are guarded by a quotation mark where a spreadsheet would run them as a formula; numbers,
            written with six digits that matter; None, an empty cell.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(cell) for cell in row] for row in rows)
    return out.getvalue()


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return str(value) if isinstance(value, int) else f"{value:.6g}"
