"""The stages that say which model is better: the measurement of a round, and the choice of the run's model."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.config import ModelSection, RetrieverSection, SourceBiasSection
from prefloop.errors import PrefloopError
from prefloop.loop.reading import rows_of
from prefloop.loop.rewriting import Rewritten, rewrite_to_measure
from prefloop.loop.rounds import chosen
from prefloop.loop.sampling import sample
from prefloop.records import CandidatesRow, PromptRow, RejectRow, message_text
from prefloop.store import atomic
from prefloop.store.stagedir import StageDir

if TYPE_CHECKING:
    from prefloop.evaluate.several import Comparer, Measured
    from prefloop.loop.bench import Bench
    from prefloop.loop.plan import Stage

ANSWERS = "answers.csv"
SCORE_GAPS = "score_gaps.json"
"""Retriever -> model -> score of the human text minus that of the model's rewrite, of each relevant pair."""


def run_evaluate(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """The round's models against the loop's first model on the held-out prompts, decoded alike."""
    from prefloop.evaluate.several import Comparer, measure
    from prefloop.loop.plan import evaluation_sample, evaluation_signals
    from prefloop.signals.base import Need
    from prefloop.signals.build import build, check, check_prompts

    recipe, prompts = bench.recipe, list(rows_of(bench, "heldout"))
    # A rating judge that is taken over may know the prompts that were trained on and no others.
    for judge in (recipe.evaluate.judge, *recipe.evaluate.also):
        check_prompts(judge, prompts)
    section = evaluation_sample(recipe)
    models = _models(bench, stage)
    each = len(prompts) * section.n
    folder.begin(fingerprint)
    bench.progress.total((1 + len(models)) * each, "answers")
    answers: dict[str, list[CandidatesRow]] = {}
    rejects: dict[str, RejectRow] = {}
    rewrites: dict[str, Rewritten] = {}
    for number, (name, model) in enumerate({"": bench.loop.base, **models}.items()):
        bench.on_batch = lambda asked, number=number: bench.progress.at(number * each + asked)  # type: ignore[misc]
        if section.rewrite is None:
            answers[name], refused, _ = sample(bench.backend(model), prompts, section, recipe.seed, stage.name)
        else:
            written = rewrite_to_measure(bench.backend(model), prompts, section, recipe.seed, stage.name)
            answers[name], refused, rewrites[name] = written.rows, written.rejects, written
        rejects |= {r["id"]: r for r in refused}
    bench.on_batch = lambda asked: None

    def compared(done: int, total: int) -> None:
        bench.progress.total(total, "comparisons")
        bench.progress.at(done)

    # A prompt that one of the models could not take is compared for none.
    kept = {name: [r for r in rows if r["id"] not in rejects] for name, rows in answers.items()}
    if rewrites:
        # Its rows are known by the requests, and the rejects by the passages.
        asked_all = set.intersection(*({row["id"] for row in rows} for rows in kept.values()))
        kept = {name: [row for row in rows if row["id"] in asked_all] for name, rows in kept.items()}
    base = kept.pop("")
    if not base:
        reason = next(iter(rejects.values()))["reason"]
        raise PrefloopError(
            f"none of the {len(prompts)} held-out prompts could be taken by all models: {reason}",
            where=stage.name,
            fix="give shorter prompts to measure on (evaluate.prompts), or a model of a longer context",
        )
    sections = evaluation_signals(recipe)
    comparers: list[Comparer] = []
    for signal, needs in (build(section, recipe.seed) for section in sections):
        same = sum(comparer.signal.name == signal.name for comparer in comparers)
        name = f"{signal.name} ({same + 1})" if same else signal.name
        comparers.append(Comparer(name, signal, bench.backends(needs)))
    unmerged = {name: kept.pop(name) for name in list(kept) if name.endswith(UNMERGED)}
    # Its probabilities are of the very tokens that were sampled.
    language = bench.backends({"": Need(bench.loop.base)})[""] if recipe.evaluate.perplexity else None
    measured = measure(
        base, kept, recipe.evaluate, comparers, language=language, seed=recipe.seed, on_progress=compared
    )
    for name, rows in unmerged.items():
        one = measure(base, {name: rows}, recipe.evaluate, comparers[:1], seed=recipe.seed, on_progress=compared)
        merged = kept[name.removesuffix(UNMERGED)]
        said = {"identical": _identical(rows, merged), **one.summary}
        measured.summary.setdefault("unmerged", {})[name.removesuffix(UNMERGED) or "adapter"] = said
        measured.comparisons |= one.comparisons
    if recipe.branches:
        # Of a single branch nothing is said to be better than the others, but it is what the round hands on.
        measured.summary.setdefault("winner", next(iter(kept)))
    _score_judged(bench, models, base, comparers, measured)
    _note_self_preference(bench, stage, measured)
    gaps: dict[str, Any] = {}
    if recipe.source_bias is not None:
        gaps = _measure_source_bias(bench, recipe.source_bias, prompts, rewrites, measured)
    winner = measured.comparisons[measured.summary.get("winner") or next(iter(kept))]
    for comparisons in measured.comparisons.values():
        for signal, comparison in zip(sections, comparisons.values(), strict=False):
            check(signal, comparison.counts)
    for signal, comparison in zip(sections, winner.values(), strict=False):
        bench.say(signal, comparison.counts)
    first = next(iter(winner.values()))
    calls = [call for comparisons in measured.comparisons.values() for c in comparisons.values() for call in c.calls]
    folder.write_part(0, first.rows, "scored", rejects=list(rejects.values()), tables={"calls": ("calls", calls)})
    atomic.write_text(folder.path / ANSWERS, _side_by_side(measured))
    if gaps:
        atomic.write_json(folder.path / SCORE_GAPS, gaps)
    folder.finish(
        fingerprint,
        rows_in=(len(prompts) - len(rejects)) * section.n + len(rejects),
        extra={"evaluate": measured.summary, "counts": first.counts},
    )


def _score_judged(
    bench: Bench,
    models: dict[str, ModelSection],
    base: list[CandidatesRow],
    comparers: list[Comparer],
    measured: Measured,
) -> None:
    """Where CUT trained: how probable held-out judged answers are to the models; see `evaluate.judged`.

    The answers are those of the preferences' held-out rows, or the base's own with what the measuring critic says.
    """
    from prefloop.evaluate.judged import chosen, compare, score
    from prefloop.loop.plan import contrasted
    from prefloop.pairs.judgments import judgment_rows
    from prefloop.signals.driver import rate
    from prefloop.train.judged import judged_prompt

    recipe = bench.recipe
    way = contrasted(recipe)
    form = None if way is None else judged_prompt(way.train.objective)
    if way is None or form is None:
        return
    rows: list[Any] = []
    if recipe.preferences is not None:
        rows = [row for row in rows_of(bench, "preferences") if row["prompt_id"] in bench.kept_out]
    elif comparers and comparers[0].signal.identity.get("type") == "critic":
        rows = judgment_rows(rate(comparers[0].signal, base, comparers[0].backends).rows, "critic").rows
    rows = chosen(rows)
    if not rows:
        return
    threshold = way.train.objective.threshold  # type: ignore[union-attr]
    merged = [name for name in measured.comparisons if not name.endswith(UNMERGED)]
    bench.progress.total(len(rows) * (1 + len(merged)), "judged answers")
    first = score(rows, bench.backend(bench.loop.base), form)
    for done, name in enumerate(merged, 1):
        bench.progress.at(done * len(rows))
        own = score(rows, bench.backend(models[name]), form)
        found = compare(rows, first, own, threshold, resamples=recipe.evaluate.bootstrap, seed=recipe.seed)
        measured.summary.get("branches", {}).get(name, {})["judgments"] = found
        if name == measured.summary.get("winner", name):
            measured.summary["judgments"] = found


def _measure_source_bias(
    bench: Bench,
    section: SourceBiasSection,
    prompts: list[PromptRow],
    rewrites: Mapping[str, Rewritten],
    measured: Measured,
) -> dict[str, Any]:
    """Whether retrievers prefer the aligned model's rewrites less than the base's; into the summary.

    Returns:
        The gaps of scores (`SCORE_GAPS`).
    """
    from prefloop.evaluate.source_task import Settings
    from prefloop.evaluate.writers import BASE, GAPS, lines, measure_writers
    from prefloop.retrieve.corpus import read_collection
    from prefloop.retrieve.pairs import open_pairs
    from prefloop.retrieve.retriever import open_retriever

    recipe = bench.recipe
    collection = read_collection(str(section.judgments), section.split or "test", [], judged=True)
    unread = set().union(*(found.unread for found in rewrites.values())) if section.unread == "drop" else set()
    human = {str(r["source_id"]): r["prompt"][-1]["content"] for r in prompts if r["source_id"] not in unread}
    texts = {
        name or BASE: {c["rewrite"]["document"]: c["text"] for row in found.rows for c in row["completions"][:1]}
        for name, found in rewrites.items()
        if not name.endswith(UNMERGED)
    }
    bench.release()  # retrievers take the memory that writers had

    def stepped(label: str, done: int, total: int) -> None:
        bench.progress.total(total, "searches")
        bench.progress.at(done)

    opened = {name: open_retriever(one, bench.cache) for name, one in named(section.retrievers or ()).items()}
    near = None if section.similarity is None else open_pairs(section.similarity, bench.cache, likeness=True)
    try:
        bias, said = measure_writers(
            human,
            texts,
            collection.queries,
            collection.qrels,
            opened,
            Settings(no_hit=section.no_hit, ties="neutral", resamples=recipe.evaluate.bootstrap, seed=recipe.seed),
            similarity=None if near is None else near.scores,
            on_step=stepped,
        )
    finally:
        for retriever in opened.values():
            retriever.close()
        if near is not None:
            near.close()
    for name, found in rewrites.items():
        if (name or BASE) in said:
            faults = {k.removeprefix("faults/"): int(n) for k, n in found.counts.items() if k.startswith("faults/")}
            said[name or BASE] |= {"faults": faults, "unread": len(found.unread), "unread_policy": section.unread}
    measured.summary |= {"source_bias": bias, "source_texts": said}
    for line in lines(bias, said):
        bench.progress.note(line)
    return {name: entry.pop(GAPS) for name, entry in bias.items()}


def named(retrievers: Sequence[RetrieverSection]) -> dict[str, RetrieverSection]:
    """Retrievers by their names in results; of several with one name the second is NAME (2)."""
    seen: Counter[str] = Counter()
    found = {}
    for retriever in retrievers:
        name = label(retriever)
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} ({seen[name]})"] = retriever
    return found


