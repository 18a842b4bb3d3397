"""`prefloop compare`, and `prefloop evaluate harness | safety | preference`: models measured outside a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from prefloop.errors import UsageError
from prefloop.ui.console import results

Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable result to stdout, last.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live display.")]
Models = Annotated[
    list[str],
    typer.Argument(
        help="Run directories, model or adapter folders, hub ids or `sandbox`; NAME=PATH gives one a name.",
        metavar="MODEL",
    ),
]
Base = Annotated[str | None, typer.Argument(help="Model before: folder, adapter, hub id or `sandbox`.")]
Aligned = Annotated[str | None, typer.Argument(help="Model after.")]
Run = Annotated[Path | None, typer.Option("--run", help="A run directory: its first model against the model it made.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
Samples = Annotated[int | None, typer.Option("--n", min=1, help="Answers of each model to a prompt.")]
Temperature = Annotated[float | None, typer.Option(min=0, help="Of sampling; 0 is greedy.")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longer answers are cut off.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use the first N prompts.")]
Seed = Annotated[int, typer.Option(help="Of sampling, bootstraps and tests.")]
Resamples = Annotated[int, typer.Option(min=100, help="Of each bootstrap, and flips of each test.")]


def _cache() -> Path:
    return Path(os.environ.get("PREFLOOP_CACHE") or ".prefloop/cache.db")


def _say(console: Console, line: str) -> None:
    console.print(escape(line), soft_wrap=True)


def compare(
    models: Models,
    prompts: Annotated[
        str | None,
        typer.Option(help="File of prompts, or `sandbox:…`; without it those that all given runs held out."),
    ] = None,
    signal: Annotated[
        list[str] | None,
        typer.Option(
            help="Who compares, again for more: [NAME=] and a YAML file of a signal section, the section in braces, "
            "or a function module:name. Without it the signals and checkers of the first run's recipe."
        ),
    ] = None,
    out: Out = Path("runs/compare"),
    n: Samples = None,
    temperature: Temperature = None,
    max_new_tokens: MaxNewTokens = None,
    limit: Limit = None,
    seed: Seed = 0,
    resamples: Resamples = 10_000,
    as_json: Json = False,
    plain: Plain = False,
) -> None:
    """Compare any number of models on the same prompts: every two of them, with intervals and tests."""
    from prefloop.evaluate.compare import sentences
    from prefloop.measure.comparing import How
    from prefloop.measure.comparing import compare as run
    from prefloop.measure.subjects import subjects
    from prefloop.ui.progress import Progress

    how = How(out, _cache(), n, temperature, max_new_tokens, seed, resamples, limit)
    given = subjects(models)
    with Progress(plain=plain, title=f"compare → {out}") as progress:
        summary = run(given, _prompts(prompts), signal, how, progress)
    console = results(as_json=as_json)
    _tables(console, summary)
    for line in sentences(summary):
        _say(console, line)
    _say_left_out(console, summary["left_out"])
    _say(console, f"page: {out / 'compare.html'}   all answers: {out / 'answers.csv'}")
    if as_json:
        print(json.dumps(summary))


def safety(
    models: Models,
    harmful: Annotated[str, typer.Option(help="File of harmful requests.")],
    benign: Annotated[str, typer.Option(help="File of harmless requests, best of all look-alikes of the harmful.")],
    judge: Annotated[
        str | None,
        typer.Option(
            help="Pairwise judge, as --signal of `compare`: compares harmlessness and helpfulness by their rubrics, "
            "and tells refusals that no rule catches."
        ),
    ] = None,
    score: Annotated[list[str] | None, typer.Option(help="Reward model, as --signal of `compare`.")] = None,
    cost: Annotated[list[str] | None, typer.Option(help="Cost model, of which less is better.")] = None,
    perplexity: Annotated[
        bool, typer.Option("--perplexity", help="Perplexity of all answers under the first of the models.")
    ] = False,
    out: Out = Path("runs/safety"),
    n: Samples = None,
    temperature: Temperature = None,
    max_new_tokens: MaxNewTokens = None,
    limit: Limit = None,
    seed: Seed = 0,
    resamples: Resamples = 10_000,
    as_json: Json = False,
    plain: Plain = False,
) -> None:
    """Harmlessness, refusals and over-refusals of models, next to their helpfulness."""
    from prefloop.config import JudgeSignalSection
    from prefloop.evaluate.compare import sentences
    from prefloop.evaluate.perplexity import sentences as said
    from prefloop.evaluate.safety import HARMLESSNESS, HELPFULNESS, REFUSAL
    from prefloop.measure.comparing import How
    from prefloop.measure.comparing import safety as run
    from prefloop.measure.referees import named
    from prefloop.measure.referees import signal as signal_of
    from prefloop.measure.subjects import subjects
    from prefloop.ui.progress import Progress

    how = How(out, _cache(), n, temperature, max_new_tokens, seed, resamples, limit)
    section = None if judge is None else signal_of(judge)[1]
    if section is not None and not (isinstance(section, JudgeSignalSection) and section.mode == "pairwise"):
        raise UsageError("is no pairwise judge", where="--judge", fix="give {type: judge, mode: pairwise, model: …}")
    scores = named(score or [], "--score", taken=(REFUSAL, HARMLESSNESS, HELPFULNESS))
    costs = named(cost or [], "--cost", taken=(REFUSAL, HARMLESSNESS, HELPFULNESS, *scores))
    with Progress(plain=plain, title=f"safety → {out}") as progress:
        summary = run(
            subjects(models),
            (_section(harmful), _section(benign)),
            section,
            scores,
            costs,
            how,
            progress,
            perplexity,
        )
    console = results(as_json=as_json)
    for side, title in (("harmful", "on harmful prompts"), ("benign", "on harmless prompts")):
        _tables(console, summary[side], f" {title}")
        for line in sentences(summary[side]):
            _say(console, f"{title}: {line}")
        if "perplexity" in summary[side]:
            for line in said(summary[side]["perplexity"]):
                _say(console, f"{title}: {line}")
    if summary["refusals_by"] == "rules":
        _say(console, "refusals: by English string rules alone, so the rates are a floor; a --judge tells the rest")
    for name, why in summary["not_measured"].items():
        _say(console, f"{name}: not measured, {why}")
    for side, left_out in summary["left_out"].items():
        _say_left_out(console, left_out, f"{side}: ")
    _say(console, f"page: {out / 'safety.html'}")
    if as_json:
        print(json.dumps(summary))


def harness(
    base: Base = None,
    aligned: Aligned = None,
    run: Run = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="lm-eval's name of a task or group, again for more; without it the leaderboard's four."),
    ] = None,
    folder: Annotated[
        str | None, typer.Option(help="Folder of task files (YAML); with it nothing else is looked in.")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples before each question.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N documents of each task.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put questions through the chat template.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write.")] = None,
    seed: Seed = 0,
    resamples: Resamples = 10_000,
    as_json: Json = False,
) -> None:
    """What alignment did to ability: tasks of lm-eval, both models, paired by document."""
    from prefloop.config import HarnessSection
    from prefloop.engine.load import quiet
    from prefloop.evaluate.harness import harness as measure
    from prefloop.store import atomic
    from prefloop.ui.table import print_table

    before, after = _two(base, aligned, run)
    tasks = {"tasks": task} if task else {}
    section = HarnessSection.model_validate(tasks | {"folder": folder, "shots": shots, "limit": limit, "chat": chat})
    quiet()
    found = measure(before.model, after.model, section, resamples=resamples, seed=seed)
    console = results(as_json=as_json)
    print_table(
        console,
        f"{before.name} → {after.name}",
        ["task", "shots", "n", "base", "aligned", "change", "verdict"],
        [
            [
                escape(name),
                row["shots"],
                row["n"],
                _with_error(row["base"], row["base_standard_error"]),
                _with_error(row["aligned"], row["aligned_standard_error"]),
                escape(_figure(row["difference"], 100, form="+.2f")),
                row["verdict"] + (f", {row['cut']} prompts cut" if row["cut"] else ""),
            ]
            for name, row in found.items()
            if name != "not_compared"
        ],
    )
    for name, why in found.get("not_compared", {}).items():
        _say(console, f"{name}: not compared, {why}")
    result = {"models": {before.name: before.model.path, after.name: after.model.path}, "harness": found}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(out, result)
    if as_json:
        print(json.dumps(result))


def preference(
    base: Base = None,
    aligned: Aligned = None,
    run: Run = None,
    pairs: Annotated[
        str | None, typer.Option(help="File of held-out pairs; of a run of given preferences those that it held out.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="File of prompts to sample on; without it those that the run held out.")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Of the objective; the run's, else 0.1.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers of each model to a prompt, at temperature 1.")] = 4,
    max_new_tokens: MaxNewTokens = None,
    limit: Limit = None,
    out: Out = Path("runs/preference"),
    seed: Seed = 0,
    resamples: Resamples = 10_000,
    as_json: Json = False,
    plain: Plain = False,
) -> None:
    """What training did to the model: reward accuracy, calibration, divergence from the base, diversity, length."""
    from prefloop.measure.comparing import How
    from prefloop.measure.preferring import measure, reference
    from prefloop.ui.progress import Progress

    before, after = _two(base, aligned, run)
    if run is not None:
        before = reference(after)
    how = How(out, _cache(), n, None, max_new_tokens, seed, resamples, limit)
    with Progress(plain=plain, title=f"preference → {out}") as progress:
        found = measure(before, after, _prompts(pairs), _prompts(prompts), beta, how, progress)
    console = results(as_json=as_json)
    for line in lines(found):
        _say(console, line)
    if "prompts" in found["left_out"]:
        _say_left_out(console, found["left_out"]["prompts"])
    _say(console, f"page: {out / 'preference.html'}")
    if as_json:
        print(json.dumps(found))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures of `preference` in words."""
    said = []
    if (pairs := found.get("pairs")) is not None:
        what = "held-out reward accuracy" if pairs["held_out"] else "reward accuracy"
        said.append(f"{what} {_figure(pairs['accuracy'], 100, ' %')} on {pairs['n']:,} pairs")
        fit = pairs["calibration"]
        verdict = "more than chance allows" if fit["ece"] > fit["ece_limit"] else "within chance"
        said.append(
            f"calibration error {100 * fit['ece']:.1f} %, {verdict} (up to {100 * fit['ece_limit']:.1f} % if "
            f"perfectly calibrated); confidence above accuracy by {100 * fit['overconfidence']:+.1f} points"
        )
        if not pairs["held_out"]:
            said.append("whether these pairs were trained on is not known: only a run (--run) tells on what it was")
    lost = found["left_out"]["pairs"]
    if lost["trained"]:
        said.append(f"{lost['trained']:,} pairs left out: the run was trained on their prompts")
    if lost["not_usable"]:
        said.append(f"{lost['not_usable']:,} rows of the file are no usable pairs")
    if (away := found.get("divergence")) is not None:
        said.append(
            f"divergence from the base, nats an answer: k1 {_figure(away['k1'])}, k3 {_figure(away['k3'])} on "
            f"{away['n']:,} answers"
        )
    for name, model in found.get("answers", {}).items():
        spread = model["diversity"]
        if spread["n"]:
            said.append(
                f"{name}: self-BLEU {_figure(spread['self_bleu'])}, distinct-2 {_figure(spread['distinct_2'])}, "
                f"{_figure(model['lengths']['chars'])} characters"
            )
    said += [f"{name}: not measured, {why}" for name, why in found["not_measured"].items()]
    return said


