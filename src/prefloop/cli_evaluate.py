"""`prefloop evaluate`: a recipe up to its measurement, or one of the measurements that stand alone.

`prefloop evaluate RECIPE …` and `prefloop evaluate COMMAND …` share the verb: what follows it is a command where it is
one of the names below, else a recipe. A recipe with the name of a command is meant by `prefloop evaluate recipe NAME`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from prefloop import cli_ratings
from prefloop.errors import UsageError
from prefloop.ui.table import print_table

Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable result to stdout, last.")]


class RecipeOrCommand(TyperGroup):
    """A group whose command `recipe` is meant where the first word names no other command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name back where a recipe or an option stands first."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["recipe", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RecipeOrCommand,
    help="Measure: a recipe's aligned model against its base, or answers and verdicts that are there already.\n\n"
    "`prefloop evaluate RECIPE [A.B=C]...` is short for `prefloop evaluate recipe RECIPE [A.B=C]...`.",
    no_args_is_help=True,
)
app.command()(cli_ratings.ratings)
app.command()(cli_ratings.arena_hard)
app.command()(cli_ratings.mt_bench)


@app.command("alpaca-eval")
def alpaca_eval(
    out: Annotated[Path, typer.Option("--out", help="Folder for the files and the figures.")],
    run: Annotated[Path | None, typer.Option("--run", help="A run directory: the verdicts of its evaluation.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Verdicts that are there: an annotations.json.")] = None,
    outputs: Annotated[Path | None, typer.Option(help="A model's answers: a model_outputs.json.")] = None,
    reference: Annotated[Path | None, typer.Option(help="The baseline's answers, of the same form.")] = None,
    judge: Annotated[str | None, typer.Option(help="A recipe: its evaluation's signal compares the answers.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of that recipe.", metavar="[A.B=C]...")
    ] = None,
    gamed: Annotated[Path | None, typer.Option(help="AlpacaEval's df_gamed.csv, else from the hub.")] = None,
    difficulties: Annotated[Path | None, typer.Option(help="An instruction_difficulty.csv of its own.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Published weights: nothing is fitted.")] = None,
    as_json: Json = False,
) -> None:
    """Write AlpacaEval's files of one model, and measure: win rate, and length-controlled where it applies.

    The verdicts are a run's (--run), a file's (--annotations), or made now (--outputs, --reference and --judge). The
    stock alpaca_eval CLI runs offline on what is written; the command for it is printed.
    """
    from prefloop.evaluate.alpaca_eval import read_annotations
    from prefloop.evaluate.alpaca_folder import write_folder

    ways = [run is not None, annotations is not None, (outputs, reference, judge) != (None, None, None)]
    if sum(ways) != 1 or (ways[2] and None in (outputs, reference, judge)) or (overrides and not ways[2]):
        raise UsageError(
            "it is not clear whose verdicts are meant",
            fix="give --run RUN, or --annotations FILE, or --outputs FILE --reference FILE --judge RECIPE [A.B=C]...",
        )
    if run is not None:
        rows, prompt = _verdicts_of_run(run)
    elif annotations is not None:
        rows, prompt = read_annotations(annotations), f"Verdicts of the file {annotations.name}."
    else:
        rows, prompt = _verdicts_now(str(outputs), str(reference), str(judge), overrides)
    found = write_folder(out, rows, prompt=prompt, gamed=gamed, difficulties=difficulties, weights=weights)
    shown = ("win_rate", "standard_error", "discrete_win_rate", "length_controlled_winrate", "n_total", "avg_length")
    lines = [
        [name, f"{found[name]:.2f}" if isinstance(found[name], float) else found[name]]
        for name in shown
        if name in found
    ]
    if minimal := found.get("length_controlled_minimal"):
        lines.append(["length_controlled_minimal", "{value:.2f} [{ci_low:.2f}, {ci_high:.2f}]".format(**minimal)])
    print_table(f"{found['model']} against {found['baseline']}", ["figure", "value"], lines)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for name, why in found.get("not_measured", {}).items():
        console.print(escape(f"no {name}: {why}"))
    for warning in found.get("warnings", []):
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    console.print(escape(f"the same by AlpacaEval's own CLI: {found['stock_command']}"))
    if as_json:
        print(json.dumps(found))