def label(retriever: RetrieverSection) -> str:
    """A retriever's name in results: of a folder its last part, as its place is this machine's business."""
    return Path(retriever.path).name if Path(retriever.path).is_dir() else retriever.name


def _note_self_preference(bench: Bench, stage: Stage, measured: Measured) -> None:
    """Where the first model is also the judge: how often it finds its own answers better."""
    from prefloop.evaluate.self_preference import of_the_base

    weights = [_weights(model) for judge in stage.settings["judges"][:1] for model in judge["models"].values()]
    is_judge = bool(stage.settings["judges"]) and stage.settings["judges"][0]["signal"].get("type") == "judge"
    if not is_judge or weights != [_weights(stage.settings["base"])]:
        return
    for said in (measured.summary, *measured.summary.get("branches", {}).values()):
        if "win_rate" in said:
            said["win_rate"]["self_preference"] = of_the_base(said["win_rate"])
    own = measured.summary["win_rate"]["self_preference"]
    bench.progress.note(
        f"the judge is the first model: its own answers win {own['value']:.0%} of {own['n']:,} prompts"
    )


def _weights(model: Any) -> Any:
    """What a model of the plan's settings is, whatever its precision and template."""
    return model if not isinstance(model, dict) else model.get("weights") or [model["served"], model["revision"]]


