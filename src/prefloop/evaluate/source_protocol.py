"""Source bias of retrievers on passages in several versions, after Cocktail (Dai et al. 2024).

A source is where a version comes from: `human`, or a model that rewrote the passage. For every retriever: each source
searched alone, which says whether its texts still serve; and all of them searched together, with the judgements
pointed at one source at a time, and at all. Relative Δ compares the first two of these (`source_bias`); the win rate
compares the scores of a relevant passage's versions directly, without a ranking.

`measure_sources` is pure but for the retrievers it is given: passages, queries and judgements in memory, a summary
out. `compare_sources` says how much of the bias of one source another one has left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefloop.errors import UsageError
from prefloop.evaluate import source_texts
from prefloop.evaluate.contrasts import decide
from prefloop.evaluate.retrieval_metrics import Values
from prefloop.evaluate.source_bias import relative_deltas
from prefloop.evaluate.source_figures import mean_values, mixed_figures, nullable, win_rates
from prefloop.evaluate.source_task import HEADLINE, Settings, Task, judge, prepare, search
from prefloop.evaluate.stats import bootstrap_means, randomisation_test
from prefloop.retrieve.corpus import Passage, Qrels, Query
from prefloop.retrieve.retriever import EncoderRetriever, Retriever

Step = Callable[[str, int, int], None]
"""Told what is done: words, done, total."""


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        retrievers: by name; the part `source_bias` of summary.json.
        texts: by source; the part `source_texts`.
        left_out: passages that some source lacks, by source that has them.
        queries_left_out: queries all of whose relevant passages are among those.
        queries: rows of query, retriever, target and metrics.
        gaps: retriever -> source -> score of the human version minus that of the source, a relevant pair each.
    """

    retrievers: dict[str, dict[str, Any]]
    texts: dict[str, dict[str, Any]]
    left_out: dict[str, int]
    queries_left_out: int = 0
    queries: list[dict[str, Any]] = field(default_factory=list)
    gaps: dict[str, dict[str, list[float]]] = field(default_factory=dict)


def measure_sources(
    passages: Mapping[str, Sequence[Passage]],
    queries: Sequence[Query],
    qrels: Qrels,
    retrievers: Mapping[str, Retriever],
    settings: Settings | None = None,
    *,
    semantic: EncoderRetriever | None = None,
    on_step: Step | None = None,
    on_task: Callable[[Task], None] | None = None,
) -> Measured:
    """The whole protocol.

    Args:
        passages: by source; versions of a passage share its id.
        queries, qrels: with judgements of ids, which hold for every version.
        retrievers: by the names under which they are reported.
        semantic: an encoder that says how near a rewrite's meaning is to the human text's.
        on_step: told of progress.
        on_task: told, before anything is computed, what is measured on.

    Raises:
        UsageError: as for `prepare`.
    """
    settings = settings or Settings()
    task = prepare(passages, queries, qrels, settings)
    others = [s for s in task.texts if s != settings.human]
    if on_task is not None:
        on_task(task)
    measured = Measured({}, {}, task.left_out, task.queries_left_out)
    steps, done = len(retrievers) * (len(task.texts) + 2) + len(others), 0

    def step(label: str) -> None:
        nonlocal done
        if on_step is not None:
            on_step(label, done, steps)
        done += 1

    similar = None if semantic is None else lambda pairs: _cosines(semantic, pairs)
    relevant = list(dict.fromkeys(d for _, d in task.relevant))
    for source in others:
        step(f"texts of {source}")
        measured.texts[source] = source_texts.describe(
            task.texts[settings.human], task.texts[source], similar, relevant, task.likeness[source]
        )
    for name, retriever in retrievers.items():
        step(f"{name}: all sources together")
        together = search(retriever, task, list(task.texts), settings)
        entry, rows = mixed_figures(together, task, settings)
        step(f"{name}: pairs")
        entry["win_rate"], measured.gaps[name] = win_rates(together.index, task, settings)
        del together  # memory holds one index at a time
        alone: dict[str, Any] = {}
        for source in task.texts:
            step(f"{name}: {source} alone")
            values = judge(
                search(retriever, task, [source], settings).run, task.judged([source]), settings, settings.ties
            )
            alone[source] = mean_values(values, settings) | {"queries": len(values)}
            rows += [{"query": q, "target": f"{source} alone", **v} for q, v in values.items()]
        entry["alone"] = alone
        measured.retrievers[name] = entry
        measured.queries.extend({"retriever": name, **row} for row in rows)
    decide([e["relative_delta@10"][s] for e in measured.retrievers.values() for s in others])
    return measured


