"""Reading rows of a stage in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from prefloop.errors import UsageError
from prefloop.records import message_text
from prefloop.store.rows import read_rows
from prefloop.store.rundir import RunDir
from prefloop.store.stagedir import StageDir
from prefloop.ui.controls import without_controls


def stage_rows(run: Path, stage: str | None, limit: int, *, rejects: bool) -> Iterator[dict[str, Any]]:
    """The first rows of a stage of a run, or its dropped rows; also while the stage is running.

    Without a stage, those that are trained on: of the preferences that the recipe names, pairs, judgments, or a
    reranker's rows.

    Raises:
        UsageError: the run has no such stage, or it has written no rows.
    """
    opened = RunDir.peek(run)
    folders = {folder.name: folder for folder in opened.stages()}
    # A folder of an earlier recipe may have the name under another number.
    planned = {
        s["name"]: opened.stage(s["number"], s["name"]) for s in (opened.read_manifest() or {}).get("stages", [])
    }
    folders |= {name: folder for name, folder in planned.items() if folder.path.is_dir()}
    if stage is None:
        stage = _of_the_model(opened, *TRAINED_ON) or "pair"
    if stage not in folders:
        stage = _of_the_model(opened, stage) or stage
    if stage not in folders:
        known = ", ".join(folders) or "none has begun yet"
        raise UsageError(f"no stage {stage!r}", where=str(run), fix=f"one of: {known}")
    rows = _rejects(folders[stage]) if rejects else folders[stage].rows()
    first = list(islice(rows, 1))
    if not first:
        raise UsageError("no rows are here", where=str(folders[stage].path), fix="see prefloop status")
    yield from islice(chain(first, rows), limit)


TRAINED_ON = ("preferences", "pair", "judgments", "rows")
"""Verbs of the stages whose rows are learned from."""


def _of_the_model(run: RunDir, *verbs: str) -> str | None:
    """Of several branches' stages of a kind, that of the model which the run ends with, or of the first branch."""
    chosen = (run.read_summary() or {}).get("chosen", {})
    found = [s for s in (run.read_manifest() or {}).get("stages", []) if s["verb"] in verbs]
    mine = [s for s in found if (s["round"], s.get("branch")) == (chosen.get("round"), chosen.get("branch"))]
    return next((str(s["name"]) for s in mine or found), None)


def _rejects(folder: StageDir) -> Iterator[dict[str, Any]]:
    """The dropped rows: one file when the stage is done, until then one for each part."""
    merged = folder.path / "rejects.parquet"
    return read_rows([merged] if merged.exists() else sorted(folder.path.glob("rejects-*.parquet")))


def show_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """Print rows as panels: prompt, then what the row has (answers with scores, a pair, a reject's reason).

    Texts are printed without control characters.
    """
    for row in rows:
        body = Text()
        if "reason" in row:
            body.append(without_controls(f"{row['reason']}\n"), style="red")
            body.append(without_controls(row["row"]))
        for message in row.get("prompt") or []:
            body.append(f"{message['role']}: ", style="dim")
            body.append(without_controls(f"{message_text(message)}\n"))
        _question(row, body)
        for side, style in (("chosen", "green"), ("rejected", "red")):
            if row.get(side):
                body.append(f"{side} {_score(row.get(f'score_{side}'))}", style=style)
                body.append(without_controls(f"{message_text(row[side][-1])}\n"))
        if row.get("completion"):
            body.append(without_controls(f"{message_text(row['completion'][-1])}\n"), style="cyan")
            said = row["judgment"]
            body.append("satisfactory\n" if said is None else without_controls(f"judgment: {said}\n"), style="magenta")
        scores = row.get("scores") or [None] * len(row.get("completions") or [])
        judgments = row.get("judgments") or [None] * len(scores)
        for completion, score, said in zip(row.get("completions") or [], scores, judgments):
            body.append(f"{_score(score)}", style="cyan")
            body.append(without_controls(f"{completion['text']}\n"))
            if said is not None:
                body.append(without_controls(f"judgment: {said}\n"), style="magenta")
        console.print(Panel(body, title=Text(row["id"]), title_align="left", border_style="dim"))


def _question(row: dict[str, Any], body: Text) -> None:
    """A question with its reference answers and its documents, each with its score and label."""
    for name in ("question", "query"):
        if row.get(name):
            body.append(f"{name}: ", style="dim")
            body.append(without_controls(f"{row[name]}\n"))
    if row.get("answers"):
        body.append(without_controls(f"answers: {'; '.join(row['answers'])}\n"), style="green")
    documents = row.get("documents") or []
    scores, labels = (row.get(name) or [None] * len(documents) for name in ("scores", "labels"))
    for document, score, label in zip(documents, scores, labels):
        body.append(_score(score), style="cyan")
        if label is not None:
            body.append(f"{SIDES.get(label, label)}: ", style="magenta")
        body.append(without_controls(f"{document}\n"))


SIDES = {1: "positive", 0: "negative"}
"""Labels of a reranker's rows; a reader's are words."""


def _score(value: float | None) -> str:
    return "" if value is None else f"[{value:.3f}] "
