"""`prefloop evaluate source-bias`: a collection and retrievers in, figures, rows and a page out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prefloop.config import RetrieverSection
from prefloop.config.load import explain
from prefloop.errors import UsageError
from prefloop.evaluate.source_task import HEADLINE, Settings
from prefloop.evaluate.source_texts import MATCHED
from prefloop.evaluate.stats import says_nothing
from prefloop.store import atomic

if TYPE_CHECKING:
    from prefloop.evaluate.source_protocol import Measured
    from prefloop.evaluate.source_task import Task
    from prefloop.retrieve.corpus import Collection
    from prefloop.ui.progress import Progress

_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


def retriever_sections(words: Sequence[str]) -> dict[str, RetrieverSection]:
    """Retrievers by name: `bm25`, a model's id or folder, a section in braces, each with NAME= in front if wished.

    Raises:
        UsageError: two have one name, or a section is faulty.
    """
    found: dict[str, RetrieverSection] = {}
    for word in words:
        name, given = word, word
        if (named := _NAMED.fullmatch(word)) and not word.startswith("{") and not Path(word).exists():
            name, given = named[1], named[2]
        section = _section(given)
        name = section.name if name.startswith("{") else name
        if name in found:
            raise UsageError(f"two retrievers are called {name}", where="--retriever", fix="write NAME=…")
        found[name] = section
    return found


def _section(word: str) -> RetrieverSection:
    import yaml

    try:
        return RetrieverSection.model_validate(yaml.safe_load(word) if word.startswith("{") else word)
    except yaml.YAMLError as error:
        raise UsageError("is no section in braces", where=word, fix="write {path: …, similarity: dot}") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{e['loc'][0]}: is missing" if e["type"] == "missing" else explain(e, RetrieverSection)
            for e in error.errors()
        )
        fix = "its settings are in docs/recipe.md#retrieversection"
        raise UsageError(faults, where=f"--retriever {word}", fix=fix) from error


def read_corpus(
    corpus: str, split: str, sources: Sequence[str] | None, human: str, progress: Progress
) -> tuple[Collection, str | None]:
    """The collection, and which Cocktail set it is; a set of Cocktail is fetched when asked for by `cocktail:NAME`."""
    from prefloop.retrieve import cocktail
    from prefloop.retrieve.corpus import read_collection

    path: str | Path = corpus
    if corpus.startswith(cocktail.PREFIX):
        path = cocktail.fetch(corpus)
    known = cocktail.recognise(path)
    if known is not None:
        progress.note(f"{Path(path).name}: Cocktail's {known}, as published")
        progress.note(cocktail.NOTICE)
    wanted = None if sources is None else [human, *(s for s in sources if s != human)]
    return read_collection(path, split, wanted, judged=True), known


def measure(
    corpus: str,
    retrievers: dict[str, RetrieverSection],
    out: Path,
    cache_path: Path,
    progress: Progress,
    *,
    settings: Settings,
    sources: Sequence[str] | None = None,
    split: str = "test",
    semantic: RetrieverSection | None = None,
) -> dict[str, Any]:
    """Measure, and write summary.json, queries.csv and report.html.

    Args:
        corpus: folder, zip, or `cocktail:NAME`.
        retrievers: by name.
        out: folder to write to; made where it is missing.
        sources: which to compare with the human one; all without it.
        semantic: an encoder that says how near rewrites are in meaning.

    Returns:
        What summary.json holds.

    Raises:
        UsageError: something is missing or broken.
    """
    from prefloop.evaluate.source_protocol import measure_sources
    from prefloop.retrieve.retriever import EncoderRetriever, Retriever, open_retriever
    from prefloop.store.cache import Cache

    def shown(done: int, total: int) -> None:
        progress.total(total, "texts")
        progress.at(done)

    def told(task: Task) -> None:
        for source, left in task.left_out.items():
            progress.warn(f"{left:,} passages of {source} are left out: not every source has them")
        if task.queries_left_out:
            progress.warn(f"{task.queries_left_out:,} queries are left out: all their relevant passages are")

    _folder(out)
    collection, known = read_corpus(corpus, split, sources, settings.human, progress)
    with Cache(cache_path) as cache:
        opened: dict[str, Retriever] = {}
        try:
            for name, section in retrievers.items():
                opened[name] = open_retriever(section, cache)
            meaning: EncoderRetriever | None = None
            if semantic is not None:
                same = next((opened[n] for n, s in retrievers.items() if s == semantic), None)
                encoder = same or opened.setdefault(" semantic", open_retriever(semantic, cache))
                if not isinstance(encoder, EncoderRetriever):
                    raise UsageError("is no encoder", where=f"--semantic {semantic.name}", fix="name an encoder")
                meaning = encoder
            for retriever in opened.values():
                retriever.on_progress = shown
            measured = measure_sources(
                *(collection.passages, collection.queries, collection.qrels),
                {name: opened[name] for name in retrievers},
                settings,
                semantic=meaning,
                on_step=lambda label, done, total: progress.stage(label, done + 1, total),
                on_task=told,
            )
            identities = {name: opened[name].identity for name in retrievers}
        finally:
            for retriever in opened.values():
                retriever.close()
    summary = {
        "stages": {},
        "corpus": {
            "path": corpus,
            "cocktail": known,
            "split": split,
            "sources": collection.sources,
            "human": settings.human,
            "passages": next(iter(measured.texts.values()))["passages"],
            "left_out": measured.left_out,
            "queries": len(collection.queries) - measured.queries_left_out,
            "queries_left_out": measured.queries_left_out,
            "titles": settings.titles,
        },
        "evaluate": {"source_bias": measured.retrievers, "source_texts": measured.texts},
        "retrievers": identities,
    }
    write(out, summary, measured)
    return summary


def _folder(out: Path) -> None:
    """Refuse what cannot be a folder before anything is computed."""
    taken = next((p for p in (out, *out.parents) if p.exists()), None)
    if taken is not None and not taken.is_dir():
        raise UsageError("is a file; the results need a folder", where=str(taken), fix="give another --out")


def write(out: Path, summary: dict[str, Any], measured: Measured) -> None:
    """summary.json, queries.csv (a row for each query, retriever and target) and report.html."""
    from prefloop.evaluate.sheet import csv_text
    from prefloop.report.source_bias import render_source_bias

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot be made: {error.strerror}", where=str(out), fix="give another --out") from error
    names = list(dict.fromkeys(key for row in measured.queries for key in row))
    rows = ([row.get(name) for name in names] for row in measured.queries)
    atomic.write_text(out / "queries.csv", csv_text(names, rows))
    atomic.write_text(out / "report.html", render_source_bias(summary, measured.gaps))
    # Last: where it is, all of it is.
    atomic.write_text(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def lines(summary: dict[str, Any]) -> list[list[str]]:
    """Rows of the table on the terminal: a retriever each, and a source where there are several."""
    found = []
    for name, source, entry, delta in _entries(summary):
        ndcg = entry[f"ndcg@{HEADLINE}"]["all"]
        label = name if len(entry["win_rate"]) == 1 else f"{name} · {source}"
        wins = spoken(entry["win_rate"][source], 100, "{:.1f}")
        cells = [spoken(delta), spoken(delta["length_matched"]), wins]
        found.append([label, "–" if ndcg is None else f"{100 * ndcg:.1f}", *cells])
    return found


COLUMNS = ("retriever", "NDCG@10", "Relative Δ@10, %", "of equal length", "human text wins, %")


def sentences(summary: dict[str, Any]) -> list[str]:
    """What may be said, a line for each retriever and source."""
    human = summary["corpus"]["human"]
    said = {"higher": "favours {human} over {source}", "lower": "favours {source} over {human}"}
    entries = _entries(summary)
    corrected = " after Holm's correction" if len(entries) > 1 else ""
    lines = []
    for name, source, entry, delta in entries:
        words = said.get(delta["verdict"], "no detectable preference between {human} and {source}")
        line = f"{name}: {words.format(human=human, source=source)} (p {delta['p_holm']:.2g}{corrected})"
        neutral = delta.get("neutral")  # there where the main figures are trec_eval's
        if delta["verdict"] in said and neutral and neutral["ci_low"] <= 0 <= neutral["ci_high"]:
            line += f", but only by how trec_eval orders equal scores: {spoken(neutral)} with --ties neutral"
        if delta["value"] is not None and says_nothing(_rounded(delta)):
            line += f"; all {delta['n']} queries are equal; the interval says nothing"
        asked = entry["win_rate"][source]["queries"]
        if delta["value"] is not None and delta["n"] != asked:
            line += f"; Relative Δ is of {delta['n']:,} queries, 'human text wins' of {asked:,}"
            if entry["no_hit"] and entry["no_hit_queries"] == "dropped":
                line += f", as {entry['no_hit']:,} had no hit"
        lines.append(line)
    for source, texts in summary["evaluate"]["source_texts"].items():
        if not texts["length_matched"]:
            low, high = MATCHED
            lines.append(f"of equal length: no passage of {source} has {low} to {high} times the human one's words")
    return lines


def _rounded(figure: dict[str, Any]) -> dict[str, Any]:
    """Ends that differ by rounding errors of the bootstrap's means only are one."""
    return {k: round(v, 9) if k.startswith("ci_") else v for k, v in figure.items()}


def _entries(summary: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    return [
        (name, source, entry, delta)
        for name, entry in summary["evaluate"]["source_bias"].items()
        for source, delta in entry[f"relative_delta@{HEADLINE}"].items()
    ]


def spoken(figure: dict[str, Any], factor: float = 1, form: str = "{:+.1f}") -> str:
    """A figure with its interval; a dash where it is not defined."""
    if figure["value"] is None:
        return "–"
    value, low, high = (form.format(factor * figure[k]) for k in ("value", "ci_low", "ci_high"))
    return f"{value} [{low}, {high}]".replace(" ", "\N{NO-BREAK SPACE}")