def compare_sources(
    passages: Mapping[str, Sequence[Passage]],
    queries: Sequence[Query],
    qrels: Qrels,
    retrievers: Mapping[str, Retriever],
    base: str,
    others: Sequence[str],
    settings: Settings | None = None,
    *,
    on_step: Step | None = None,
) -> dict[str, dict[str, Any]]:
    """How much less biased retrievers are to some sources than to a base, on the same passages and queries.

    Each source is mixed with the human texts alone, as in Cocktail, so that rewrites do not compete with each other.

    Args:
        passages: of the human source, of `base` and of `others`.
        base: the source before, such as rewrites by the unaligned model.
        others: the sources after.

    Returns:
        By retriever and source: ndcg@10 of both targets and of all, relative_delta@10, win_rate and score_gaps (human
        minus source, a relevant pair each) as in `measure_sources`; of `others` also `difference`, the Relative Δ
        minus the base's, in points, and `gap_closed`, 1 - Δ / Δ of the base (1: no bias is left, 0: all of it, below
        0: more; null where the base has none), both with a paired bootstrap over queries, and p_value, p_holm and
        verdict of the difference.
    """
    import numpy as np

    settings = settings or Settings()
    wanted = {s: passages[s] for s in dict.fromkeys([settings.human, base, *others])}
    task = prepare(wanted, queries, qrels, settings)
    name, steps = f"ndcg@{HEADLINE}", len(retrievers) * (1 + len(others))
    found: dict[str, dict[str, Any]] = {}
    contrasts = []
    for number, (label, retriever) in enumerate(retrievers.items()):
        found[label] = {}
        by_source: dict[str, tuple[Values, Values]] = {}
        for place, source in enumerate([base, *others]):
            if on_step is not None:
                on_step(f"{label}: {source}", number * (1 + len(others)) + place, steps)
            two = {s: task.texts[s] for s in (settings.human, source)}
            pair = Task(two, task.queries, task.qrels, task.left_out, task.likeness)
            searched = search(retriever, pair, list(pair.texts), settings)
            entry, _ = mixed_figures(searched, pair, settings)
            rates, gaps = win_rates(searched.index, pair, settings)
            kept = ("queries", "no_hit", "ties", "ndcg@10")
            found[label][source] = {k: entry[k] for k in kept} | {
                "relative_delta@10": entry["relative_delta@10"][source],
                "win_rate": rates[source],
                "score_gaps": gaps[source],
            }
            sides = [judge(searched.run, pair.judged([s]), settings, settings.ties) for s in (settings.human, source)]
            by_source[source] = (sides[0], sides[1])
        for source in others:
            both = [q for q in by_source[base][0] if q in by_source[source][0]]
            if not both:
                where = f"{label}: {base} and {source}"
                raise UsageError("no query has hits with both", where=where, fix="count them: no_hit zero")
            table_NC = np.array(
                [[by_source[s][side][q][name] for s in (source, base) for side in (0, 1)] for q in both]
            )
            change = bootstrap_means(
                table_NC,
                lambda m_RC: relative_deltas(m_RC[:, :2]) - relative_deltas(m_RC[:, 2:]),
                settings.resamples,
                settings.seed,
            )
            closed = bootstrap_means(table_NC, _closed, settings.resamples, settings.seed)
            # Per query, what the change of Relative Δ is made of: human minus rewrite, after minus before.
            shifts_N = (table_NC[:, 0] - table_NC[:, 1]) - (table_NC[:, 2] - table_NC[:, 3])
            difference = nullable(change) | {
                "p_value": randomisation_test(shifts_N.tolist(), settings.resamples, settings.seed),
                "n": len(both),
            }
            found[label][source] |= {"difference": difference, "gap_closed": nullable(closed)}
            contrasts.append(difference)
    decide(contrasts)
    return found


def _closed(means_RC: Any) -> Any:
    import numpy as np

    after_R, before_R = relative_deltas(means_RC[:, :2]), relative_deltas(means_RC[:, 2:])
    return 1 - after_R / np.where(before_R == 0, np.nan, before_R)


def _cosines(encoder: EncoderRetriever, pairs: Sequence[tuple[str, str]]) -> list[float]:
    import numpy as np

    sides_ND = [encoder.embed([pair[side] for pair in pairs]) for side in (0, 1)]
    norms_N = np.prod([np.linalg.norm(side, axis=1) for side in sides_ND], axis=0)
    dots_N = np.einsum("nd,nd->n", *sides_ND, dtype=np.float64)
    cosines: list[float] = (dots_N / np.where(norms_N == 0, 1, norms_N)).tolist()
    return cosines
