"""The drawn parts of a report: measures with intervals, training curves, histograms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from prefloop.evaluate.stats import says_nothing
from prefloop.report.charts import Line, before_after, histogram, interval, line_chart
from prefloop.store.stagedir import StageDir

TRAIN, VALIDATION = "train", "validation"
# title, what it shows, (kind of record and key in metrics.jsonl, name in the legend, colour)
CURVES: tuple[tuple[str, str, tuple[tuple[str, str, str, int], ...]], ...] = (
    ("Loss", "mean over what is trained on", ((TRAIN, "loss", "training", 0), (VALIDATION, "loss", "validation", 1))),
    (
        "Rewards",
        "implicit: β × (log-prob − reference's)",
        ((TRAIN, "rewards/chosen", "chosen", 0), (TRAIN, "rewards/rejected", "rejected", 1)),
    ),
    (
        "Margin",
        "reward of chosen minus rejected",
        ((TRAIN, "rewards/margins", "training", 0), (VALIDATION, "rewards/margins", "validation", 1)),
    ),
    (
        "Accuracy",
        "share of pairs with the higher reward for chosen",
        ((TRAIN, "rewards/accuracies", "training", 0), (VALIDATION, "rewards/accuracies", "validation", 1)),
    ),
    (
        "Log-probabilities",
        "of whole answers, natural log",
        ((TRAIN, "logps/chosen", "chosen", 0), (TRAIN, "logps/rejected", "rejected", 1)),
    ),
    ("Learning rate", "", ((TRAIN, "learning_rate", "learning rate", 3),)),
)


def measures(evaluate: dict[str, Any]) -> list[dict[str, Any]]:
    """Checkers of all groups: rates of both models, and their difference with its interval, drawn."""
    found = []
    for group, entries in evaluate.items():
        if not isinstance(entries, dict):
            continue
        for name, entry in entries.items():
            if not isinstance(entry, dict) or "difference" not in entry:
                continue
            change = entry["difference"]
            before = entry["base"] if "base" in entry else entry["plain"]
            reach = max(0.1, *(abs(change[k]) for k in ("value", "ci_low", "ci_high")))
            empty = says_nothing(change | {"n": entry["n"]})
            above, below = ("worse", "better") if entry.get("lower_is_better") else ("better", "worse")
            verdict = (
                "same" if empty else above if change["ci_low"] > 0 else below if change["ci_high"] < 0 else "same"
            )
            found.append(
                {
                    "group": group,
                    "name": name.replace("_", " "),
                    "base": before,
                    "aligned": entry["aligned"],
                    "n": entry["n"],
                    "excluded": entry.get("excluded", 0),
                    "difference": change,
                    "verdict": verdict,
                    "lower_is_better": entry.get("lower_is_better", False),
                    "says_nothing": empty,
                    "reach": reach,
                    "picture": before_after(
                        before, entry["aligned"], f"{name}: {before:.3f} to {entry['aligned']:.3f}"
                    ),
                }
            )
    # One scale for all of them, so that their changes compare.
    widest = min(1.0, 1.1 * max((m["reach"] for m in found), default=0.1))
    for measure in found:
        change = measure["difference"]
        measure["change_picture"] = interval(
            *(change["value"], change["ci_low"], change["ci_high"], f"change of {measure['name']}"),
            axis=(-widest, widest),
            centre=0.0,
        )
    return found


def source_bias(bias: dict[str, Any], texts: dict[str, Any]) -> dict[str, Any]:
    """Relative Δ of every model's rewrites by each retriever, drawn on one scale, and how the rewrites read.

    Returns:
        rows: retriever, model, value, ci_low and ci_high in percent, change, closed and p_holm of all but the base,
        picture, and texts: model -> figures; empty where none was measured.
    """
    rows = []
    for retriever, entry in bias.items():
        for model, figure in entry["relative_delta@10"].items():
            rows.append(
                {
                    "retriever": retriever,
                    "model": model,
                    **figure,
                    "change": entry["change"].get(model),
                    "closed": (entry["gap_closed"].get(model) or {}).get("value"),
                }
            )
    known = [abs(row[key]) for row in rows for key in ("value", "ci_low", "ci_high") if row[key] is not None]
    widest = min(200.0, 1.1 * max(known, default=10.0)) or 10.0
    for row in rows:
        ends = (row["value"], row["ci_low"], row["ci_high"])
        name = f"Relative Δ of {row['model']} by {row['retriever']}"
        drawn = all(end is not None for end in ends)
        row["picture"] = interval(*ends, name, axis=(-widest, widest), centre=0.0) if drawn else None
    return {"rows": rows, "texts": texts} if rows else {}


def curves(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training curves, one picture each, the rounds behind one another; pictures without a value are left out."""
    records, breaks = training_records(metrics)
    pictures = []
    for title, means, keys in CURVES:
        lines = []
        for kind, key, name, colour in keys:
            points = [(r["at"], _number(r[key])) for r in records if r["kind"] == kind and key in r]
            if points:
                lines.append(Line(name, [x for x, _ in points], [y for _, y in points], colour))
        picture = line_chart(lines, title, breaks=breaks)
        if picture is not None:
            legend = [(line.name, line.colour) for line in lines] if len(lines) > 1 else []
            pictures.append({"title": title, "means": means, "legend": legend, "picture": picture})
    return pictures


