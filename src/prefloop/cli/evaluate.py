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

from prefloop.cli import ratings as cli_ratings
from prefloop.errors import UsageError
from prefloop.ui.console import results
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
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live display.")] = False,
) -> None:
    """Write AlpacaEval's files of one model, and measure: win rate, and length-controlled where it applies.

    The verdicts are a run's on its model (--run), a file's (--annotations), or made now (--outputs, --reference and
    --judge). The stock alpaca_eval CLI runs offline on what is written; the command for it is printed.
    """
    from prefloop.cli.cache import cache_path
    from prefloop.evaluate.alpaca_eval import read_annotations
    from prefloop.evaluate.alpaca_folder import write_folder
    from prefloop.measure import annotating
    from prefloop.ui.progress import Progress

    ways = [run is not None, annotations is not None, (outputs, reference, judge) != (None, None, None)]
    if sum(ways) != 1 or (ways[2] and None in (outputs, reference, judge)) or (overrides and not ways[2]):
        raise UsageError(
            "it is not clear whose verdicts are meant",
            fix="give --run RUN, or --annotations FILE, or --outputs FILE --reference FILE --judge RECIPE [A.B=C]...",
        )
    if run is not None:
        rows, prompt = annotating.of_a_run(run)
    elif annotations is not None:
        rows = read_annotations(annotations, ("instruction", "output_1", "output_2"))
        prompt = f"Verdicts of the file {annotations.name}."
    else:
        with Progress(plain=plain, title=f"alpaca-eval → {out}") as progress:
            rows, prompt = annotating.now(str(outputs), str(reference), str(judge), overrides, cache_path(), progress)
    found = write_folder(out, rows, prompt=prompt, gamed=gamed, difficulties=difficulties, weights=weights)
    shown = ("win_rate", "standard_error", "discrete_win_rate", "length_controlled_winrate", "n_total", "avg_length")
    lines = [
        [name, f"{found[name]:.2f}" if isinstance(found[name], float) else found[name]]
        for name in shown
        if name in found
    ]
    if minimal := found.get("length_controlled_minimal"):
        lines.append(["length_controlled_minimal", "{value:.2f} [{ci_low:.2f}, {ci_high:.2f}]".format(**minimal)])
    console = results(as_json=as_json)
    print_table(console, f"{found['model']} against {found['baseline']}", ["figure", "value"], lines)
    if found["n_excluded"]:
        said = f"{found['n_excluded']:,} of {len(rows):,} rows have no preference from 1 to 2 and do not count"
        console.print(said, soft_wrap=True)
    for name, why in found.get("not_measured", {}).items():
        console.print(escape(f"no {name}: {why}"), soft_wrap=True)
    for warning in found.get("warnings", []):
        Console(stderr=True, highlight=False).print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    console.print(escape(f"the same by AlpacaEval's own CLI: {found['stock_command']}"), soft_wrap=True)
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
    console = results(as_json=as_json)
    print_table(console, title, ["judge", "agrees", "both decided", "kappa", "prefers longer"], rows)
    if found["people"]["alpha"] is not None:
        said = "people among themselves: alpha {alpha:.2f}, one with the others {human_agreement:.1%}"
        console.print(said.format(**found["people"]))
    if as_json:
        print(json.dumps(found))


@app.command()
def labels(
    pairs: Annotated[str, typer.Argument(help="Labelled pairs: a file or hub:ORG/NAME, as a recipe's preferences.")],
    model: Annotated[str, typer.Option(help="The model that is to be trained; it scores where a signal names none.")],
    signal: Annotated[
        list[str] | None, typer.Option(help="[NAME=]FILE or section in braces; self_reward by `attribute` without it.")
    ] = None,
    attribute: Annotated[list[str] | None, typer.Option(help="Of the self-reward: shipped, or a YAML file.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N pairs.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap over pairs.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap, and of the judge `random`.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare signals with labels before anything is trained on them, beside "longest" and "random"."""
    from prefloop.cli.cache import cache_path
    from prefloop.config import ModelSection, PreferencesSection
    from prefloop.evaluate.labels import against_labels
    from prefloop.inputs.preferences import PreferenceReader
    from prefloop.measure.referees import preflight, signals
    from prefloop.measure.subjects import opened
    from prefloop.signals.build import build
    from prefloop.ui.progress import Progress

    words = list(signal or [])
    attributes = attribute or ([] if words else ["harmless"])
    if attributes:
        words.insert(0, json.dumps({"type": "self_reward", "attributes": attributes}))
    sections = signals([], words)
    preflight(sections)
    section = PreferencesSection(path=pairs, limit=limit)
    rows = [row for part, _ in PreferenceReader(section).parts(2048) for row in part]
    with Progress() as progress, opened(cache_path(), progress) as models:
        built = {}
        for name, one in sections.items():
            made, needs = build(one)
            built[name] = (made, models.backends(needs, ModelSection(path=model)))
        found = against_labels(rows, built, resamples=resamples, seed=seed)
    shown = []
    for name, f in found["signals"].items():
        longer = "–" if f["prefers_longer"] is None else f"{f['prefers_longer']:.2f}"
        # A signal that calls all pairs a tie was right of none, and wrong of none.
        agrees = _share(f["accuracy"]) if f["n_decided"] or not f["n"] else "– (all ties)"
        shown.append([escape(name), agrees, str(f["n_null"]), longer])
    console = results(as_json=as_json)
    columns = ["signal", "agrees", "no verdict", "prefers longer"]
    print_table(console, f"{found['pairs']:,} labelled pairs", columns, shown)
    for line in _remarks(found, attributes):
        console.print(escape(line), soft_wrap=True)
    if as_json:
        print(json.dumps(found))


def _remarks(found: dict[str, Any], attributes: list[str]) -> list[str]:
    """What is to be known of the table of `labels`, one line each."""
    from prefloop.evaluate.agreement import LONGER_BY
    from prefloop.ui.summary import FEW

    said = []
    if len(attributes) > 1:
        said.append(f"self_reward: the mean over the notes of {len(attributes)} attributes, {', '.join(attributes)}")
    elif attributes:
        said.append(f"self_reward: by the notes of the attribute {attributes[0]} (others with --attribute)")
    if any(f["accuracy"] is not None and f["n_decided"] < f["n"] for f in found["signals"].values()):
        said.append("agrees: a pair that a signal calls a tie is no agreement")
    if any(f["prefers_longer"] is None for f in found["signals"].values()):
        said.append(
            f"prefers longer –: no pair that was decided has answers whose lengths differ by more than {LONGER_BY} "
            "characters, and others do not count there"
        )
    if found["pairs"] < FEW:
        said.append(f"only {found['pairs']:,} pairs: below {FEW} the intervals are too narrow, and say little")
    if found["left_out"]:
        said.append(f"{found['left_out']:,} rows have one answer and do not count")
    return said


def _share(figure: dict[str, float] | None) -> str:
    return "" if figure is None else "{value:.1%} \\[{ci_low:.1%}, {ci_high:.1%}]".format(**figure)
