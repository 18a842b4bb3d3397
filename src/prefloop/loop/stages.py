"""What each stage does: read its inputs' rows, call its box, write parts.

Rows go through in parts of `PART_ROWS`, in the order of the input, so a run that was killed continues behind its last
finished part with the same batches as an undisturbed one. Boxes are imported where they are used: planning and
skipping must not load torch.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from prefloop.config import PreferencesSection, RetrieverSignalSection, TrainSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.loop.manifest import summarize
from prefloop.loop.measuring import run_ability, run_evaluate, run_select
from prefloop.loop.plan import FIRST_MERGE, FIRST_READ, FIRST_TRAIN
from prefloop.loop.reading import measured_queries, rows_of, run_heldout, run_preferences, run_prompts
from prefloop.loop.rewriting import rewrite, wordings
from prefloop.loop.sampling import sample
from prefloop.records import RejectRow
from prefloop.store.fingerprint import digest
from prefloop.store.stagedir import StageDir

if TYPE_CHECKING:
    from prefloop.loop.bench import Bench, Runner
    from prefloop.loop.plan import Stage

logger = logging.getLogger(__name__)

PART_ROWS = 256
# Rating makes several calls a row and cannot show how far it is inside a part.
RATED_ROWS = 64
T = TypeVar("T")


def run_sample(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """n answers to every prompt of the round, by the round's policy."""
    from prefloop.pairs.splits import round_chunk
    from prefloop.signals.build import check_prompts

    prompts = list(rows_of(bench, "prompts"))
    for way in bench.recipe.ways.values():
        check_prompts(way.rate, prompts)
    chunk = round_chunk([p["id"] for p in prompts], bench.recipe.rounds, stage.round)
    rows = [p for p in prompts if p["id"] in chunk]
    if bench.recipe.rounds > 1:
        bench.progress.note(f"round {stage.round} of {bench.recipe.rounds}: {len(rows):,} of {len(prompts):,} prompts")
    section = bench.recipe.sampled.sample
    backend = bench.backend(section.model or bench.loop.policy(stage.round))
    each = section.answers * (1 if section.rewrite is None else wordings(section))
    bench.progress.total(len(rows) * each, "answers")
    done = folder.begin(fingerprint)
    for index, part in enumerate(_parts(rows)):
        before = index * PART_ROWS * each
        bench.on_batch = lambda asked, before=before: bench.progress.at(before + asked)  # type: ignore[misc]
        if index not in done:
            dropped: list[RejectRow] = []
            if section.rewrite is None:
                kept, rejects, counts = sample(backend, part, section, bench.recipe.seed, stage.name)
                refused = rejects
            else:
                found = rewrite(backend, part, section, bench.recipe.seed, stage.name)
                kept, rejects, refused, dropped = found.rows, found.rejects, found.refused, found.dropped
                counts = dict(found.counts)
            if refused and bench.recipe.sampled.prompts.on_bad_row == "stop":
                first = refused[0]
                raise UsageError(
                    f"the model cannot take {len(refused)} prompts; the first, {first['id']}: {first['reason']}",
                    where=bench.recipe.sampled.prompts.path,
                    fix="shorten or remove them, or drop them with prompts.on_bad_row=reject",
                )
            tables = {} if section.rewrite is None else {"dropped": ("rejects", dropped)}
            folder.write_part(index, kept, "candidates", rejects=rejects, counts=counts, tables=tables)
            bench.progress.update(cached=backend.usage.cached)
        bench.on_batch(len(part) * each)
    if section.rewrite is not None:
        _say_dropped(bench, folder.counts())
    folder.finish(fingerprint, rows_in=len(rows))


def _say_dropped(bench: Bench, counts: dict[str, float]) -> None:
    """How many of the rewrites can be used, and why others cannot."""
    reasons = {name.removeprefix("dropped/"): int(n) for name, n in counts.items() if name.startswith("dropped/")}
    if not counts.get("rewrites"):
        raise PrefloopError(
            f"none of {int(counts.get('answers', 0)):,} answers is a usable rewrite: {reasons}",
            where="sample.rewrite",
            fix="look at them (table `dropped` of the stage sample); a model that writes no JSON needs "
            "sample.rewrite.answer=text",
        )
    if reasons:
        told = ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1]))
        bench.progress.note(
            f"{int(counts['rewrites']):,} of {int(counts['answers']):,} answers are usable rewrites; others: {told}"
        )


