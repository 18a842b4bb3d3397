"""A table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print rows under their columns; a cell may carry rich markup, the title is taken as it is."""
    table = Table(box=None, header_style="dim")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    # Not the table's own title, which is broken at the table's width.
    console.print(escape(title), soft_wrap=True)
    console.print(table)
