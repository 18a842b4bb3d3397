"""`prefloop compare` and `prefloop evaluate safety`: sample all models alike, have signals compare, write it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.config import JudgeSignalSection, PromptsSection, SampleSection, SignalSection
from prefloop.errors import UsageError
from prefloop.measure.referees import checked, comparers, costs, own_judges, preflight, signals
from prefloop.measure.subjects import Models, Subject, answers, decoding, opened, prompts
from prefloop.records import CallRow, CandidatesRow, PromptRow
from prefloop.store import atomic

if TYPE_CHECKING:
    from prefloop.evaluate.compare import Compared
    from prefloop.ui.progress import Progress


@dataclass(frozen=True)
class How:
    """Settings of a comparison.

    Attributes:
        out: folder to write to.
        cache: the project's cache.
        n, temperature, max_new_tokens: decoding; None: as the first run was measured.
        seed: of sampling, bootstraps and tests.
        resamples: of each bootstrap, and flips of each test.
        limit: use the first N prompts.
    """

    out: Path
    cache: Path
    n: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    resamples: int = 10_000
    limit: int | None = None


def compare(
    given: Sequence[Subject],
    file: PromptsSection | None,
    signal_words: Sequence[str] | None,
    how: How,
    progress: Progress,
) -> dict[str, Any]:
    """Compare models on the same prompts and write compare.json, answers.csv, calls.parquet and compare.html.

    Returns:
        The summary: that of `evaluate.compare.compare_answers`, with how it was made; `spent` is what this command
        took of servers, name -> prompt_tokens, generated_tokens and, where they have a price, cost.

    Raises:
        UsageError: models, prompts or signals cannot be used.
        PrefloopError: a judge gave too few verdicts, or a server's limit of cost is reached.
    """
    from prefloop.evaluate.compare import compare_answers, side_by_side
    from prefloop.evaluate.self_preference import self_preference

    who = signals(given, signal_words)
    preflight(who)
    asked = prompts(given, file, how.limit)
    sampling = decoding(given, n=how.n, temperature=how.temperature, max_new_tokens=how.max_new_tokens)
    with opened(how.cache, progress) as models:
        rows, refused = _answers(models, given, asked.rows, sampling, how.seed, progress, 0, len(given) + 1)
        progress.stage("compare", len(given) + 1, len(given) + 1)
        compared = compare_answers(
            rows,
            comparers(models, given, who, how.seed),
            lower_is_better=costs(given, signal_words),
            resamples=how.resamples,
            seed=how.seed,
            on_progress=_shown(progress, "comparisons"),
            on_judged=checked(who, progress),
        )
        own = own_judges(given, who, models.cache)
    for name, themselves in own.items():
        found = {
            m: self_preference(compared.judged[name], compared.rows, m, how.resamples, how.seed) for m in themselves
        }
        compared.summary["signals"][name]["self_preference"] = found
        for model, figure in found.items():
            if figure is not None:
                said = f"its own answers win {figure['value']:.0%} of {figure['n']:,} prompts"
                progress.note(f"{name}: the judge is {model}, {said}")
    summary = compared.summary | {
        "paths": {subject.name: subject.model.path for subject in given},
        "sample": sampling.model_dump(mode="json"),
        "seed": how.seed,
        "left_out": {"trained": asked.trained, "not_usable": len(asked.rejects), "refused": refused},
        "spent": models.spent,
    }
    how.out.mkdir(parents=True, exist_ok=True)
    atomic.write_json(how.out / "compare.json", summary)
    atomic.write_text(how.out / "answers.csv", side_by_side(compared))
    _write_calls(how.out / "calls.parquet", [call for found in compared.judged.values() for call in found.calls])
    _page(how.out / "compare.html", "Models compared", [("", compared)], summary["left_out"])
    return summary


def safety(
    given: Sequence[Subject],
    files: tuple[PromptsSection, PromptsSection],
    judge: JudgeSignalSection | None,
    scores: Mapping[str, SignalSection],
    costs: Mapping[str, SignalSection],
    how: How,
    progress: Progress,
    likely: bool = False,
) -> dict[str, Any]:
    """Compare models' answers to harmful and to harmless prompts and write safety.json, answers-….csv, safety.html.

    Args:
        files: harmful prompts, harmless prompts.
        judge: a pairwise judge: it compares harmlessness and helpfulness by their rubrics, and tells refusals that no
            rule catches.
        scores, costs: reward and cost models by name.
        likely: measure the perplexity of all answers under the first model.

    Raises:
        UsageError: models, prompts or signals cannot be used, or two signals have one name.
        PrefloopError: a judge gave too few verdicts, or a server's limit of cost is reached.
    """
    from prefloop.evaluate.compare import side_by_side
    from prefloop.evaluate.safety import HARMLESSNESS, HELPFULNESS
    from prefloop.evaluate.safety import safety as measure

    by_rubric = (
        {} if judge is None else {n: judge.model_copy(update={"rubric": n}) for n in (HARMLESSNESS, HELPFULNESS)}
    )
    who = {**by_rubric, **scores, **costs}
    preflight(who)
    sampling = decoding(given, n=how.n, temperature=how.temperature, max_new_tokens=how.max_new_tokens)
    asked = [prompts(given, file, how.limit) for file in files]
    steps = 2 * len(given) + 1
    with opened(how.cache, progress) as models:
        sides = [
            _answers(models, given, side.rows, sampling, how.seed, progress, i * len(given), steps)
            for i, side in enumerate(asked)
        ]
        progress.stage("compare", steps, steps)
        by = {c.name: c for c in comparers(models, given, by_rubric, how.seed)}
        found = measure(
            sides[0][0],
            sides[1][0],
            harmlessness=by.get(HARMLESSNESS),
            helpfulness=by.get(HELPFULNESS),
            scores=comparers(models, given, scores, how.seed),
            costs=comparers(models, given, costs, how.seed),
            judge=judge,
            backends=by[HARMLESSNESS].backends if by else None,
            language=models.get(given[0].model) if likely else None,
            resamples=how.resamples,
            seed=how.seed,
            on_progress=_shown(progress, "comparisons"),
            on_judged=checked(who, progress),
        )
    left_out = {
        name: {"trained": side.trained, "not_usable": len(side.rejects), "refused": refused}
        for name, side, (_, refused) in zip(("harmful", "benign"), asked, sides, strict=True)
    }
    summary = found.summary | {
        "paths": {subject.name: subject.model.path for subject in given},
        "sample": sampling.model_dump(mode="json"),
        "seed": how.seed,
        "left_out": left_out,
        "spent": models.spent,
    }
    how.out.mkdir(parents=True, exist_ok=True)
    atomic.write_json(how.out / "safety.json", summary)
    both = {"harmful": found.harmful, "benign": found.benign}
    for name, compared in both.items():
        atomic.write_text(how.out / f"answers-{name}.csv", side_by_side(compared))
    calls = [call for compared in both.values() for judged in compared.judged.values() for call in judged.calls]
    _write_calls(how.out / "calls.parquet", calls)
    titled = [("On harmful prompts", found.harmful), ("On harmless prompts", found.benign)]
    _page(
        how.out / "safety.html",
        "Safety beside helpfulness",
        titled,
        {**left_out["harmful"], **summary["not_measured"]},
    )
    return summary


def _answers(
    models: Models,
    given: Sequence[Subject],
    rows: Sequence[PromptRow],
    sampling: SampleSection,
    seed: int,
    progress: Progress,
    before: int,
    steps: int,
) -> tuple[dict[str, list[CandidatesRow]], dict[str, dict[str, str]]]:
    """Every model's answers, and model -> prompt -> why it could not take it; such a prompt is compared for none."""
    found: dict[str, list[CandidatesRow]] = {}
    refused: dict[str, dict[str, str]] = {}
    for number, subject in enumerate(given, 1):
        progress.stage(subject.name, before + number, steps)
        progress.total(len(rows) * sampling.n, "answers")
        models.on_batch = progress.at
        found[subject.name], reasons = answers(models, subject, rows, sampling, seed)
        models.on_batch = lambda done: None
        progress.at(len(rows) * sampling.n)
        if reasons:
            refused[subject.name] = reasons
    lost = {name for reasons in refused.values() for name in reasons}
    if len(lost) == len(rows):
        model, reasons = next(iter(refused.items()))
        raise UsageError(
            f"no prompt is left that every model can take; {model}: {next(iter(reasons.values()))}",
            where="prompts",
            fix="shorten the prompts, or leave that model out",
        )
    return {name: [r for r in side if r["id"] not in lost] for name, side in found.items()}, refused


def _shown(progress: Progress, unit: str) -> Any:
    def show(done: int, total: int) -> None:
        progress.total(total, unit)
        progress.at(done)

    return show


def _write_calls(path: Path, calls: list[CallRow]) -> None:
    from prefloop.store.rows import to_table

    atomic.write_parquet(path, to_table("calls", calls, where=str(path)))


def _page(path: Path, title: str, parts: Sequence[tuple[str, Compared]], left_out: Mapping[str, Any]) -> None:
    from prefloop.report.comparison import render_comparison

    atomic.write_text(path, render_comparison(title, parts, left_out))
