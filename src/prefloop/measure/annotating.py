"""Verdicts for AlpacaEval's files: those of a run's measurement, or made now of two files of answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.errors import UsageError
from prefloop.measure.referees import checked
from prefloop.measure.subjects import opened, run_recipe, stage_rows
from prefloop.publish import facts as of_run

if TYPE_CHECKING:
    from prefloop.ui.progress import Progress

Verdicts = tuple[list[dict[str, Any]], str]
"""AlpacaEval's rows, and whose they are, in words."""


def of_a_run(folder: Path) -> Verdicts:
    """The verdicts on the model that a run ends with, from the measurement of its round.

    Raises:
        UsageError: that round is not measured yet, or nobody compares.
    """
    from prefloop.evaluate.alpaca_judge import annotations_of
    from prefloop.loop.plan import evaluation_signals
    from prefloop.signals.build import build

    recipe, facts = run_recipe(folder), of_run.read(folder)
    number, _ = facts.chosen()
    measured = facts.done("evaluate", number)
    sections = evaluation_signals(recipe)
    if not measured or not sections:
        what = f"round {number}" if recipe.rounds > 1 else "it"
        raise UsageError(
            "nobody compares in this recipe" if measured else f"this run has measured nothing yet of {what}",
            where=str(folder),
            fix="set evaluate.judge" if measured else "go on with it first; `prefloop status` says how far it is",
        )
    # Of several branches the rows are the winner's, which is the one that the round hands on.
    name = measured[-1].name
    signal, _ = build(sections[0], recipe.seed)
    generators = (recipe.model.path, f"{recipe.name} ({name})")
    rows = annotations_of(stage_rows(folder, name), pairwise=signal.pairwise, generators=generators)
    return rows, f"Verdicts of the run {recipe.name} by {signal.name}."


def now(
    outputs: str, reference: str, judge: str, overrides: list[str] | None, cache: Path, progress: Progress
) -> Verdicts:
    """Let the evaluation's signal of a recipe compare two files of answers.

    Args:
        outputs, reference: the model's and the baseline's answers.
        judge, overrides: a recipe and its settings.
        cache: the project's.

    Raises:
        UsageError: nobody compares in the recipe, or a file is faulty.
        PrefloopError: the judge gave too few verdicts, or a server's limit of cost is reached.
    """
    from prefloop.config import load_answering
    from prefloop.evaluate.alpaca_eval import paired, read_outputs
    from prefloop.evaluate.alpaca_judge import candidates_of
    from prefloop.evaluate.win_rate import compare
    from prefloop.loop.plan import evaluation_signals
    from prefloop.signals.build import build, preflight

    recipe = load_answering(judge, overrides)
    sections = evaluation_signals(recipe)
    if not sections:
        raise UsageError("nobody compares in this recipe", where=judge, fix="set evaluate.judge")
    preflight(sections[0])
    rows = paired(read_outputs(reference), read_outputs(outputs))
    signal, needs = build(sections[0], recipe.seed)
    with opened(cache, progress) as models:
        progress.stage("compare", 1, 1)
        progress.total(len(rows), "comparisons")
        compared = compare(
            candidates_of(rows),
            signal,
            models.backends(needs, recipe.model),
            seed=recipe.seed,
            on_progress=lambda done, _: progress.at(done),
        )
    checked({signal.name: sections[0]}, progress)(signal.name, compared.counts)
    for row, p in zip(rows, compared.preferences, strict=True):
        row |= {"annotator": signal.name, "preference": None if p is None else 1 + p}
    return rows, f"Verdicts of {signal.name}."
