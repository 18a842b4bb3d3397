"""The command line: one function a verb, nothing but parsing and printing.

Results go to stdout, progress, warnings and errors to stderr; with `--json` the result for machines stands last on
stdout, and the one for people goes to stderr. Exit codes: 0 done, 1 failed or interrupted, 2 bad usage, configuration
or data.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from prefloop import __version__
from prefloop.cli import cache as cli_cache
from prefloop.cli import compare as cli_compare
from prefloop.cli import cut as cli_cut
from prefloop.cli import evaluate as cli_evaluate
from prefloop.cli import publish as cli_publish
from prefloop.cli import rerank as cli_rerank
from prefloop.cli import source_bias as cli_source_bias
from prefloop.cli.cache import cache_path
from prefloop.errors import Interrupted, PrefloopError, UsageError
from prefloop.ui.console import results
from prefloop.ui.table import print_table as _table

app = typer.Typer(
    name="prefloop",
    help="The preference loop: sample, rate, pair, train, merge, measure, again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(cli_cache.cache, name="cache")
app.add_typer(cli_evaluate.app, name="evaluate")
app.add_typer(cli_publish.votes, name="votes")
app.add_typer(cli_rerank.app, name="rerank")
app.command()(cli_publish.export)
app.command()(cli_compare.compare)
app.command()(cli_cut.inspect_cut)
for _measure in (cli_compare.harness, cli_compare.safety, cli_compare.preference):
    cli_evaluate.app.command()(_measure)
cli_evaluate.app.command("source-bias")(cli_source_bias.source_bias)

RecipeArgument = Annotated[str, typer.Argument(help="A recipe: path of a YAML file, or a shipped name.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change, as a.b=c.", metavar="[A.B=C]...")]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory; runs/NAME without it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable result to stdout, last.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run and what is done; run nothing.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the recipe with every setting; run nothing.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live display.")]


def _version(value: bool) -> None:
    if value:
        print(f"prefloop {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _run(
    recipe_name: str,
    overrides: list[str] | None,
    out: Path | None,
    until: str | None,
    *,
    dry_run: bool,
    print_config: bool,
    as_json: bool,
    plain: bool,
) -> None:
    from prefloop.config import load_recipe
    from prefloop.loop.run import open_loop
    from prefloop.ui.progress import Progress

    recipe = load_recipe(recipe_name, overrides)
    if print_config:
        import yaml

        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
        return
    folder = out or Path("runs") / recipe.name
    if dry_run:
        _dry_run(recipe, folder, as_json)
        return
    with open_loop(recipe, folder, cache_path()) as loop, Progress(plain=plain, title=recipe.name) as progress:
        try:
            summary = loop.execute(progress, until)
        except (KeyboardInterrupt, Interrupted) as interruption:
            raise Interrupted(
                "stopped; everything finished so far is kept", fix="start the same command again to go on"
            ) from interruption
    _print_summary(summary, folder, as_json)
    if as_json:
        print(json.dumps(summary))


def _dry_run(recipe: Any, folder: Path, as_json: bool) -> None:
    from prefloop.config import Recipe
    from prefloop.loop.calls import judge_calls
    from prefloop.loop.run import survey

    planned = survey(recipe, folder, cache_path())
    asked = judge_calls(recipe, planned)
    who = "judge" if isinstance(recipe, Recipe) else "reader"
    rows = [
        {"number": p.stage.number, "name": p.stage.name, "state": p.state}
        | ({who: asked[p.stage.name].json()} if p.stage.name in asked else {})
        for p in planned
    ]
    _table(
        results(as_json=as_json),
        f"{recipe.name} → {folder}",
        ["", "stage", "state", *([who] if asked else [])],
        [[r["number"], r["name"], r["state"], *([str(asked.get(str(r["name"]), ""))] if asked else [])] for r in rows],
    )
    if as_json:
        print(json.dumps({"stages": rows}))


def _print_summary(summary: dict[str, Any], folder: Path, as_json: bool) -> None:
    from prefloop.ui.summary import headline

    console = results(as_json=as_json)
    for line in headline(summary):
        console.print(escape(line))
    for name in ("report", "model"):
        if name in summary:
            console.print(f"{name}: {escape(str(folder / summary[name]))}")


def _stage_verb(verb: str, text: str, group: typer.Typer = app, name: str | None = None) -> None:
    """Make the command that runs a recipe up to one of its boxes; it is called `name`, else as the box."""

    def command(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        out: Out = None,
        dry_run: DryRun = False,
        print_config: PrintConfig = False,
        as_json: Json = False,
        plain: Plain = False,
    ) -> None:
        until = None if verb == "run" else verb
        _run(
            recipe,
            overrides,
            out,
            until,
            dry_run=dry_run,
            print_config=print_config,
            as_json=as_json,
            plain=plain,
        )

    group.command(name or verb, help=text)(command)


_stage_verb("run", "Run a recipe; what is done already is skipped.")
_stage_verb("sample", "Run a recipe up to the sampled answers.")
_stage_verb("rate", "Run a recipe up to the scored answers.")
_stage_verb("pair", "Run a recipe up to the preference pairs.")
_stage_verb("train", "Run a recipe up to the trained adapter or weights.")
_stage_verb(
    "evaluate",
    "Run a recipe up to the measurement of the aligned model against the base.",
    cli_evaluate.app,
    "recipe",
)


@app.command()
def merge(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory; with --trained the model folder to write.")
    ] = None,
    trained: Annotated[
        Path | None,
        typer.Option(help="Merge this instead of training: a checkpoint (sharded too), an adapter, trained weights."),
    ] = None,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    as_json: Json = False,
    plain: Plain = False,
) -> None:
    """Run a recipe up to the merged model folder, or make a model folder of a checkpoint or adapter."""
    if trained is None:
        _run(recipe, overrides, out, "merge", dry_run=dry_run, print_config=print_config, as_json=as_json, plain=plain)
        return
    from prefloop.config import load_recipe
    from prefloop.engine.load import quiet
    from prefloop.train.run import merge as merge_trained

    if out is None:
        raise UsageError("where is the model folder to go?", fix="name it: --out FOLDER")
    settings = load_recipe(recipe, overrides)
    quiet()
    result = merge_trained(settings.model, trained, out, settings.merge)
    results(as_json=as_json).print(f"model: {escape(str(out))}")
    if as_json:
        print(json.dumps(result))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Json = False,
) -> None:
    """Draw a run's report again: one HTML file."""
    from prefloop.report.build import build_report

    path = build_report(_run_folder(run))
    results(as_json=as_json).print(f"report: {escape(str(path))}", soft_wrap=True)
    if as_json:
        print(json.dumps({"report": str(path)}))


