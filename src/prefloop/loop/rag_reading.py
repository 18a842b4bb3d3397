"""The first stages of retrieval-augmented answering: questions, passages, rewritings, and what the reader says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from prefloop.config.rag import QuestionsSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.loop.reading import reject, rows_of
from prefloop.records import AugmentedRow, QuestionRow, RejectRow, RetrievedRow
from prefloop.store.stagedir import Rows, StageDir

if TYPE_CHECKING:
    from prefloop.loop.bench import Bench
    from prefloop.loop.plan import Stage

# Questions in one part: each makes a handful of calls, or is searched for among all passages.
PART = 64
T = TypeVar("T")


def run_questions(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Read the questions to learn from; with no others to measure on, keep a share of them out."""
    rows, rejects = _read(bench, bench.rag.questions)
    if bench.rag.evaluate.questions is None:
        rows = _split(bench, rows, held_out=False)
    _write(folder, fingerprint, rows, rejects)


def run_heldout(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Read the questions to measure on, and make sure that none of them is learned from."""
    from prefloop.pairs.splits import overlap

    given = bench.rag.evaluate.questions
    rejects: list[RejectRow] = []
    if given is None:
        # Bad rows of the one file were counted when the other questions were read.
        rows = _split(bench, _read(bench, bench.rag.questions)[0], held_out=True)
    else:
        rows, rejects = _read(bench, given)
    seen = set(overlap(map(_as_prompt, rows_of(bench, "questions")), [_as_prompt(row) for row in rows]))
    leaked = [row for row in rows if row["id"] in seen]
    if leaked and given is not None and given.on_bad_row == "stop":
        raise UsageError(
            f"{len(leaked)} of {len(rows)} questions to measure on share their text, or a long run of words, with one "
            f"to learn from; the first: {leaked[0]['question'][:80]!r}",
            where=given.path,
            fix="take them out of one of the two, or drop them here with evaluate.questions.on_bad_row=reject",
        )
    reason = "shares its text, or a long run of words, with a question to learn from"
    rejects += [reject(stage.name, row, reason) for row in leaked]
    rows = [row for row in rows if row["id"] not in seen]
    if not rows:
        raise UsageError("no question is left to measure on", where=(given or bench.rag.questions).path)
    _write(folder, fingerprint, rows, rejects)


def run_retrieve(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """The best passages of each question, with ranks and scores. A question that finds none is rejected."""
    from prefloop.inputs.passages import read_passages
    from prefloop.retrieve.retriever import open_retriever

    section, corpus = bench.rag.retrieve, bench.rag.corpus
    source = bench.loop.folder(bench.loop.previous(stage))
    done = folder.begin(fingerprint)
    passages = read_passages(corpus)
    texts = [passage.shown(corpus.with_title) for passage in passages]
    bench.quiet()
    bench.progress.total(source.count(), "questions")
    retriever = open_retriever(section.retriever, bench.cache)
    retriever.on_progress = lambda read, of: bench.progress.update(texts=f"{read:,}/{of:,}")
    try:
        index = None
        for number, part in enumerate(parts(rows_of(bench, source.name))):
            if number not in done:
                if index is None:
                    index = retriever.index(texts)
                kept: list[RetrievedRow] = []
                rejects: list[RejectRow] = []
                found = index.search([row["question"] for row in part], section.k)
                for row, hits in zip(part, found, strict=True):
                    best = hits[: section.k]
                    if not best:
                        rejects.append(reject(stage.name, row, "no passage has a word of it"))
                        continue
                    kept.append(
                        {
                            "id": row["id"],
                            "query": row["question"],
                            "answers": row["answers"],
                            "document_ids": [passages[hit.position].id for hit in best],
                            "documents": [texts[hit.position] for hit in best],
                            "ranks": list(range(1, len(best) + 1)),
                            "scores": [hit.score for hit in best],
                        }
                    )
                folder.write_part(number, kept, "retrieved", rejects=rejects)
            bench.progress.advance(len(part))
    finally:
        retriever.close()
    if not folder.count():
        raise PrefloopError(
            "nothing was retrieved for any question", where=corpus.path, fix="check corpus and questions"
        )
    folder.finish(fingerprint, rows_in=source.count(), extra={"passages": len(passages)})


def run_augment(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Questions written anew, without those that contradict their question."""
    from prefloop.augment.filter import keep_consistent
    from prefloop.augment.rewrite import BACKEND, rewrite
    from prefloop.signals.base import Need

    section = bench.rag.augment
    assert section is not None
    source = bench.loop.folder("questions")
    writer = bench.backends({BACKEND: Need(section.model)})
    classifier = None if section.nli is None else bench.backends({"nli": Need(section.nli.model, "nli")})["nli"]
    bench.progress.total(source.count(), "questions")
    done = folder.begin(fingerprint)
    for number, part in enumerate(parts(rows_of(bench, source.name))):
        if number not in done:
            made = rewrite(section, part, writer, bench.rag.seed)
            counts: Counter[str] = made.counts
            rows, rejects = made.rows, made.rejects
            if classifier is not None and section.nli is not None:
                filtered = keep_consistent(section.nli, rows, {r["id"]: r["question"] for r in part}, classifier)
                counts = filtered.counts + Counter(r["strategy"] for r in filtered.rows)
                rows, rejects = filtered.rows, [*rejects, *filtered.rejects]
            tables = {"calls": ("calls", made.calls)}
            folder.write_part(number, rows, "augmented", rejects=rejects, tables=tables, counts=counts)
        bench.progress.advance(len(part))
    folder.finish(fingerprint, rows_in=source.count() * len(section.strategies))


def run_rate(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Which documents help the reader."""
    from prefloop.signals.reader import ReaderSignal, card, read

    signal = ReaderSignal(bench.rag.rate, bench.rag.seed)
    backends = bench.backends(signal.needs)
    source = bench.loop.folder("retrieve")
    bench.progress.total(source.count(), "questions")
    done = folder.begin(fingerprint)
    for number, part in enumerate(parts(rows_of(bench, source.name))):
        if number not in done:
            made = read(signal, part, backends, stage.name)
            tables: dict[str, tuple[str, Rows]] = {"calls": ("calls", made.calls), "reads": ("reads", made.reads)}
            folder.write_part(number, made.rows, "labelled", rejects=made.rejects, tables=tables, counts=made.counts)
        bench.progress.advance(len(part))
    bench.progress.note(card(folder.counts()))
    folder.finish(fingerprint, rows_in=source.count())


def run_rows(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """What a reranker learns from."""
    from prefloop.pairs.ranking import ranking_rows

    made = ranking_rows(rows_of(bench, "rate"), bench.rag.rank, rewritings(bench))
    if not made.counts["positive"] or not made.counts["negative"]:
        sides = f"{made.counts['positive']:,} documents help and {made.counts['negative']:,} mislead"
        raise PrefloopError(
            f"there is nothing to tell apart: {sides}",
            where=str(bench.loop.folder("rate").path),
            fix="give more questions, try more ranks (rate.ranks), or count outcomes (rank.labels=outcomes)",
        )
    if not folder.begin(fingerprint):
        folder.write_part(0, made.rows, "ranking", rejects=made.rejects, counts=made.counts)
    # A question gives several rows: questions are reconciled here, rows and rejects in `finish`.
    if bench.loop.folder("rate").count() != made.counts["questions"] + len(made.rejects):
        raise PrefloopError("questions were lost between their labels and the rows", where=stage.name)
    folder.finish(fingerprint, rows_in=len(made.rows) + len(made.rejects))


def rewritings(bench: Bench) -> dict[str, list[AugmentedRow]]:
    """The rewritings of each question that were kept, by its id."""
    found: dict[str, list[AugmentedRow]] = {}
    if bench.rag.augment is not None:
        for row in rows_of(bench, "augment"):
            found.setdefault(row["question_id"], []).append(row)
    return found


def parts(rows: Iterable[T], size: int = PART) -> Iterator[list[T]]:
    """Rows in lists of `size`, the last one shorter."""
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part


def _as_prompt(row: QuestionRow) -> Any:
    return {"id": row["id"], "prompt": [{"role": "user", "content": row["question"]}]}


def _read(bench: Bench, section: QuestionsSection) -> tuple[list[QuestionRow], list[RejectRow]]:
    from prefloop.inputs.questions import read_questions

    return read_questions(section, bench.rag.seed)


def _split(bench: Bench, rows: Sequence[QuestionRow], *, held_out: bool) -> list[QuestionRow]:
    from prefloop.pairs.splits import holdout

    ids = holdout([row["id"] for row in rows], bench.rag.evaluate.holdout)
    return [row for row in rows if (row["id"] in ids) is held_out]


def _write(folder: StageDir, fingerprint: str, rows: list[QuestionRow], rejects: list[RejectRow]) -> None:
    if not folder.begin(fingerprint):
        folder.write_part(0, rows, "questions", rejects=rejects)
    folder.finish(fingerprint, rows_in=len(rows) + len(rejects))
