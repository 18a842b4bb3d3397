"""The stages that read files: prompts, preferences, and the prompts to measure on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from prefloop.config import PromptsSection, RetrieverSignalSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.loop.plan import FIRST_READ
from prefloop.records import PromptRow, RejectRow, canonical_json
from prefloop.store.stagedir import StageDir

if TYPE_CHECKING:
    from prefloop.loop.bench import Bench
    from prefloop.loop.plan import Stage

# No model is asked: a part is as large as memory bears easily.
READ_ROWS = 2048


def run_prompts(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Read the prompts to train on; with no evaluation prompts of their own, keep a share of them out."""
    rows, rejects = _read(bench, bench.recipe.sampled.prompts)
    if bench.recipe.evaluate.prompts is None:
        rows = _split(bench, rows, held_out=False)
    if not rows:
        raise PrefloopError(
            "no prompt is left to train on",
            where=bench.recipe.sampled.prompts.path,
            fix="give more prompts, or evaluation prompts of their own (evaluate.prompts.path)",
        )
    _write(folder, fingerprint, rows, rejects)


def run_preferences(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Read the preference data that the recipe names."""
    from prefloop.inputs.judgments import verdicts_line
    from prefloop.inputs.preferences import PreferenceReader
    from prefloop.inputs.votes import agreement_line

    section, _ = bench.recipe.training(stage.round)
    assert section is not None
    reader = PreferenceReader(section)
    done = folder.begin(fingerprint)
    for index, (rows, rejects) in enumerate(reader.parts(READ_ROWS)):
        if index not in done:
            counts = Counter(map(_judgment_of if reader.kind == "judgment" else _sides_of, rows))
            folder.write_part(index, rows, reader.kind, rejects=rejects, counts=counts)
        bench.progress.update(rows=reader.records)
    assert reader.layout is not None, "a file with a usable row has a layout"
    votes = None if reader.tally is None else reader.tally.agreement()
    if votes is not None:
        bench.progress.note(agreement_line(votes))
    if reader.verdicts:
        bench.progress.note(verdicts_line(reader.verdicts))
    left = dict(sorted(reader.columns.left.items()))
    if left:
        columns = ", ".join(f"{name} ({count:,} rows)" for name, count in left.items())
        bench.progress.note(f"read as {reader.layout.name}; columns that are not read: {columns}")
    extra = {"format": reader.layout.name, "left_columns": left} | ({"votes": votes} if votes is not None else {})
    extra |= {"verdicts": dict(sorted(reader.verdicts.items()))} if reader.verdicts else {}
    folder.finish(fingerprint, rows_in=reader.records, extra=extra)


def _sides_of(row: Any) -> str:
    return "pairs" if row["chosen"] and row["rejected"] else "good" if row["chosen"] else "bad"


def _judgment_of(row: Any) -> str:
    return "satisfactory" if row["judgment"] is None else "criticised"


def run_heldout(bench: Bench, stage: Stage, folder: StageDir, fingerprint: str) -> None:
    """Read the prompts to measure on, and make sure that none of them is trained on."""
    from prefloop.pairs.splits import overlap

    given = bench.recipe.evaluate.prompts
    rejects: list[RejectRow] = []
    if given is not None:
        rows, rejects = _read(bench, given)
    elif bench.recipe.preferences is not None:
        # By id: several rows may have one prompt.
        found = {row["prompt_id"]: row["prompt"] for row in _preferences(bench, held_out=True)}
        rows = [{"id": name, "prompt": prompt, "source_id": None} for name, prompt in found.items()]
    else:
        # Bad rows of the one file were counted when the training prompts were read.
        rows = _split(bench, _read(bench, bench.recipe.sampled.prompts)[0], held_out=True)
    seen = set(overlap(chain(_training_prompts(bench), _first_prompts(bench, rows)), rows))
    leaked = [r for r in rows if r["id"] in seen]
    if leaked and given is not None and given.on_bad_row == "stop":
        raise UsageError(
            f"{len(leaked)} of {len(rows)} evaluation prompts share their text, or a long run of words, with a "
            f"training prompt; the first: {leaked[0]['prompt'][-1]['content'][:80]!r}",
            where=given.path,
            fix="take them out of one of the two files, or drop them here with evaluate.prompts.on_bad_row=reject",
        )
    # Near-copies inside one file, or asked for: the held-out one goes, with its reason.
    reason = "shares its text, or a long run of words, with a training prompt"
    rejects += [reject(stage.name, r, reason) for r in leaked]
    rows = [r for r in rows if r["id"] not in seen]
    if not rows:
        raise UsageError(
            f"no prompt is left to measure on ({len(leaked)} were also among the training prompts)",
            where=(given or bench.recipe.preferences or bench.recipe.sampled.prompts).path,
            fix="give more prompts, a larger evaluate.holdout, or evaluate.prompts.path",
        )
    _write(folder, fingerprint, rows, rejects)


def measured_queries(bench: Bench) -> frozenset[str]:
    """Texts of the queries that are relevant to passages of the measurement, by any judgments of the recipe.

    A writer that learned from a query has seen, through its retriever, what the passages of that query are to be like.
    """
    from prefloop.retrieve.corpus import read_collection

    documents = {row["source_id"] for row in rows_of(bench, "heldout")}
    found: set[str] = set()
    rated = [way.rate for way in bench.recipe.ways.values() if isinstance(way.rate, RetrieverSignalSection)]
    judged = {(section.judgments, section.split) for section in rated}
    if (bias := bench.recipe.source_bias) is not None:
        judged.add((str(bias.judgments), bias.split or "test"))
    for path, split in sorted(judged):
        collection = read_collection(path, split, [], judged=True)
        texts = {query.id: query.text for query in collection.queries}
        found |= {
            texts[name]
            for name, grades in collection.qrels.items()
            if any(grade > 0 and document in documents for document, grade in grades.items())
        }
    return frozenset(found)


def _preferences(bench: Bench, *, held_out: bool) -> Iterator[Any]:
    """The preference rows to train on, or those whose prompts are measured on."""
    return (row for row in rows_of(bench, "preferences") if (row["prompt_id"] in bench.kept_out) is held_out)


def _training_prompts(bench: Bench) -> Iterator[Any]:
    if bench.recipe.preferences is None:
        return rows_of(bench, "prompts")
    return ({"id": row["prompt_id"], "prompt": row["prompt"]} for row in _preferences(bench, held_out=False))


def _first_prompts(bench: Bench, held_out: list[PromptRow]) -> Iterator[Any]:
    """The prompts that the first stage trains on: it leaves out those that were split off to be measured on."""
    if bench.recipe.first is None:
        return
    left_out = {row["id"] for row in held_out} if bench.recipe.evaluate.prompts is None else set()
    for row in rows_of(bench, FIRST_READ):
        if row["prompt_id"] not in left_out:
            yield {"id": row["prompt_id"], "prompt": row["prompt"]}


def _read(bench: Bench, section: PromptsSection) -> tuple[list[PromptRow], list[RejectRow]]:
    from prefloop.inputs.prompts import read_prompts

    return read_prompts(section, seed=bench.recipe.seed)


def _split(bench: Bench, rows: list[PromptRow], *, held_out: bool) -> list[PromptRow]:
    from prefloop.pairs.splits import holdout

    ids = holdout([r["id"] for r in rows], bench.recipe.evaluate.holdout)
    return [r for r in rows if (r["id"] in ids) is held_out]


def _write(folder: StageDir, fingerprint: str, rows: list[PromptRow], rejects: list[RejectRow]) -> None:
    if not folder.begin(fingerprint):
        folder.write_part(0, rows, "prompts", rejects=rejects)
    folder.finish(fingerprint, rows_in=len(rows) + len(rejects))


def rows_of(bench: Bench, stage: str) -> Iterator[Any]:
    """The rows that a stage kept. Any: Parquet knows no TypedDict; `arrow_schema` is what they were held to."""
    return bench.loop.folder(stage).rows()


def reject(stage: str, row: Any, reason: str) -> RejectRow:
    """A row that a stage drops, with the reason."""
    return {"id": row["id"], "stage": stage, "reason": reason, "attempts": 1, "row": canonical_json(row)}
