"""Reading rows of a stage in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from prefloop.errors import UsageError


def stage_rows(run: Path, stage: str, limit: int, *, rejects: bool) -> Iterator[dict[str, Any]]:
    """The first rows of a stage of a run, or its dropped rows.

    Raises:
        UsageError: the run has no such stage, or it has written no rows.
    """
    import pyarrow.parquet as pq

    folders = {p.name.partition("-")[2]: p for p in sorted((run / "stages").glob("*-*")) if p.is_dir()}
    if stage not in folders:
        raise UsageError(f"no stage {stage!r}", where=str(run), fix=f"one of: {', '.join(folders)}")
    files = sorted(folders[stage].glob("rejects.parquet" if rejects else "part-*.parquet"))
    if not files:
        raise UsageError("no rows are here", where=str(folders[stage]), fix="see prefloop status")
    yield from islice((row for file in files for row in pq.read_table(file).to_pylist()), limit)


def show_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """Print rows as panels: prompt, then what the row has (answers with scores, a pair, a reject's reason)."""
    for row in rows:
        body = Text()
        if "reason" in row:
            body.append(f"{row['reason']}\n", style="red")
            body.append(row["row"])
        for message in row.get("prompt") or []:
            body.append(f"{message['role']}: ", style="dim")
            body.append(f"{message['content']}\n")
        for side, style in (("chosen", "green"), ("rejected", "red")):
            if row.get(side):
                body.append(f"{side} {_score(row.get(f'score_{side}'))}", style=style)
                body.append(f"{row[side][-1]['content']}\n")
        scores = row.get("scores") or [None] * len(row.get("completions") or [])
        for completion, score in zip(row.get("completions") or [], scores):
            body.append(f"{_score(score)}", style="cyan")
            body.append(f"{completion['text']}\n")
        console.print(Panel(body, title=Text(row["id"]), title_align="left", border_style="dim"))


def _score(value: float | None) -> str:
    return "" if value is None else f"[{value:.3f}] "