def run_rate(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """A score for every answer."""
    from functools import partial

    from prefloop.retrieve.retriever import open_retriever
    from prefloop.signals.build import build, check, check_noise, check_prompts
    from prefloop.signals.driver import rate
    from prefloop.signals.retriever import RetrieverSignal

    source = bench.loop.folder(bench.loop.previous(stage))
    section = bench.recipe.ways[stage.branch].rate
    assert section is not None
    # The file may be another one than at the time of the sampling; of a round's prompts alone it may have none.
    check_prompts(section, rows_of(bench, "prompts"))
    kept_out = measured_queries(bench) if isinstance(section, RetrieverSignalSection) else frozenset()
    signal, needs = build(section, bench.recipe.seed, kept_out)
    backends = bench.backends(needs, bench.loop.policy(stage.round))
    if isinstance(signal, RetrieverSignal):
        if signal.judgments.left_out:
            bench.progress.note(
                f"{signal.judgments.left_out:,} pairs of a passage and a query are left out: the query is measured on"
            )
        signal.prepare(
            list(rows_of(bench, bench.loop.previous(stage))), backends, partial(open_retriever, cache=bench.cache)
        )
    bench.progress.total(source.count(), "rows")
    done = folder.begin(fingerprint)
    made = 0
    for index, part in enumerate(_parts(rows_of(bench, bench.loop.previous(stage)), RATED_ROWS)):
        if index not in done:
            before = made
            bench.on_batch = lambda asked, before=before: bench.progress.update(calls=before + asked)  # type: ignore[misc]
            rated = rate(signal, part, backends)
            made += len(rated.calls)
            folder.write_part(
                index, rated.rows, "scored", tables={"calls": ("calls", rated.calls)}, counts=rated.counts
            )
        # After each part: a judge that says nothing stops early, and its scores stay on disk to be looked at.
        check(section, folder.counts(), final=False)
        bench.progress.advance(len(part))
    counts = folder.counts()
    check(section, counts)
    bench.say(section, counts, folder.rows())
    check_noise(section, counts)
    folder.finish(fingerprint, rows_in=source.count())


def run_pair(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Pairs from scored answers."""
    from prefloop.pairs.build import build_pairs

    scored, way = rows_of(bench, bench.loop.previous(stage)), bench.recipe.ways[stage.branch]
    assert way.rate is not None and way.pair is not None  # noqa: PT018
    built = build_pairs(scored, way.pair, bench.recipe.seed, source=way.rate.type)
    if not folder.begin(fingerprint):
        folder.write_part(0, built.pairs, "preference", rejects=built.rejects)
    if not built.pairs:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in Counter(r["reason"] for r in built.rejects).items())
        raise PrefloopError(
            "no preference pair came out of the scored answers",
            where=str(folder.path),
            fix=f"every row was dropped: {reasons}. Look at them (prefloop inspect {bench.loop.run.path} --stage "
            f"{stage.name} --rejects), sample more answers (sample.n), or loosen the pair section",
        )
    # A row may give several pairs: rows are reconciled here, pairs and rejects in `finish`.
    rows_in = bench.loop.folder(bench.loop.previous(stage)).count()
    if rows_in != len({p["prompt_id"] for p in built.pairs}) + len(built.rejects):
        raise PrefloopError(f"{rows_in} rows came in, and not as many gave pairs or were rejected", where=stage.name)
    folder.finish(fingerprint, rows_in=len(built.pairs) + len(built.rejects), extra=built.counts)


def run_judgments(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Each answer with what the critic said of it."""
    from prefloop.pairs.judgments import judgment_rows

    before = bench.loop.previous(stage)
    section = bench.recipe.ways[stage.branch].rate
    assert section is not None
    done = folder.begin(fingerprint)
    answers = 0
    for index, part in enumerate(_parts(rows_of(bench, before))):
        answers += sum(len(row["completions"]) for row in part)
        if index not in done:
            made = judgment_rows(part, source=section.type)
            folder.write_part(index, made.rows, "judgment", rejects=made.rejects, counts=made.counts)
    if not folder.counts().get("criticised", 0) + folder.counts().get("satisfactory", 0):
        raise PrefloopError(
            "the critic gave no judgment at all", where=str(folder.path), fix="look at its replies in the stage rate"
        )
    folder.finish(fingerprint, rows_in=answers)


def run_train(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """The policy trained on the pairs: an adapter, or all weights."""
    from prefloop.pairs.splits import holdout_pairs
    from prefloop.train import checkpoints
    from prefloop.train.run import Source, train

    bench.quiet()
    bench.release()
    before = bench.loop.previous(stage)
    given, section = bench.recipe.training(stage.round, stage.branch)
    if given is not None:
        _check_answers(given, section, bench.loop.folder(before).counts())
    kept_out = bench.kept_out if stage.round else _split_off(bench)

    def of_training() -> Iterator[Any]:
        return (row for row in rows_of(bench, before) if row["prompt_id"] not in kept_out)

    def rows() -> Iterator[Any]:
        return (row for row in of_training() if row["id"] not in held.crossing)

    of_prompt = Counter(row["prompt_id"] for row in rows_of(bench, before))
    held = holdout_pairs(of_training(), section.validation_share)
    if section.validation_share and not held.prompts and any(row.get("query") is not None for row in of_training()):
        logger.warning(
            "no pair is held out for validation: every passage of the queries that were drawn has other queries too"
        )
    content = digest([(bench.loop.folder(before).success() or {})["content"], sorted(kept_out)])
    if held.crossing:
        content = digest([content, sorted(held.crossing)])
        bench.progress.note(
            f"{len(held.crossing):,} pairs are left out: their query is held out for validation, and their passage is "
            "trained on"
        )
    interrupted = folder.has_work(fingerprint)
    folder.begin(fingerprint)
    if interrupted and not any(folder.path.glob(f"checkpoint-*/{checkpoints.MARK}")):
        bench.progress.note("the interrupted training left no checkpoint: it starts from the beginning")

    def on_log(record: dict[str, Any]) -> None:
        bench.loop.run.metric(round=stage.round, **bench.at, **record)
        # The figures of both kinds stay in the stage's line, so those of validation say whose they are.
        whose = "validation " if record["kind"] == "validation" else ""
        bench.progress.update(**{whose + k: record[k] for k in ("loss", "rewards/accuracies") if k in record})

    def showing(unit: str) -> Callable[[int, int], None]:
        def show(done: int, total: int) -> None:
            bench.progress.total(total, unit)
            bench.progress.at(done)

        return show

    result = train(
        bench.loop.policy(stage.round),
        Source(rows, content, frozenset(held.prompts)),
        section,
        seed=bench.recipe.seed,
        out=folder.path,
        cache=bench.cache,
        held_to=bench.loop.base if stage.round > 1 and section.reference == "first" else None,
        on_log=on_log,
        on_step=showing("steps"),
        on_reference=showing("reference answers"),
    )
    if given is not None:
        result["held_out_rows"] = sum(of_prompt[name] for name in kept_out)
    if held.crossing:
        result["crossing_rows"] = len(held.crossing)
    folder.finish_files(fingerprint, extra=result)


def _split_off(bench: Bench) -> frozenset[str]:
    """Ids of the prompts that were split off to be measured on; none where the evaluation has prompts of its own."""
    if bench.recipe.evaluate.prompts is not None:
        return frozenset()
    return frozenset(row["id"] for row in rows_of(bench, "heldout"))


def _check_answers(given: PreferencesSection, section: TrainSection, counts: dict[str, float]) -> None:
    """Refuse an objective that takes none of the rows, before any of them is tokenised."""
    from prefloop.train.objectives import OBJECTIVES

    objective = section.objective.type
    takes = OBJECTIVES[objective].takes
    pairs, good, bad = (int(counts.get(name, 0)) for name in ("pairs", "good", "bad"))
    judged = [int(counts.get(name, 0)) for name in ("satisfactory", "criticised")]
    good, bad = good + judged[0], bad + judged[1]  # a judgment says which it is, to an objective that reads no words
    singles = {"answers": pairs + good, "unpaired": pairs + good + bad}
    usable = (singles | {"judgments": sum(judged)}).get(takes, pairs)
    if not usable:
        if takes == "judgments":
            raise UsageError(
                f"objective {objective} learns from written judgments, and these rows have none",
                where=given.path,
                fix="give judgments (docs/cut.md), or set train.objective to dpo, sft or kto",
            )
        other = "kto, which takes answers marked as good or bad" if bad else "sft, which takes good answers"
        raise UsageError(
            f"objective {objective} takes {'good answers' if takes == 'answers' else 'pairs'}, and there are "
            f"{good:,} good answers and {bad:,} bad ones, each alone",
            where=given.path,
            fix=f"set train.objective to {other}, or give pairs",
        )


def run_merge(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """A plain model folder of the trained policy."""
    from prefloop.train.run import merge

    bench.quiet()
    bench.release()
    folder.begin(fingerprint)
    out = bench.loop.model_folder(stage)
    result = merge(
        bench.loop.policy(stage.round),
        bench.loop.folder(bench.loop.previous(stage)).path,
        out,
        bench.recipe.merge,
    )
    folder.finish_files(fingerprint, folder=out, extra=result)


def run_report(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """One HTML file of the run."""
    from prefloop.report.build import build_report

    folder.begin(fingerprint)
    bench.loop.run.write_summary(summarize(bench.loop))
    folder.finish_files(fingerprint, build_report(bench.loop.run.path))


def _parts(rows: Iterable[T], size: int = PART_ROWS) -> Iterator[list[T]]:
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part


RUNNERS: dict[str, Runner] = {
    "prompts": run_prompts,
    "preferences": run_preferences,
    FIRST_READ: run_preferences,
    "heldout": run_heldout,
    "sample": run_sample,
    "rate": run_rate,
    "pair": run_pair,
    "judgments": run_judgments,
    "train": run_train,
    FIRST_TRAIN: run_train,
    "merge": run_merge,
    FIRST_MERGE: run_merge,
    "evaluate": run_evaluate,
    "ability": run_ability,
    "select": run_select,
    "report": run_report,
}