UNMERGED = "+adapter"
"""Ends the name of a model that is a base with its adapter, not yet merged."""


def _models(bench: Bench, stage: Stage) -> dict[str, ModelSection]:
    """What the round made, by branch; where it is asked for, the adapters too."""
    from prefloop.loop.plan import stage_name

    recipe, loop = bench.recipe, bench.loop
    models = {branch or "aligned": loop.merged(stage.round, branch) for branch in recipe.ways}
    if recipe.evaluate.unmerged:
        for branch, way in recipe.ways.items():
            if way.train.lora is not None:
                trained = loop.folder(stage_name("train", stage.round, branch)).path / "adapter"
                section = loop.base.model_copy(update={"path": str(trained), "revision": None})
                models[(branch or "aligned") + UNMERGED] = section
    return models


def _identical(rows: list[CandidatesRow], others: list[CandidatesRow]) -> float:
    """Share of answers that two models gave alike, 0..1."""
    texts = [[c["text"] for row in side for c in row["completions"]] for side in (rows, others)]
    same = [bool(a == b) for a, b in zip(*texts, strict=True)]
    return sum(same) / len(same)


def _side_by_side(measured: Measured) -> str:
    """Every held-out prompt with all models' answers and what each signal says of them, as CSV.

    A signal's column holds the probability that the model's answer is better than the base's; behind it a column for
    each criterion, or judge of a panel, with its own score. Empty without a verdict.
    """
    from prefloop.evaluate.sheet import csv_text

    comparisons = {(model, signal): c for model, by in measured.comparisons.items() for signal, c in by.items()}
    columns: dict[str, list[float | None]] = {}
    for (model, signal), found in comparisons.items():
        if signal:
            columns[f"{model}: better than base by {signal}"] = found.preferences
        for name in dict.fromkeys(part["name"] for row in found.rows for part in row.get("parts") or ()):
            said = ({part["name"]: part["scores"][1] for part in row.get("parts") or ()} for row in found.rows)
            columns[f"{model}: {name} by {signal}"] = [parts.get(name) for parts in said]
    rows: list[list[str | float | None]] = []
    first = [next(iter(by.values())) for by in measured.comparisons.values()]
    for number, row in enumerate(first[0].rows):
        prompt = "\n\n".join(message_text(message) for message in row["prompt"])
        answers = [c.rows[number]["completions"][1]["text"] for c in first]
        scores = [column[number] for column in columns.values()]
        rows.append([row["id"], prompt, row["completions"][0]["text"], *answers, *scores])
    return csv_text(["id", "prompt", "base", *measured.comparisons, *columns], rows)


