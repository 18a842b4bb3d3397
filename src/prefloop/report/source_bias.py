"""The page of `prefloop evaluate source-bias`: Relative Δ with intervals, win rates, score gaps, texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefloop.evaluate.stats import says_nothing
from prefloop.report.charts import histogram, interval
from prefloop.report.render import render


def render_source_bias(summary: Mapping[str, Any], gaps: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The page as HTML.

    Args:
        summary: as `measure.source_bias.measure` gives it.
        gaps: retriever -> source -> score of the human version minus that of the source, of each relevant pair.
    """
    found = summary["evaluate"]["source_bias"]
    entries = [
        (f"{name}", source, entry, delta)
        for name, entry in found.items()
        for source, delta in entry["relative_delta@10"].items()
    ]
    deltas = delta_rows((name, source, delta) for name, source, _, delta in entries)
    for row, (_, source, entry, delta) in zip(deltas, entries, strict=True):
        other = "neutral" if entry["ties"] == "trec" else "trec"
        row["ties"], row["other_ties"], row["other"] = entry["ties"], other, delta[other]
        ends = {k: round(delta[k], 9) for k in ("ci_low", "ci_high") if delta[k] is not None}
        row["says_nothing"] = bool(ends) and says_nothing({**ends, "n": delta["n"]})
        row["matched"] = delta["length_matched"]
        row["alone"] = [entry["alone"][s]["ndcg@10"] for s in (summary["corpus"]["human"], source)]
        row["ndcg"] = [entry["ndcg@10"][t] for t in ("all", summary["corpus"]["human"], source)]
        row["queries"], row["no_hit"], row["no_hit_queries"] = (
            entry["queries"],
            entry["no_hit"],
            entry["no_hit_queries"],
        )
        wins = entry["win_rate"][source]
        row["wins"] = wins
        row["wins_picture"] = None
        if wins["value"] is not None:
            label = f"{row['retriever']}, {source}: {wins['value']:.1%}"
            row["wins_picture"] = interval(
                wins["value"], wins["ci_low"], wins["ci_high"], label, axis=(0.0, 1.0), centre=0.5
            )
    return render(
        {
            "corpus": summary["corpus"],
            "rows": deltas,
            "texts": summary["evaluate"]["source_texts"],
            "gaps": gap_figures(gaps),
        },
        "source_bias.html.j2",
    )


def delta_rows(figures: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """(retriever, source, Relative Δ) as rows with a picture each, all on one scale around 0.

    A figure that is not defined has no picture.
    """
    rows = [{"retriever": name, "source": source, **figure} for name, source, figure in figures]
    ends = [abs(row[k]) for row in rows for k in ("value", "ci_low", "ci_high") if row[k] is not None]
    reach = min(200.0, 1.1 * max(ends, default=10.0)) or 10.0
    for row in rows:
        row["picture"] = None
        if row["value"] is not None:
            label = f"{row['retriever']}, {row['source']}: {row['value']:+.1f} %"
            row["picture"] = interval(
                row["value"], row["ci_low"], row["ci_high"], label, axis=(-reach, reach), centre=0.0
            )
    return rows


def gap_figures(gaps: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """A histogram of the score gaps of each retriever, its sources over one another in up to four colours."""
    found = []
    for name, by_source in gaps.items():
        groups = [(source, values, i % 4) for i, (source, values) in enumerate(by_source.items())]
        picture = histogram(groups, f"score gaps of {name}")
        if picture is not None:
            found.append({"retriever": name, "picture": picture, "sources": [(s, c) for s, _, c in groups]})
    return found
