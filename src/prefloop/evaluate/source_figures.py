"""Figures of one retriever's source bias: metrics by target, Relative Δ, win rates, with intervals over queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from prefloop.evaluate.retrieval_metrics import Ties, Values, metric_names, source_rate, tied_share
from prefloop.evaluate.source_bias import relative_delta_interval
from prefloop.evaluate.source_task import HEADLINE, Searched, Settings, Task, judge
from prefloop.evaluate.stats import bootstrap_means, randomisation_test
from prefloop.intervals import Interval
from prefloop.retrieve.retriever import Index


def mixed_figures(searched: Searched, task: Task, settings: Settings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of the mixed run, and their rows by query."""
    run, sources, human = searched.run, list(task.texts), settings.human
    other_ties: Ties = "neutral" if settings.ties == "trec" else "trec"
    targets = {**{s: task.judged([s]) for s in sources}, "all": task.judged(sources)}
    values = {target: judge(run, judged, settings, settings.ties) for target, judged in targets.items()}
    beside = {s: judge(run, targets[s], settings, other_ties) for s in sources}
    means = {target: mean_values(found, settings) for target, found in values.items()}
    entry: dict[str, Any] = {
        "queries": len(values["all"]),
        "no_hit": len(task.queries) - len(run),
        "no_hit_queries": "dropped" if settings.no_hit == "drop" else "zero",
        "ties": settings.ties,
        "tied_places@10": tied_share(run, HEADLINE),
    }
    for name in metric_names(settings.cutoffs):
        entry[name] = {target: found[name] for target, found in means.items()}
    for k in settings.cutoffs:
        entry[f"relative_delta@{k}"] = {
            s: delta(values[human], values[s], f"ndcg@{k}", settings) for s in sources if s != human
        }
    for s in sources:
        if s == human:
            continue
        headline = entry[f"relative_delta@{HEADLINE}"][s]
        name = f"ndcg@{HEADLINE}"
        shifts = [v[name] - values[s][q][name] for q, v in values[human].items()]
        headline["p_value"] = randomisation_test(shifts, settings.resamples, settings.seed) if shifts else 1.0
        headline[other_ties] = delta(beside[human], beside[s], name, settings)
        headline["map"] = delta(values[human], values[s], f"map@{HEADLINE}", settings)
        only = task.length_matched(s)
        ours, theirs = (judge(run, task.judged([t], only), settings, settings.ties) for t in (human, s))
        headline["length_matched"] = delta(ours, theirs, name, settings) | {"passages": len(only)}
    for s in sources:
        rates = source_rate(run, s, settings.cutoffs, settings.ties)
        for k in settings.cutoffs if rates else ():
            label = "human_rate" if s == human else "source_rate"
            mean = sum(v[f"rate@{k}"] for v in rates.values()) / len(rates)
            if s == human:
                entry[f"{label}@{k}"] = mean
            else:
                entry.setdefault(f"{label}@{k}", {})[s] = mean
    rows = [{"query": q, "target": target, **v} for target, found in values.items() for q, v in found.items()]
    return entry, rows


def win_rates(index: Index, task: Task, settings: Settings) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """P(score of the human version > that of another) over relevant pairs; equal scores count half.

    Pairs are scored directly, whether or not a search would find them. Queries are what is resampled.

    Returns:
        By source the rate with its interval, all of it also for passages of matched lengths; and the score gaps,
        human minus other.
    """
    pairs, texts = task.relevant, task.texts
    asked = {q.id: q.text for q in task.queries}
    scores = {s: index.pair_scores([(asked[q], texts[s][d]) for q, d in pairs]) for s in texts}
    found: dict[str, Any] = {}
    gaps: dict[str, list[float]] = {}
    for source in texts:
        if source == settings.human:
            continue
        gap = [a - b for a, b in zip(scores[settings.human], scores[source], strict=True)]
        only = task.length_matched(source)
        matched = [(pair, g) for pair, g in zip(pairs, gap, strict=True) if pair[1] in only]
        found[source] = _win_rate(list(zip(pairs, gap, strict=True)), settings) | {
            "length_matched": _win_rate(matched, settings)
        }
        gaps[source] = gap
    return found, gaps


def _win_rate(gaps: Sequence[tuple[tuple[str, str], float]], settings: Settings) -> dict[str, Any]:
    import numpy as np

    if not gaps:
        return nullable(Interval(math.nan, math.nan, math.nan)) | {"pairs": 0, "ties": 0, "queries": 0}
    by_query: dict[str, list[float]] = {}
    for (query, _), gap in gaps:
        by_query.setdefault(query, []).append(0.5 if gap == 0 else float(gap > 0))
    columns = np.array([[sum(wins), len(wins)] for wins in by_query.values()])
    rate = bootstrap_means(columns, lambda m_RC: m_RC[:, 0] / m_RC[:, 1], settings.resamples, settings.seed)
    counts = {"pairs": len(gaps), "ties": sum(gap == 0 for _, gap in gaps), "queries": len(by_query)}
    return nullable(rate) | counts


def delta(human: Values, other: Values, name: str, settings: Settings) -> dict[str, Any]:
    """Relative Δ of a metric with its interval; nulls where neither version was found by any query."""
    pairs = [(v[name], other[q][name]) for q, v in human.items() if q in other]
    if not pairs:
        return nullable(Interval(math.nan, math.nan, math.nan)) | {"n": 0}
    found = relative_delta_interval([a for a, _ in pairs], [b for _, b in pairs], settings.resamples, settings.seed)
    return nullable(found) | {"n": len(pairs)}


def nullable(interval: Interval) -> dict[str, Any]:
    """JSON has no NaN: null says that a figure is not defined."""
    return {k: None if math.isnan(v) else v for k, v in interval.json().items()}


def mean_values(values: Values, settings: Settings) -> dict[str, float | None]:
    """Each metric's mean over queries; None of no query."""
    names = metric_names(settings.cutoffs)
    return {name: sum(v[name] for v in values.values()) / len(values) if values else None for name in names}