def run_ability(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """What alignment cost in ability, by lm-eval: every model of the round against the recipe's first."""
    from prefloop.evaluate.harness import compare_ability
    from prefloop.evaluate.harness import measure as ability

    recipe = bench.recipe
    section = recipe.evaluate.harness
    assert section is not None
    bench.quiet()
    bench.release()
    folder.begin(fingerprint)
    models = {name: model for name, model in _models(bench, stage).items() if not name.endswith(UNMERGED)}
    bench.progress.total(1 + len(models), "models")
    base = ability(bench.loop.base, section)
    found = {}
    for done, (name, model) in enumerate(models.items(), 1):
        bench.progress.at(done)
        found[name] = compare_ability(
            base, ability(model, section), resamples=recipe.evaluate.bootstrap, seed=recipe.seed
        )
    atomic.write_json(folder.path / "ability.json", found)
    folder.finish_files(fingerprint, extra={"harness": found})


def run_select(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """The run's `model/`: of several rounds and branches, the one that the measurements chose."""
    loop = bench.loop
    choice = chosen(bench.recipe.stop, loop.evaluations(bench.recipe.rounds))
    folder.begin(fingerprint)
    source, out = Path(loop.merged(choice.round, choice.branch).path), loop.run.path / "model"
    with atomic.directory(out) as fresh:
        _link(source, fresh)
    bench.progress.note(f"the run's model is that of round {choice.round}: {choice.reason}")
    folder.finish_files(fingerprint, folder=out, extra=choice._asdict())


def _link(source: Path, out: Path) -> None:
    """The same files a second time, without their room where the file system can do that."""

    def place(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    shutil.copytree(source, out, copy_function=place, dirs_exist_ok=True)
