"""`prefloop inspect-cut`: which tokens written judgments speak of, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from prefloop.errors import UsageError
from prefloop.ui.console import results
from prefloop.ui.table import print_table

if TYPE_CHECKING:
    from prefloop.config import CutObjectiveSection, ModelSection


def inspect_cut(
    source: Annotated[str, typer.Argument(help="A file of judgments, hub:ORG/NAME, or a run directory.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id, model folder or sandbox; of a run its own without it.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=1, help="Of the page's colours; of a run its own, else 1.1.")
    ] = None,
    judged_prompt: Annotated[
        str | None, typer.Option(help="default, alpaca, sandbox, or a Jinja file; of a run its own without it.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Chat template: auto, plain, alpaca, or a Jinja file; of a run its own.")
    ] = None,
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
    from prefloop.config import CutObjectiveSection, ModelSection
    from prefloop.engine.load import quiet
    from prefloop.report.spoken import render_spoken
    from prefloop.signals.function import call, load
    from prefloop.store import atomic
    from prefloop.train.spoken import SWEEP, spoken, sweep

    section, objective, rows, rejected = _source(source)
    given = {name: value for name, value in (("path", model), ("template", template)) if value is not None}
    if section is None and model is None:
        raise UsageError("which model is to score them?", where=source, fix="name it: --model ORG/NAME")
    section = ModelSection.model_validate((section.model_dump() if section and model is None else {}) | given)
    objective = objective or CutObjectiveSection()
    threshold, form = threshold or objective.threshold, judged_prompt or objective.judged_prompt
    known = None if truth is None else load(truth, "places of the wrong characters, counted from 0")
    page = out or Path("inspect-cut.html")
    page.parent.mkdir(parents=True, exist_ok=True)
    quiet()
    found, left_out = spoken(section, rows, judged_prompt=form, max_length=max_length, limit=limit)
    left_out |= rejected
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
        try:
            wrong = [answer.at(call(known, truth, prompt, text)) for answer, prompt, text in texts]
        except (TypeError, ValueError) as error:
            fix = "return the places of the wrong characters, counted from 0: a list of whole numbers"
            raise UsageError(str(error), where=truth, fix=fix) from error
    rates = sweep(found, sorted({*SWEEP, threshold}), wrong)
    name = section.path
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


def _source(source: str) -> tuple[ModelSection | None, CutObjectiveSection | None, Iterator[Any], dict[str, int]]:
    """The model and the objective of a run, None of a file; the judgment rows; and a file's rejects by their reason,
    which are there when the rows have been read."""
    from prefloop.config import PreferencesSection
    from prefloop.inputs.preferences import PreferenceReader

    folder = Path(source)
    rejected: dict[str, int] = {}
    if (folder / "manifest.json").is_file():
        from prefloop.loop.plan import contrasted
        from prefloop.measure.subjects import base_of, run_recipe
        from prefloop.ui.rows import stage_rows

        recipe = run_recipe(folder)
        way = contrasted(recipe)
        stage = "judgments" if recipe.preferences is None else "preferences"
        rows = (row for row in stage_rows(folder, stage, 10**9, rejects=False) if "completion" in row)
        return base_of(folder), way and way.train.objective, rows, rejected  # type: ignore[return-value]

    def read() -> Iterator[Any]:
        reader = PreferenceReader(PreferencesSection(path=source, on_bad_row="reject"))
        for part, rejects in reader.parts(1000):
            for reject in rejects:
                rejected[reject["reason"]] = rejected.get(reject["reason"], 0) + 1
            yield from (row for row in part if "completion" in row)

    return None, None, read(), rejected