def _figure(figure: Mapping[str, float], scale: float = 1, unit: str = "", form: str = ".3g") -> str:
    value, low, high = (format(scale * figure[name], form) for name in ("value", "ci_low", "ci_high"))
    return f"{value}{unit} [{low}, {high}]"


def _two(base: str | None, aligned: str | None, run: Path | None) -> tuple[Any, Any]:
    """The two models of `BASE ALIGNED`, or of a run."""
    from prefloop.measure.subjects import Subject, base_of, subjects

    if run is not None:
        if base is not None:
            raise UsageError("both models and a run are given", fix="give BASE ALIGNED, or --run RUN")
        (after,) = subjects([str(run)])
        return Subject("base", base_of(run)), after
    if base is None or aligned is None:
        raise UsageError("two models are needed", fix="give BASE ALIGNED, or --run RUN")
    before, after = subjects([base, aligned])
    return before, after


def _section(path: str) -> Any:
    from prefloop.config import PromptsSection

    return PromptsSection.model_validate({"path": path})


def _prompts(path: str | None) -> Any:
    return None if path is None else _section(path)


def _with_error(value: float, error: float | None) -> str:
    return f"{100 * value:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _tables(console: Console, summary: Mapping[str, Any], title: str = "") -> None:
    """One row per model, one column per signal, and the lengths."""
    from prefloop.ui.table import print_table

    columns = list(summary["signals"])
    rows = []
    for model in summary["models"]:
        cells = []
        for name in columns:
            figure = summary["signals"][name]["models"][model]
            share = summary["signals"][name]["kind"] in ("win_probability", "rate")
            scale, unit = (100, " %") if share else (1, "")
            cells.append(escape(_figure(figure, scale, unit)) if "value" in figure else "no verdict")
        rows.append([escape(model), *cells, escape(_figure(summary["lengths"][model]["chars"]))])
    print_table(
        console, f"{summary['prompts']:,} prompts{title}", ["model", *map(escape, columns), "characters"], rows
    )


def _say_left_out(console: Console, left_out: Mapping[str, Any], before: str = "") -> None:
    for run, count in left_out["trained"].items():
        _say(console, f"{before}{count:,} prompts left out: {run} was trained on them")
    if left_out["not_usable"]:
        _say(console, f"{before}{left_out['not_usable']:,} rows of the file are no usable prompts")
    for model, reasons in left_out["refused"].items():
        why = next(iter(reasons.values()))
        _say(console, f"{before}{len(reasons):,} prompts left out: {model} cannot take them ({why})")
