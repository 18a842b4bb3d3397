"""The later stages of retrieval-augmented answering: the reranker, the reader's two tasks, and the measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.config import ModelSection, TrainSection
from prefloop.errors import PrefloopError
from prefloop.loop.rag_plan import (
    HELDOUT_RETRIEVE,
    LOSSES,
    NO_PREALIGN,
    PREALIGN,
    merge_stage,
    rerank_stage,
    rerankers,
    train_stage,
)
from prefloop.loop.rag_reading import (
    parts,
    rewritings,
    run_augment,
    run_heldout,
    run_questions,
    run_rate,
    run_retrieve,
    run_rows,
)
from prefloop.loop.reading import rows_of
from prefloop.loop.stages import run_report
from prefloop.records import Completion, PreferenceRow, RetrievedRow, ScoredRow, completion_id, content_id
from prefloop.store import atomic
from prefloop.store.fingerprint import digest
from prefloop.store.stagedir import StageDir

if TYPE_CHECKING:
    from prefloop.evaluate.rag_qa import Asked, System
    from prefloop.loop.bench import Bench, Runner
    from prefloop.loop.plan import Stage

ANSWERS = "answers.csv"


def preflight(bench: Bench) -> None:
    """Find what is wrong with templates, trainings and the keys of servers before hours of work, not after.

    Raises:
        UsageError: a template is missing or cannot ask what is asked, or the reader cannot be trained as asked.
    """
    from prefloop.errors import UsageError
    from prefloop.signals import reader_prompt
    from prefloop.train.check import check_trainable

    recipe = bench.rag
    prompt = reader_prompt.load(recipe.rate.template)
    prompt.render("Who?", ["Somebody."])
    if recipe.prealign is not None and not prompt.asks_about:
        raise UsageError(
            "the template has no `position`, and so cannot ask about one of the documents",
            where=recipe.rate.template,
            fix="show {{ position }} where it is not none, or set prealign=null",
        )
    bench.check_keys()
    bench.quiet()
    for section in (recipe.train, recipe.stage_one):
        if section is not None:
            check_trainable(recipe.model, section)


def run_rerank(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """A reranker that learned what helps the reader."""
    from prefloop.rerank.run import train_reranker

    bench.quiet()
    bench.release()
    folder.begin(fingerprint)
    result = train_reranker(
        list(rows_of(bench, "rows")),
        next(s for left_out, s in rerankers(bench.rag).items() if rerank_stage(left_out) == stage.verb),
        folder.path,
        seed=bench.rag.seed,
        on_log=_on_log(bench, stage),
        on_step=_showing(bench, "steps"),
    )
    folder.finish_files(fingerprint, extra=result)


def run_prealign(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Demonstrations of the pre-aligned task: does the document at this position help?"""
    from prefloop.pairs.prealign import NoiseSource, prealign_rows
    from prefloop.signals import reader_prompt

    section = bench.rag.prealign
    assert section is not None
    prompt = reader_prompt.load(bench.rag.rate.template)
    noise = NoiseSource(rows_of(bench, "retrieve"))
    made = prealign_rows(rows_of(bench, "rate"), noise, section, prompt, bench.rag.seed, rewritings(bench))
    if not made.rows:
        raise PrefloopError(
            "no document helps or misleads the reader",
            where=str(bench.loop.folder("rate").path),
            fix="give more questions, or leave the pre-aligned task out (prealign=null)",
        )
    if not folder.begin(fingerprint):
        tables = {"contexts": ("contexts", made.contexts)}
        folder.write_part(0, made.rows, "preference", rejects=made.rejects, tables=tables, counts=made.counts)
    folder.finish(fingerprint, rows_in=len(made.rows) + len(made.rejects))


