"""`prefloop inspect-cut`: which tokens written judgments speak of, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from prefloop.errors import UsageError
from prefloop.ui.console import results
from prefloop.ui.table import print_table


def inspect_cut(
    source: Annotated[str, typer.Argument(help="A file of judgments, hub:ORG/NAME, or a run directory.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id, model folder or sandbox; of a run its own without it.")
    ] = None,
    threshold: Annotated[float, typer.Option(min=1, help="Of the page's colours.")] = 1.1,
    judged_prompt: Annotated[str, typer.Option(help="default, alpaca, sandbox, or a Jinja file.")] = "default",
    template: Annotated[str, typer.Option(help="Chat template: auto, plain, alpaca, or a Jinja file.")] = "auto",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Criticised answers to score.")] = 100,
    max_length: Annotated[int, typer.Option(min=1, help="Longer ones are left out, tokens.")] = 2048,
    truth: Annotated[
        str | None,
        typer.Option(
            help="Function module:name of (prompt messages, answer) -> the characters where it is wrong, if that is "
            "known: tells each threshold's precision and recall."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write; inspect-cut.html without it.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every token with its probabilities to stdout, last.")
    ] = False,
) -> None:
    """Show which tokens the judgments of answers speak of, and what share each threshold would flag."""
    from prefloop.config import ModelSection
    from prefloop.engine.load import quiet
    from prefloop.report.spoken import render_spoken
    from prefloop.signals.function import call, load
    from prefloop.store import atomic
    from prefloop.train.spoken import spoken, sweep

    name, rows = _source(source)
    name = model or name
    if name is None:
        raise UsageError("which model is to score them?", where=source, fix="name it: --model ORG/NAME")
    known = None if truth is None else load(truth)
    quiet()
    section = ModelSection(path=name, template=template)
    found, left_out = spoken(section, rows, judged_prompt=judged_prompt, max_length=max_length, limit=limit)
    if not found:
        why = ", ".join(f"{reason} ({n})" for reason, n in left_out.items())
        raise UsageError(
            "no criticised answer is here that can be scored" + (f": {why}" if why else ""),
            where=source,
            fix="raise --max-length" if left_out else "give answers with judgments",
        )
    answers: list[dict[str, Any]] = [
        {
            "id": answer.row["id"],
            "prompt": answer.row["prompt"][-1]["content"],
            "judgment": answer.row["judgment"],
            "tokens": answer.tokens(threshold),
        }
        for answer in found
    ]
    wrong = None
    if truth is not None and known is not None:
        texts = [(a, a.row["prompt"], a.row["completion"][0]["content"]) for a in found]
        wrong = [answer.at(call(known, truth, prompt, text)) for answer, prompt, text in texts]
    rates = sweep(found, wrong=wrong)
    page = out or Path("inspect-cut.html")
    atomic.write_text(page, render_spoken(name, threshold, answers, rates))
    console = results(as_json=as_json)
    print_table(
        console,
        f"{len(found)} criticised answers, scored by {escape(name)}",
        ["threshold", "tokens flagged", "answers with a flag", *(() if wrong is None else ("precision", "recall"))],
        [
            [
                *(f"{r['threshold']:g}", f"{r['rate']:.1%}", f"{r['answers']:.0%}"),
                *(f"{r[name]:.2f}" for name in ("precision", "recall") if name in r),
            ]
            for r in rates
        ],
    )
    for reason, count in left_out.items():
        console.print(f"left out: {count}, {escape(reason)}", soft_wrap=True)
    console.print(f"page: {escape(str(page))}", soft_wrap=True)
    if as_json:
        told = {"model": name, "threshold": threshold, "sweep": rates, "left_out": left_out, "answers": answers}
        print(json.dumps(told, ensure_ascii=False))


def _source(source: str) -> tuple[str | None, Iterator[Any]]:
    """The model of a run, None of a file, and the judgment rows."""
    from prefloop.config import PreferencesSection
    from prefloop.inputs.preferences import PreferenceReader
    from prefloop.ui.rows import stage_rows

    folder = Path(source)
    if (folder / "manifest.json").is_file():
        recipe = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["recipe"]
        stage = "judgments" if recipe.get("preferences") is None else "preferences"
        rows = stage_rows(folder, stage, 10**9, rejects=False)
        return recipe["model"]["path"], (row for row in rows if "completion" in row)
    reader = PreferenceReader(PreferencesSection(path=source, on_bad_row="reject"))
    parts = reader.parts(1000)
    return None, (row for rows, _ in parts for row in rows if "completion" in row)