@app.command()
def agreement(
    people: Annotated[Path, typer.Option(help="People's votes, in the form of an annotations.json.")],
    judges: Annotated[
        list[str], typer.Argument(help="Verdicts of one judge each, of the same form.", metavar="[NAME=]FILE...")
    ],
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap over pairs.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap, and of the judge `random`.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare judges with people and with each other, always beside the judges "longest" and "random"."""
    from prefloop.evaluate.votes import compare_votes

    named = [(name, path) if path else (Path(name).stem, name) for name, _, path in (j.partition("=") for j in judges)]
    if len(dict(named)) < len(named):
        raise UsageError("two judges have one name", fix="name them: NAME=FILE")
    found = compare_votes(people, dict(named), resamples=resamples, seed=seed)
    rows = []
    for name, f in found["judges"].items():
        shares = [_share(f["accuracy"]), _share(f["decided"])]
        rows.append(
            [escape(name), *shares, *("" if v is None else f"{v:.2f}" for v in (f["kappa"], f["prefers_longer"]))]
        )
    title = "{n} people on {pairs} pairs".format(**found["people"])
    print_table(title, ["judge", "agrees", "both decided", "kappa", "prefers longer"], rows)
    if found["people"]["alpha"] is not None:
        said = "people among themselves: alpha {alpha:.2f}, one with the others {human_agreement:.1%}"
        Console(stderr=True, highlight=False).print(said.format(**found["people"]))
    if as_json:
        print(json.dumps(found))


def _share(figure: dict[str, float] | None) -> str:
    return "" if figure is None else "{value:.1%} \\[{ci_low:.1%}, {ci_high:.1%}]".format(**figure)


def _verdicts_of_run(run: Path) -> tuple[list[dict[str, Any]], str]:
    """The verdicts of a run's last evaluation as AlpacaEval's rows, and whose they are, in words."""
    from prefloop.evaluate.alpaca_judge import annotations_of
    from prefloop.plan import evaluation_signals
    from prefloop.signals.build import build
    from prefloop.store.rundir import RunDir
    from prefloop.subjects import run_recipe, stage_rows

    recipe = run_recipe(run)
    stages = [s["name"] for s in (RunDir.peek(run).read_manifest() or {})["stages"] if s.get("verb") == "evaluate"]
    found = [(name, rows) for name in stages if (rows := stage_rows(run, name))]
    sections = evaluation_signals(recipe)
    if not found or not sections:
        raise UsageError(
            "nobody compares in this recipe" if found else "this run has measured nothing yet",
            where=str(run),
            fix="set evaluate.judge" if found else "go on with it first; `prefloop status` says how far it is",
        )
    name, scored = found[-1]
    signal, _ = build(sections[0])
    rows = annotations_of(scored, pairwise=signal.pairwise, generators=(recipe.model.path, f"{recipe.name} ({name})"))
    return rows, f"Verdicts of the run {recipe.name} by {signal.name}."


def _verdicts_now(
    outputs: str, reference: str, judge: str, overrides: list[str] | None
) -> tuple[list[dict[str, Any]], str]:
    """Let the evaluation's signal of a recipe compare two files of answers."""
    from prefloop.backends.cached import CachedBackend
    from prefloop.cli import cache_path
    from prefloop.config import load_recipe
    from prefloop.engine.load import quiet
    from prefloop.evaluate.alpaca_eval import paired, read_outputs
    from prefloop.evaluate.alpaca_judge import candidates_of
    from prefloop.evaluate.win_rate import compare
    from prefloop.plan import evaluation_signals
    from prefloop.signals.build import build, check, open_backend
    from prefloop.store.cache import Cache

    recipe = load_recipe(judge, overrides)
    sections = evaluation_signals(recipe)
    if not sections:
        raise UsageError("nobody compares in this recipe", where=judge, fix="set evaluate.judge")
    rows = paired(read_outputs(reference), read_outputs(outputs))
    signal, needs = build(sections[0])
    quiet()
    with Cache(cache_path()) as cache:
        opened = {
            name: CachedBackend(open_backend(need.model or recipe.model, need.kind, cache), cache)
            for name, need in needs.items()
        }
        compared = compare(candidates_of(rows), signal, opened, seed=recipe.seed)
        for backend in opened.values():
            backend.close()
    check(sections[0], compared.counts)
    for row, p in zip(rows, compared.preferences, strict=True):
        row |= {"annotator": signal.name, "preference": None if p is None else 1 + p}
    return rows, f"Verdicts of {signal.name}."