@app.command()
def estimate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    pairs: Annotated[
        int | None, typer.Option(help="How many pairs will be trained on, if they are not made yet.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Which training, such as first-train; the loop's first without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the memory and the time of a recipe's training, before any weight is loaded."""
    from prefloop.config import load_answering
    from prefloop.estimate import estimate_recipe, table

    settings = load_answering(recipe, overrides)
    found = estimate_recipe(settings, out or Path("runs") / settings.name, cache_path(), pairs, stage)
    results(as_json=as_json).print(table(found))
    if as_json:
        print(json.dumps(found.as_dict()))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from prefloop.config import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="A run directory, or a folder of them.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Say how far a run is, or list the runs in a folder."""
    from prefloop.loop.status import run_status, runs_in

    console = results(as_json=as_json)
    if (run / "manifest.json").is_file():
        result: dict[str, Any] = run_status(run)
        _table(
            console,
            f"{result['name']} in {run}" + (f", process {result['process']} is on it" if result["process"] else ""),
            ["", "stage", "state", "kept", "rejected", "seconds"],
            [
                [s["number"], s["name"], s["state"], s.get("kept", ""), s.get("rejected", ""), s.get("seconds", "")]
                for s in result["stages"]
            ],
        )
    else:
        result = {"runs": runs_in(run)}
        if not result["runs"]:
            raise UsageError("no run directory is here", where=str(run), fix="start one: prefloop run quickstart")
        rows = [[r["path"], r["name"], r["state"]] for r in result["runs"]]
        _table(console, "runs", ["run", "recipe", "state"], rows)
    if as_json:
        print(json.dumps(result))


@app.command()
def validate(
    file: Annotated[str, typer.Argument(help="Rows to check: JSONL, JSON, CSV, Parquet, or hub:ORG/NAME.")],
    file_format: Annotated[str, typer.Option("--format", help="As `format` in a recipe's section.")] = "auto",
    kind: Annotated[
        str, typer.Option(help="auto, prompts, preferences, candidates, questions or rankings: what the rows are.")
    ] = "auto",
    column: Annotated[str, typer.Option(help="Column with the prompt.")] = "prompt",
    ignore: Annotated[list[str] | None, typer.Option(help="Column that is there and not to be read.")] = None,
    model: Annotated[str | None, typer.Option(help="Model whose context the prompts must fit.")] = None,
    candidates: Annotated[
        str | None, typer.Option(help="Of rankings: rows of a retrieval; documents must be their query's.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of questions: split of a hub data set.")] = "train",
    as_json: Json = False,
) -> None:
    """Check a file row by row: row, field, reason and fix for everything that is wrong."""
    from prefloop.inputs.validate import validate_file

    result = validate_file(
        file,
        file_format=file_format,
        kind=kind,
        column=column,
        ignore_columns=ignore or [],
        model=model,
        candidates=candidates,
        split=split,
    )
    results(as_json=as_json).print(result.table())
    if as_json:
        print(json.dumps(result.as_dict(), ensure_ascii=False))
    if not result.ok:
        raise typer.Exit(2)


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    stage: Annotated[str | None, typer.Option(help="Its rows are shown; pair (or preferences) without it.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Rows to show.")] = 5,
    rejects: Annotated[bool, typer.Option(help="Show the dropped rows and why.")] = False,
    margins: Annotated[
        Path | None,
        typer.Option(help="Folder for margins.html and .json: pairs by self-reward, token by token.", metavar="OUT"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read the rows of a stage: answers with their scores, pairs side by side, or what was dropped."""
    from prefloop.ui.rows import show_rows, stage_rows

    if margins is not None:
        from prefloop.report.margins import write_margins

        if rejects:
            raise UsageError("--margins shows pairs, not what was dropped", fix="give one of --margins and --rejects")
        found = write_margins(_run_folder(run), stage, limit, margins)
        results(as_json=as_json).print(f"{len(found['pairs'])} of {found['of']:,} pairs: {margins / 'margins.html'}")
        if as_json:
            print(json.dumps(found, ensure_ascii=False))
        return
    rows = list(stage_rows(_run_folder(run), stage, limit, rejects=rejects))
    show_rows(rows, results(as_json=as_json))
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Hub id, model folder, unmerged adapter, run directory or sandbox.")],
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(min=0)] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    seed: Annotated[int, typer.Option()] = 0,
    template: Annotated[str, typer.Option(help="auto, plain, alpaca, or a Jinja file.")] = "auto",
) -> None:
    """Talk with a model in the terminal."""
    from prefloop.ui.chat import converse

    converse(
        model,
        system=system,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        template=template,
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, devices, memory, disk, cache, and the embedded model."""
    from prefloop.doctor import examine

    checks = examine(cache_path())
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
    _table(
        results(as_json=as_json),
        "doctor",
        ["", "what", "found"],
        [[marks[c["state"]], escape(c["what"]), escape(c["found"])] for c in checks],
    )
    if as_json:
        print(json.dumps({"checks": checks}))
    if any(c["state"] == "fail" for c in checks):
        raise typer.Exit(1)


def _run_folder(path: Path) -> Path:
    if not (path / "manifest.json").is_file():
        raise UsageError(
            "this is no run directory: it has no manifest.json", where=str(path), fix="see prefloop status"
        )
    return path


def _terminate(*_: object) -> NoReturn:
    # SIGTERM stops a run as cleanly as Ctrl-C does.
    raise KeyboardInterrupt


def _verb(arguments: list[str]) -> list[str]:
    """`inspect cut` is `inspect-cut`: typer has no verb with an argument and verbs below it."""
    return ["inspect-cut", *arguments[2:]] if arguments[:2] == ["inspect", "cut"] else arguments


def main() -> None:
    """Entry point: run a command, turn a user's error into one message and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(_verb(sys.argv[1:]))
    except PrefloopError as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped", highlight=False)
        sys.exit(1)