def training_records(metrics: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[float]]:
    """The records of training with `at`, their step counted on over the rounds; and where a new round begins.

    A resumed training writes the steps behind its checkpoint again: the later of two records holds.
    """
    latest = {(m.get("round", 1), m["step"], m["kind"]): m for m in metrics if "step" in m and "kind" in m}
    records, breaks = [], []
    offset = highest = 0.0
    current = None
    for (round_number, step, _), record in sorted(latest.items(), key=lambda item: item[0]):
        if current is not None and round_number != current:
            offset = highest
            breaks.append(offset)
        current = round_number
        highest = max(highest, offset + step)
        records.append({**record, "at": offset + step})
    return records, breaks


def _number(value: Any) -> float:
    """A metric; those that are not finite are stored as their names."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def histograms(stages: Iterable[tuple[str, StageDir]]) -> list[dict[str, Any]]:
    """Scores of all answers, scores and lengths of chosen and rejected; of the last round that has them.

    Args:
        stages: (verb, stage) in the order of the run, those that have rows.
    """
    last = dict(stages)
    pictures = []
    if "rate" in last:
        scores = [s for row in last["rate"].rows() for s in row["scores"] if s is not None]
        pictures.append(_histogram("Scores of all answers", "share of answers, %", [("all", scores, 3)]))
    # Of preferences that were there already, one of the two answers may be missing.
    pairs = last.get("pair") or last.get("preferences")
    if pairs is not None:
        scores_of: dict[str, list[float]] = {"chosen": [], "rejected": []}
        lengths_of: dict[str, list[float]] = {"chosen": [], "rejected": []}
        for row in pairs.rows():
            if "completion" in row:  # judgments, which have no second side
                continue
            for side in ("chosen", "rejected"):
                if row[f"score_{side}"] is not None:
                    scores_of[side].append(row[f"score_{side}"])
                if row[side] is not None:
                    lengths_of[side].append(sum(len(m["content"]) for m in row[side]))
        for title, of in (("Scores of the pairs", scores_of), ("Lengths of the pairs, characters", lengths_of)):
            groups = [("chosen", of["chosen"], 0), ("rejected", of["rejected"], 1)]
            pictures.append(_histogram(title, "share of pairs, %", groups))
    return [p for p in pictures if p["picture"] is not None]


def _histogram(title: str, means: str, groups: list[tuple[str, list[float], int]]) -> dict[str, Any]:
    notes = [(f"{n}, mean {sum(v) / len(v):.4g}", colour) for n, v, colour in groups if v]
    return {"title": title, "means": means, "legend": notes, "picture": histogram(groups, title)}
