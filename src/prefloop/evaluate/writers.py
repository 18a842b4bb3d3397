"""Source bias of writers: whether retrievers prefer an aligned model's rewrites less than the base model's.

Held-out passages are there in three versions or more: as people wrote them, as the base and as each aligned model
rewrote them. Every model's versions are mixed with the human ones and searched by the same queries
(`source_protocol.compare_sources`); and how the rewrites read is told beside it, as a writer can look unbiased by
being short, by copying, or by saying something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefloop.errors import UsageError
from prefloop.evaluate import source_texts
from prefloop.evaluate.source_protocol import Step, compare_sources
from prefloop.evaluate.source_task import HEADLINE, Settings
from prefloop.retrieve.corpus import HUMAN, Passage, Qrels, Query
from prefloop.retrieve.retriever import Retriever

BASE = "base"
DELTA = f"relative_delta@{HEADLINE}"
GAPS = "score_gaps"
"""Scores of the human versions minus those of a model's, of each relevant pair."""


def measure_writers(
    human: Mapping[str, str],
    rewrites: Mapping[str, Mapping[str, str]],
    queries: Sequence[Query],
    qrels: Qrels,
    retrievers: Mapping[str, Retriever],
    settings: Settings,
    *,
    similarity: Callable[[Sequence[tuple[str, str]]], Sequence[float]] | None = None,
    on_step: Step | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Source bias of every model's rewrites, and how they read.

    Args:
        human: document id -> text of the held-out passages.
        rewrites: model -> document id -> its text; `base` is among them. What one lacks, none is measured on.
        queries, qrels: judged documents that are not held out are left out.
        retrievers: by the names that they are reported under.
        similarity: cosines of (human, rewrite).

    Returns:
        source_bias: by retriever `queries` and, by model, `ndcg@10` (of its mix with the human texts: `human`, its
        own, and `all`), `relative_delta@10` in percent, `win_rate` and `score_gaps`; of each model but the base
        `change` (of Relative Δ, in points) and `gap_closed` (1: none is left), see `source_protocol.compare_sources`.
        source_texts: by model what `source_texts.describe` says.

    Raises:
        UsageError: no query has a relevant passage among them.
    """
    shared = [name for name in human if all(name in texts for texts in rewrites.values())]
    here = set(shared)
    of_these = {query: {d: g for d, g in grades.items() if d in here} for query, grades in qrels.items()}
    judged = {query: grades for query, grades in of_these.items() if any(grade > 0 for grade in grades.values())}
    if not judged:
        raise UsageError(
            f"no query is judged relevant to any of the {len(shared)} held-out passages",
            where="evaluate.source_bias.judgments",
            fix="give judgments of these passages, or hold out more of them",
        )
    versions = {
        source: [Passage(name, source, "", texts[name]) for name in shared]
        for source, texts in {HUMAN: human, **rewrites}.items()
    }
    others = [name for name in rewrites if name != BASE]
    asked = [query for query in queries if query.id in judged]
    found = compare_sources(versions, asked, judged, retrievers, BASE, others, settings, on_step=on_step)
    bias: dict[str, Any] = {}
    for name, by_source in found.items():
        entry: dict[str, Any] = {"queries": by_source[BASE]["queries"], "passages": len(shared)}
        for key in (f"ndcg@{HEADLINE}", DELTA, "win_rate", "no_hit", GAPS):
            entry[key] = {source: said[key] for source, said in by_source.items()}
        entry["change"] = {source: by_source[source]["difference"] for source in others}
        entry["gap_closed"] = {source: by_source[source]["gap_closed"] for source in others}
        bias[name] = entry
    texts = {
        source: source_texts.describe(
            {name: human[name] for name in shared}, {name: own[name] for name in shared}, similarity, shared
        )
        for source, own in rewrites.items()
    }
    return bias, texts


def lines(bias: Mapping[str, Any], texts: Mapping[str, Any]) -> list[str]:
    """What people read of it: a line a retriever and model, and one for the texts of each model."""
    told = []
    for retriever, entry in bias.items():
        for model, change in entry["change"].items():
            before, after = (_points(entry[DELTA][source]) for source in (BASE, model))
            closed = entry["gap_closed"][model]
            share = "" if closed["value"] is None else f", {100 * closed['value']:.0f} % of the gap closed"
            name = "" if model == "aligned" else f" of {model}"
            told.append(
                f"source bias by {retriever}{name}: Relative Δ@{HEADLINE} {before} → {after} on {entry['queries']} "
                f"queries{share}: {_verdict(change)}"
            )
    for model, said in texts.items():
        likeness = f", cosine {said['similarity']['value']:.3f}" if "similarity" in said else ""
        faults = sum(said.get("faults", {}).values())
        told.append(
            f"  rewrites by {model}: {said['length_ratio']['value']:.2f} of the human length, "
            f"{100 * said['copied']['value']:.1f} % copies{likeness}" + (f", {faults} with a fault" if faults else "")
        )
    return told


def _points(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "not defined"
    return f"{figure['value']:+.1f} [{figure['ci_low']:+.1f}, {figure['ci_high']:+.1f}]"


def _verdict(change: Mapping[str, Any]) -> str:
    if change["value"] is None:
        return "not defined"
    tested = f"p = {change['p_holm']:.2g} after Holm's correction"
    return f"{change['verdict']} by {change['value']:+.1f} points ({tested})"
