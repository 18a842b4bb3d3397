"""Scores of rewrites by retrievers: by how much each is put above, or below, the human text that it rewrites.

    favour(query, rewrite) = score(query, rewrite) - score(query, human text)

for every query that is judged relevant to the passage; a rewrite's score is the mean over these queries, and above 0
the retriever prefers it to the text that a person wrote (Dai et al. 2025, LLM-SBM). Single pairs are scored directly:
no index, and no cut at the best k. What the published code does, both texts in one run of the best k over human and
rewritten passages, is `top_k`; there `by: rank` takes ranks for scores.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from prefloop.backends.base import Backend, Logits, PairScoreRequest, Result
from prefloop.config import RetrieverSection, RetrieverSignalSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.inputs.identity import collection_digest
from prefloop.records import CandidatesRow, PartScores
from prefloop.retrieve.corpus import Query, read_collection
from prefloop.signals.base import Call, Rating
from prefloop.store.fingerprint import Memo

QUERY, SIMILARITY = "query/", "similarity"
"""Parts of a scored row: favours by one query (its id behind the slash), and cosines to the human text."""

Run = Mapping[tuple[str, str], float]
"""(document, version) -> score, in one ranking of the passages for a query."""


@dataclass(frozen=True)
class Judged:
    """The queries of each passage.

    Attributes:
        queries: document id -> queries judged relevant to it, in the order of the judgments.
        left_out: pairs of a passage and a query that the measurement uses.
    """

    queries: Mapping[str, Sequence[Query]]
    left_out: int = 0


def judged(section: RetrieverSignalSection, kept_out: frozenset[str] = frozenset()) -> Judged:
    """Read the judgments of a section.

    Args:
        kept_out: texts of queries that are measured on.

    Raises:
        UsageError: there is no such collection, or it has no queries or judgments.
    """
    found = read_collection(section.judgments, section.split, [], judged=True)
    queries: dict[str, list[Query]] = {}
    texts = {query.id: query for query in found.queries}
    left_out = 0
    for name, grades in found.qrels.items():
        for document, grade in grades.items():
            if grade < section.min_grade:
                continue
            if texts[name].text in kept_out:
                left_out += 1
                continue
            queries.setdefault(document, []).append(texts[name])
    return Judged(queries, left_out)


class RetrieverSignal:
    """Signal `retriever`.

    Args:
        section: the recipe's.
        judgments: the passages' queries.

    Attributes:
        scales: of each retriever's scores; see `prepare`.
        runs: retriever -> version -> query text -> its run; see `prepare`.
    """

    pairwise = False

    def __init__(self, section: RetrieverSignalSection, judgments: Judged, memo: Memo | None = None) -> None:
        self.section, self.judgments = section, judgments
        self.name = ":".join(["retriever", *(retriever.name for retriever in section.retrievers)])
        self.identity = identity(section, memo)
        self.scales = dict.fromkeys(section.names, 1.0)
        self.runs: dict[str, dict[str, dict[str, Run]]] = {}

    def prepare(
        self,
        rows: Sequence[CandidatesRow],
        backends: Mapping[str, Backend],
        searcher: Callable[[RetrieverSection], Any],
    ) -> None:
        """What takes all rows at once: the scales of several retrievers, and the runs of `top_k`.

        A scale is the standard deviation of a retriever's scores of the human texts for their queries: its scores are
        z-normalised by it, and their mean cancels out of every difference. A single retriever's are taken as they are.

        Args:
            rows: all that will be rated.
            backends: as for the driver.
            searcher: opens a retriever that can make an index (`retrieve.retriever.open_retriever`).
        """
        if len(self.section.retrievers) > 1 and self.section.by == "score":
            pairs = [(query.text, _human(row)) for row in rows for query in self._queries(row)]
            for name in self.section.names:
                results = backends[name].answer([PairScoreRequest(pair) for pair in pairs])
                scores = [result.values[0] for result in results if isinstance(result, Logits)]
                spread = pstdev(scores) if scores else 0.0
                if not spread > 0:
                    raise PrefloopError(
                        f"gives {len(scores)} human texts one and the same score: it cannot be averaged with others",
                        where=name,
                        fix="take it out of rate.retrievers",
                    )
                self.scales[name] = spread
        if self.section.top_k is not None:
            for name, retriever in zip(self.section.names, self.section.retrievers, strict=True):
                opened = searcher(retriever)
                self.runs[name] = self._search(rows, opened, self.section.top_k)
                opened.close()

    def _search(self, rows: Sequence[CandidatesRow], retriever: Any, k: int) -> dict[str, dict[str, Run]]:
        """For each version (wording, or n-th answer to it) the runs of all queries over it and the human texts."""
        human = {(_document(row), ""): _human(row) for row in rows}
        versions: dict[str, dict[tuple[str, str], str]] = {}
        for row in rows:
            for version, completion in zip(_versions(row), row["completions"], strict=True):
                versions.setdefault(version, {})[_document(row), version] = completion["text"]
        queries = list(dict.fromkeys(query.text for row in rows for query in self._queries(row)))
        found: dict[str, dict[str, Run]] = {}
        for version, texts in versions.items():
            keys = [*human, *texts]
            hits = retriever.index([*human.values(), *texts.values()]).search(queries, k)
            found[version] = {
                query: {keys[hit.position]: hit.score for hit in ranking[:k]}
                for query, ranking in zip(queries, hits, strict=True)
            }
        return found

    def rate(self, row: CandidatesRow) -> Generator[list[Call], list[Result], Rating]:
        """One call for each query, text and retriever, and one for each text's cosine to the human text.

        Counts: judged (passages with a query), queries (of them), favoured (rewrites above the human text, of
        `compared` pairs of a rewrite and a query), straddled (queries with a rewrite on either side).

        Raises:
            UsageError: an answer is no rewrite of a passage.
        """
        texts, queries = [completion["text"] for completion in row["completions"]], self._queries(row)
        human = _human(row)
        names = self.section.names if self.section.top_k is None else []
        calls = [
            Call(name, PairScoreRequest((query.text, text)))
            for name in names
            for query in queries
            for text in (human, *texts)
        ]
        if queries and self.section.similarity is not None:
            calls += [Call(SIMILARITY, PairScoreRequest((human, text))) for text in texts]
        results = iter((yield calls)) if calls else iter(())

        def scores(count: int) -> list[float | None]:
            some = [next(results) for _ in range(count)]
            return [result.values[0] if isinstance(result, Logits) else None for result in some]

        by_name: dict[str, list[list[float | None]]] = {}
        for name in self.section.names:
            if self.section.top_k is not None:
                by_name[name] = [self._in_runs(name, query, row) for query in queries]
            else:
                both = [scores(1 + len(texts)) for _ in queries]
                by_name[name] = [[_minus(s, own) for s in others] for own, *others in both]
        likeness = scores(len(texts)) if queries and self.section.similarity is not None else None
        favours = [
            [
                _mean([_over(by_name[name][q][place], self.scales[name]) for name in by_name])
                for place in range(len(texts))
            ]
            for q in range(len(queries))
        ]
        parts = [PartScores(name=QUERY + query.id, scores=some) for query, some in zip(queries, favours, strict=True)]
        if likeness is not None:
            parts.append(PartScores(name=SIMILARITY, scores=likeness))
        if len(by_name) > 1:
            parts += [
                PartScores(name=f"retriever/{name}", scores=_columns(some, len(texts)))
                for name, some in by_name.items()
            ]
        known = [f for some in favours for f in some if f is not None]
        counts = {
            "judged": float(bool(queries)),
            "queries": float(len(queries)),
            "compared": float(len(known)),
            "favoured": float(sum(f > 0 for f in known)),
            "straddled": float(sum(_straddles(some) for some in favours)),
        }
        return Rating(_columns(favours, len(texts)), counts, parts)

    def _queries(self, row: CandidatesRow) -> Sequence[Query]:
        return self.judgments.queries.get(_document(row), ())

    def _in_runs(self, name: str, query: Query, row: CandidatesRow) -> list[float | None]:
        document = _document(row)
        return [
            in_run(self.runs[name][version][query.text], (document, ""), (document, version), self.section.by)
            for version in _versions(row)
        ]


def counting(retriever: RetrieverSection, judgments: str) -> RetrieverSection:
    """The section; BM25 without a corpus counts the words of the collection that the judgments belong to."""
    if retriever.path != "bm25" or retriever.corpus is not None:
        return retriever
    return retriever.model_copy(update={"corpus": judgments})


def in_run(run: Run, human: tuple[str, str], other: tuple[str, str], by: str) -> float:
    """By how much one ranking favours a version of a passage over the human text.

    Args:
        run: best first, or in any order where scores differ; equal ones keep theirs.
        by: `score`: the difference of scores; `rank`: by how many places it stands higher, counted from 1.

    Returns:
        0 where one of the two was not found.
    """
    if human not in run or other not in run:
        return 0.0
    if by == "score":
        return run[other] - run[human]
    places = {key: place for place, key in enumerate(sorted(run, key=lambda key: -run[key]))}
    return float(places[human] - places[other])


def identity(section: RetrieverSignalSection, memo: Memo | None = None) -> dict[str, Any]:
    """Everything that changes a score; encoders by their digests. Loads nothing.

    Raises:
        UsageError: there is no such collection of judgments.
    """
    from prefloop.retrieve.retriever import retriever_identity

    settings = section.model_dump(exclude={"retrievers", "similarity", "judgments"})
    return settings | {
        "judgments": collection_digest(section.judgments, memo),
        "retrievers": [retriever_identity(retriever, memo) for retriever in section.retrievers],
        "similarity": None if section.similarity is None else retriever_identity(section.similarity, memo),
    }


def card(counts: Mapping[str, float]) -> str | None:
    """How often the retrievers prefer a rewrite, in one line."""
    if not counts.get("compared"):
        return None
    return (
        f"the retriever prefers {counts['favoured'] / counts['compared']:.0%} of the rewrites to the human text; "
        f"{counts['straddled'] / max(counts['queries'], 1):.0%} of {counts['queries']:,.0f} queries have rewrites on "
        "both sides of it"
    )


def _document(row: CandidatesRow) -> str:
    if not row["completions"] or "rewrite" not in row["completions"][0]:
        raise UsageError(
            "these answers are no rewrites of passages", fix="set prompts.format=passages and sample.rewrite={}"
        )
    return row["completions"][0]["rewrite"]["document"]


def _human(row: CandidatesRow) -> str:
    return row["prompt"][-1]["content"]


def _versions(row: CandidatesRow) -> list[str]:
    """A name for each rewrite, the same over passages: its wording, numbered where there are several of one."""
    seen: dict[str, int] = {}
    names = []
    for completion in row["completions"]:
        variant = completion["rewrite"]["variant"]
        seen[variant] = number = seen.get(variant, 0) + 1
        names.append(variant if number == 1 else f"{variant}#{number}")
    return names


def _minus(score: float | None, human: float | None) -> float | None:
    return None if score is None or human is None else score - human


def _over(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them is: on another scale than the rest."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _columns(rows: Sequence[Sequence[float | None]], width: int) -> list[float | None]:
    return [_mean([row[place] for row in rows]) for place in range(width)]


def _straddles(favours: Sequence[float | None]) -> bool:
    known = [f for f in favours if f is not None]
    return bool(known) and min(known) < 0 < max(known)
