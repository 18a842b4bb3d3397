"""`prefloop evaluate ratings`, `arena-hard` and `mt-bench`: scores of many models from files of verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from prefloop.errors import UsageError
from prefloop.ui.console import results
from prefloop.ui.table import print_table

Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable result to stdout, last.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.")]


def ratings(
    files: Annotated[
        list[Path], typer.Argument(help="Verdicts: AlpacaEval's, Arena-Hard's, MT-Bench's, plain lines.")
    ],
    anchor: Annotated[str | None, typer.Option(help="The model whose rating is 1000; the mean without it.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap over prompts.")] = 1000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Rate many models by all their battles: Bradley-Terry on Elo's scale, with intervals over prompts."""
    from prefloop.evaluate.battles import read_battles
    from prefloop.evaluate.ratings import bradley_terry

    battles, nulls = read_battles(files)
    found = bradley_terry(battles, anchor=anchor, resamples=resamples, seed=seed)
    rows = []
    for name, figures in found.models.items():
        r = figures["rating"]
        ends = "" if r["ci_low"] is None else f"{r['ci_low']:.0f} to {r['ci_high']:.0f}"
        rows.append([escape(name), f"{r['value']:.0f}", ends, figures["battles"]])
    console = results(as_json=as_json)
    title = f"{found.battles} battles on {found.prompts} prompts"
    print_table(console, title, ["model", "rating", "95 %", "battles"], rows)
    if nulls:
        console.print(f"{nulls} verdicts were null, or of AlpacaEval outside 1 to 2, and do not count", soft_wrap=True)
    if found.unbounded:
        names = escape(", ".join(found.unbounded))
        warning = f"[yellow]warning:[/] never beat the rest, or never lost to it; only above or below it: {names}"
        Console(stderr=True, highlight=False).print(warning, soft_wrap=True)
    if found.left_out:
        said = f"{found.left_out} of {resamples} resamples fell apart into groups that never met; left out"
        console.print(said, soft_wrap=True)
    if as_json:
        print(json.dumps(found.json() | {"nulls": nulls}))


def arena_hard(
    files: Annotated[list[Path], typer.Argument(help="Judgments, one file a model.")],
    category: Annotated[
        str | None, typer.Option(help="Only this category; there must be only one without it.")
    ] = None,
    answers: Annotated[
        list[Path] | None, typer.Option(help="Answers of every model and the baseline, for control of style.")
    ] = None,
    control: Annotated[list[str] | None, typer.Option(help="What of style is controlled: length, markdown.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap over prompts.")] = 1000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score models by Arena-Hard's judgments, with style controlled where answers are given."""
    from prefloop.evaluate.arena_hard import read_answers, read_judgments, scores, style_controlled

    rows = [row for file in files for row in read_judgments(file) if category in (None, row.get("category"))]
    categories = sorted({str(row.get("category")) for row in rows})
    if len(categories) != 1:
        raise UsageError(
            f"there are {len(categories)} categories: {', '.join(categories)}", fix="name one: --category NAME"
        )
    if answers:
        styles: dict[str, dict[str, Any]] = {}
        for file in answers:
            for row in read_answers(file):
                if "metadata" in row:
                    styles.setdefault(row["model"], {})[row["uid"]] = row["metadata"]
        chosen: Any = control or ("length", "markdown")
        found = style_controlled(rows, styles, control=chosen, resamples=resamples, seed=seed)
    elif control:
        raise UsageError("control of style needs the answers", fix="give --answers FILE for every model")
    else:
        found = {"models": scores(rows, resamples=resamples, seed=seed)}
    best = sorted(found["models"].items(), key=lambda item: -item[1]["value"])
    table = [
        [escape(name), f"{f['value']:.1f}", f"{f['ci_low']:.1f} to {f['ci_high']:.1f}", f.get("nulls", "")]
        for name, f in best
    ]
    title = f"{categories[0]}: score against the baseline, in percent"
    print_table(results(as_json=as_json), title, ["model", "score", "95 %", "nulls"], table)
    if as_json:
        print(json.dumps(found))


def mt_bench(
    files: Annotated[list[Path], typer.Argument(help="Judgments of single answers.")],
    questions: Annotated[Path | None, typer.Option(help="The questions, for the categories.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap over questions.")] = 10_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score models by MT-Bench's judgments: both turns, their mean, and by category."""
    from prefloop.evaluate.mt_bench import read_judgments, read_questions, summarize

    rows = [row for file in files for row in read_judgments(file)]
    asked = [] if questions is None else read_questions(questions)
    found = summarize(rows, asked, resamples=resamples, seed=seed)
    names = list(dict.fromkeys(name for figures in found.values() for name in figures.get("categories", {})))
    table = []
    for model, figures in sorted(found.items(), key=lambda item: -item[1]["score"]["value"]):
        said = "{value:.2f} \\[{ci_low:.2f}, {ci_high:.2f}]".format(**figures["score"])
        shares = [figures.get("turn_1"), figures.get("turn_2"), *(figures.get("categories", {}).get(n) for n in names)]
        cells = ["" if value is None else f"{value:.2f}" for value in shares]
        table.append([escape(model), said, *cells, figures["excluded"]])
    columns = ["model", "score", "turn 1", "turn 2", *map(escape, names), "no rating"]
    print_table(results(as_json=as_json), "MT-Bench", columns, table)
    if as_json:
        print(json.dumps(found))
