"""What source bias is measured on: passages in several versions with queries and judgements, and their search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefloop.errors import UsageError
from prefloop.evaluate.retrieval_metrics import Found, Judgements, Run, Ties, Values, metric_names, metrics
from prefloop.evaluate.source_texts import Likeness, compare
from prefloop.retrieve.corpus import HUMAN, Passage, Qrels, Query
from prefloop.retrieve.retriever import Index, Retriever

HEADLINE = 10
"""The cut-off of the figures that are tested, and shown first."""
KS = (1, 3, 5, 10, 100)
DEPTH = 100
"""Passages that are found a query, at least."""


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        human: the source that the others are compared with.
        ks: cut-offs; 10 is always among them.
        no_hit: queries for which nothing is found `drop` out of the means (as published) or count as `zero`.
        ties: how equal scores are ordered in the main figures; the other way stands beside.
        titles: whether retrievers read "title text"; published figures are of the text alone.
        resamples, seed: of bootstraps and tests.
    """

    human: str = HUMAN
    ks: tuple[int, ...] = KS
    no_hit: str = "drop"
    ties: Ties = "trec"
    titles: bool = False
    resamples: int = 10_000
    seed: int = 0

    @property
    def cutoffs(self) -> list[int]:
        return sorted({*self.ks, HEADLINE})

    @property
    def depth(self) -> int:
        return max(DEPTH, *self.ks)


@dataclass(frozen=True)
class Task:
    """Passages that every source has, by source and id, with their queries and judgements."""

    texts: dict[str, dict[str, str]]
    queries: list[Query]
    qrels: Qrels
    left_out: dict[str, int]
    likeness: dict[str, dict[str, Likeness]]
    """Of each source but the human one, by passage."""
    queries_left_out: int = 0
    """Queries all of whose relevant passages are left out."""

    def length_matched(self, source: str) -> set[str]:
        """Ids of the passages whose version of this source is about as long as the human one."""
        return {name for name, one in self.likeness[source].items() if one.length_matched}

    @property
    def relevant(self) -> list[tuple[str, str]]:
        """(query id, passage id) of the relevant passages that are there."""
        here = next(iter(self.texts.values()))
        return [(q.id, d) for q in self.queries for d, grade in self.qrels[q.id].items() if grade > 0 and d in here]

    def judged(self, sources: Sequence[str], only: set[str] | None = None) -> Judgements:
        """The judgements pointed at these sources; of these passages only, and then of queries with a relevant one."""
        rows = {
            q.id: {(d, s): g for d, g in self.qrels[q.id].items() if only is None or d in only for s in sources}
            for q in self.queries
        }
        return rows if only is None else {q: r for q, r in rows.items() if any(g > 0 for g in r.values())}


def prepare(
    passages: Mapping[str, Sequence[Passage]], queries: Sequence[Query], qrels: Qrels, settings: Settings
) -> Task:
    """Keep the passages that all sources have: where one lacks its version, the others would win by default.

    Judgements of the passages left out go with them, and so do queries without another relevant passage: no ranking
    could serve those.

    Raises:
        UsageError: there is no human source, nothing to compare it with, or nothing in common.
    """
    if settings.human not in passages:
        raise UsageError(
            f"there is no source {settings.human} among {', '.join(passages)}",
            fix="name the source of the original passages with --human",
        )
    if len(passages) < 2:
        raise UsageError("there is only one source", fix="add corpus/<source>.jsonl with rewritten passages")
    order = [settings.human, *(s for s in passages if s != settings.human)]
    by_source = {s: {p.id: p.shown(settings.titles) for p in passages[s]} for s in order}
    shared = [name for name in by_source[settings.human] if all(name in texts for texts in by_source.values())]
    if not shared:
        raise UsageError("the sources have no passage id in common", fix="versions of a passage share its _id")
    left_out = {s: len(texts) - len(shared) for s, texts in by_source.items() if len(texts) > len(shared)}
    left = {name for texts in by_source.values() for name in texts}.difference(shared)
    kept = {q: {d: grade for d, grade in row.items() if d not in left} for q, row in qrels.items()}
    lost = {q for q, row in kept.items() if max(qrels[q].values(), default=0) > 0 >= max(row.values(), default=0)}
    asked = [q for q in queries if q.id in qrels and q.id not in lost]
    texts = {s: {name: by_source[s][name] for name in shared} for s in order}
    originals = texts[settings.human]
    likeness = {
        s: {name: compare(original, texts[s][name]) for name, original in originals.items()} for s in order[1:]
    }
    task = Task(texts, asked, kept, left_out, likeness, sum(q.id in lost for q in queries))
    if not task.relevant:
        raise UsageError(
            "no query has a relevant passage among them", fix="check that judgements and corpus belong together"
        )
    return task


@dataclass(frozen=True)
class Searched:
    """Sources searched together by one retriever."""

    index: Index
    run: Run


def search(retriever: Retriever, task: Task, sources: Sequence[str], settings: Settings) -> Searched:
    """All queries against the passages of these sources, mixed."""
    documents = [(name, s) for s in sources for name in task.texts[s]]
    index = retriever.index([task.texts[s][name] for name, s in documents])
    hits = index.search([q.text for q in task.queries], settings.depth)
    run = {
        q.id: [Found(documents[h.position], h.score) for h in found]
        for q, found in zip(task.queries, hits, strict=True)
        if found
    }
    return Searched(index, run)


def judge(run: Run, judgements: Judgements, settings: Settings, ties: Ties) -> Values:
    """Metrics by query; of a query without hits none, or zeros."""
    values = metrics(run, judgements, settings.cutoffs, ties)
    if settings.no_hit == "zero":
        names = metric_names(settings.cutoffs)
        values |= {q: dict.fromkeys(names, 0.0) for q in judgements if q not in values}
    return values