def run_qa(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Demonstrations of answering: questions and rewritings with their best documents by the reranker."""
    from prefloop.evaluate.rag_qa import by_score
    from prefloop.pairs.prealign import qa_rows
    from prefloop.signals import reader_prompt

    prompt, rewritten = reader_prompt.load(bench.rag.rate.template), rewritings(bench)
    bench.release()
    asked: list[Any] = []
    original: dict[str, str] = {}
    for row in rows_of(bench, "retrieve"):
        for text in (row["query"], *(a["text"] for a in rewritten.get(row["id"], ()))):
            name = content_id("qa", row["id"], text)
            asked.append({**row, "id": name, "query": text})
            original[name] = row["id"]
    bench.progress.total(len(asked), "questions")
    done = folder.begin(fingerprint)
    all_parts = list(enumerate(parts(asked, 1024)))
    scores = _scores(bench, "", (row for number, part in all_parts if number not in done for row in part))
    for number, part in all_parts:
        if number not in done:
            ordered = [_ordered(row, by_score(next(scores))) for row in part]
            rows = qa_rows(ordered, original, bench.rag.top_k, prompt)
            folder.write_part(number, rows, "preference")
        bench.progress.advance(len(part))
    folder.finish(fingerprint, rows_in=len(asked))


def run_train(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """The reader, trained on the demonstrations of its stages; its questions' rows go to one side of the split."""
    from prefloop.pairs.splits import holdout
    from prefloop.train.run import Source, train

    bench.quiet()
    bench.release()
    section = _section(bench, stage)
    named = [name for name in stage.inputs if name in ("prealign", "qa")]

    def rows() -> Iterator[PreferenceRow]:
        return (row for name in named for row in rows_of(bench, name))

    held = holdout({row["prompt_id"] for row in rows()}, section.validation_share)
    content = digest([(bench.loop.folder(name).success() or {})["content"] for name in named])
    folder.begin(fingerprint)
    result = train(
        _policy(bench, stage),
        Source(rows, content, frozenset(held)),
        section,
        seed=bench.rag.seed,
        out=folder.path,
        cache=bench.cache,
        on_log=_on_log(bench, stage),
        on_step=_showing(bench, "steps"),
        on_reference=_showing(bench, "reference answers"),
    )
    folder.finish_files(fingerprint, extra=result)


def run_merge(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """A plain model folder of the trained reader: the run's `model/`, or beside the stage for the others."""
    from prefloop.train.run import merge

    bench.quiet()
    bench.release()
    folder.begin(fingerprint)
    out = _model_folder(bench, stage.name)
    result = merge(_policy(bench, stage), bench.loop.folder(stage.inputs[0]).path, out, bench.rag.merge)
    folder.finish_files(fingerprint, folder=out, extra=result)


def run_evaluate(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Every system on the held-out questions: retrieve, rerank, read, judge."""
    from prefloop.evaluate.rag_qa import ALIGNED, PLAIN, by_score, measure

    recipe = bench.rag
    rows: list[RetrievedRow] = list(rows_of(bench, HELDOUT_RETRIEVE))
    folder.begin(fingerprint)
    bench.release()
    orders = {"plain": [list(range(len(row["documents"]))) for row in rows]}
    for left_out in rerankers(recipe):
        bench.progress.note(f"{rerank_stage(left_out)}: {len(rows):,} held-out questions")
        orders[left_out] = [by_score(scores) for scores in _scores(bench, left_out, rows)]
    asked = _asked(bench, rows, orders)
    readers = {"base": recipe.model, "": _merged(bench, merge_stage(""))}
    pairs = {PLAIN: ("base", "plain"), ALIGNED: ("", "")}
    off = {
        "self_alignment": ("base", ""),
        "reranker": ("", "plain"),
        "prealign": (NO_PREALIGN, ""),
        **{loss: ("", loss) for loss in LOSSES},
    }
    pairs |= {f"without_{name}": off[name] for name in recipe.evaluate.ablations}
    if "prealign" in recipe.evaluate.ablations:
        readers[NO_PREALIGN] = _merged(bench, merge_stage(NO_PREALIGN))
    bench.progress.total(len(pairs) * len(rows), "answers")
    systems: dict[str, System] = {}
    # Systems of one reader stand together: a model is loaded once.
    for name in sorted(pairs, key=lambda n: list(readers).index(pairs[n][0])):
        reader, order = pairs[name]
        before = len(systems) * len(rows)
        bench.on_batch = lambda done, before=before: bench.progress.at(before + done)  # type: ignore[misc]
        systems[name] = _system(bench, readers[reader], asked, orders[order])
    bench.on_batch = lambda done: None
    systems = {name: systems[name] for name in pairs}
    found = measure(
        asked,
        systems,
        top_k=recipe.top_k,
        accuracy=recipe.evaluate.accuracy,
        resamples=recipe.evaluate.bootstrap,
        seed=recipe.seed,
    )
    folder.write_part(0, _compared(asked, systems[PLAIN], systems[ALIGNED], recipe.evaluate.accuracy), "scored")
    atomic.write_text(folder.path / ANSWERS, _side_by_side(asked, systems))
    folder.finish(fingerprint, rows_in=len(rows), extra={"evaluate": {"rag_qa": found}})


def _asked(bench: Bench, rows: Sequence[RetrievedRow], orders: dict[str, list[list[int]]]) -> list[Asked]:
    """The questions, with what each document that some system reads first does to the first reader."""
    from prefloop.evaluate.rag_qa import Asked
    from prefloop.signals.reader import ReaderSignal, read

    section = bench.rag.rate.model_copy(update={"ranks": "all"})
    signal, top_k = ReaderSignal(section, bench.rag.seed), bench.rag.top_k
    backends, found = bench.backends(signal.needs), []
    for part in parts(enumerate(rows)):
        shown, places = [], []
        for number, row in part:
            place = sorted({p for order in orders.values() for p in order[number][:top_k]})
            places.append(place)
            shown.append(_ordered(row, place))
        made = read(signal, shown, backends, "evaluate")
        labels = {r["id"]: r["labels"] for r in made.rows}
        for (_, row), place in zip(part, places, strict=True):
            known = zip(place, labels.get(row["id"], ()), strict=False)
            by_place = {p: label for p, label in known if label is not None}
            found.append(Asked(row["id"], row["query"], row["answers"], row["documents"], by_place))
    return found


def _system(bench: Bench, reader: ModelSection, asked: Sequence[Asked], orders: Sequence[Sequence[int]]) -> System:
    """What a reader answers from the first documents of an order; what does not fit counts as no answer."""
    from prefloop.backends.base import GenerateRequest, Generation, Sampling
    from prefloop.evaluate.rag_qa import System
    from prefloop.signals import reader_prompt

    section = bench.rag.evaluate
    how = Sampling(section.max_new_tokens, section.temperature, seed=bench.rag.seed)
    prompt = reader_prompt.load(bench.rag.rate.template)
    requests = []
    for question, order in zip(asked, orders, strict=True):
        documents = [question.documents[place] for place in order[: bench.rag.top_k]]
        requests.append(GenerateRequest(prompt.messages(question.query, documents), how))
    results = bench.backend(reader).answer(requests)
    texts = [result.text if isinstance(result, Generation) else "" for result in results]
    if (refused := sum(not isinstance(result, Generation) for result in results)) > 0:
        bench.progress.warn(f"{refused:,} questions do not fit {reader.path} and count as not answered")
    return System(texts, orders)


def _scores(bench: Bench, left_out: str, rows: Iterable[RetrievedRow]) -> Iterator[list[float]]:
    """A reranker's score of each document of each row; the reranker by the loss that it goes without.

    The model is loaded once, when the first score is asked for.
    """
    from prefloop.rerank.run import rerank

    section = bench.rag.rerank
    folder = bench.loop.folder(rerank_stage(left_out)).path / "model"
    pairs = ((row["query"], row["documents"]) for row in rows)
    return rerank(
        str(folder),
        pairs,
        device=section.device,
        max_length=section.max_length,
        trust_remote_code=section.trust_remote_code,
    )


def _ordered(row: RetrievedRow, places: Sequence[int]) -> RetrievedRow:
    """The row with these of its documents, in this order."""
    chosen: Any = {**row}
    for name in ("document_ids", "documents", "ranks", "scores"):
        chosen[name] = [chosen[name][place] for place in places]
    ordered: RetrievedRow = chosen
    return ordered


def _section(bench: Bench, stage: Stage) -> TrainSection:
    if stage.verb == train_stage(PREALIGN):
        assert bench.rag.stage_one is not None
        return bench.rag.stage_one
    return bench.rag.train


def _policy(bench: Bench, stage: Stage) -> ModelSection:
    """What a training starts from: the reader of stage one where it goes on from it, else the recipe's."""
    before = [name for name in stage.inputs if name == merge_stage(PREALIGN)]
    return _merged(bench, before[0]) if before else bench.rag.model


def _merged(bench: Bench, name: str) -> ModelSection:
    return bench.rag.model.model_copy(update={"path": str(_model_folder(bench, name)), "revision": None})


def _model_folder(bench: Bench, name: str) -> Path:
    """Where a merge stage writes."""
    return (bench.loop.run.path if name == merge_stage("") else bench.loop.folder(name).path) / "model"


def _compared(asked: Sequence[Asked], plain: System, aligned: System, accuracy: str) -> list[ScoredRow]:
    """Both answers to each held-out question; a score is whether the answer is right."""
    from prefloop.signals.qa import judge

    rows: list[ScoredRow] = []
    for number, question in enumerate(asked):
        texts = (plain.answers[number], aligned.answers[number])
        completions: list[Completion] = [
            {
                "id": completion_id(question.id, text, seat),
                "text": text,
                "token_ids": None,
                "finish_reason": "stop",
                "sample_index": seat,
            }
            for seat, text in enumerate(texts)
        ]
        rows.append(
            {
                "id": question.id,
                "prompt": [{"role": "user", "content": question.query}],
                "completions": completions,
                "scores": [float(getattr(judge(text, question.answers), accuracy)) for text in texts],
                "signal": f"rag_qa-{accuracy}",
                "evidence": [],
            }
        )
    return rows


def _side_by_side(asked: Sequence[Asked], systems: dict[str, System]) -> str:
    """Every held-out question with its references and every system's answer, as CSV."""
    from prefloop.evaluate.sheet import csv_text

    rows: list[list[str | float | None]] = [
        [question.id, question.query, " | ".join(question.answers), *(s.answers[i] for s in systems.values())]
        for i, question in enumerate(asked)
    ]
    return csv_text(["id", "question", "references", *systems], rows)


def _on_log(bench: Bench, stage: Stage) -> Callable[[dict[str, Any]], None]:
    def log(record: dict[str, Any]) -> None:
        bench.loop.run.metric(round=stage.round, **bench.at, **record)
        whose = "validation " if record["kind"] == "validation" else ""
        bench.progress.update(**{whose + k: record[k] for k in ("loss",) if k in record})

    return log


def _showing(bench: Bench, unit: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        bench.progress.total(total, unit)
        bench.progress.at(done)

    return show


RUNNERS: dict[str, Runner] = {
    "questions": run_questions,
    "heldout": run_heldout,
    "retrieve": run_retrieve,
    HELDOUT_RETRIEVE: run_retrieve,
    "augment": run_augment,
    "rate": run_rate,
    "rows": run_rows,
    **{rerank_stage(left_out): run_rerank for left_out in ("", *LOSSES)},
    "prealign": run_prealign,
    "qa": run_qa,
    **{train_stage(name): run_train for name in ("", PREALIGN, NO_PREALIGN)},
    **{merge_stage(name): run_merge for name in ("", PREALIGN, NO_PREALIGN)},
    "evaluate": run_evaluate,
    "report": run_report,
}
