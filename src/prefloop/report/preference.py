"""The page of `prefloop evaluate preference`: accuracy, calibration, divergence, diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.report.charts import Line, histogram, line_chart
from prefloop.report.render import render


def render_preference(found: Mapping[str, Any], margins: Sequence[float]) -> str:
    """The page as HTML.

    Args:
        found: as `preferring.measure` gives it.
        margins: implicit reward margins of the held-out pairs, for their histogram.
    """
    pairs = found.get("pairs")
    bins = [] if pairs is None else pairs["calibration"]["bins"]
    reliability = None
    if bins:
        sure = [100 * b["confidence"] for b in bins]
        curves = [
            Line("perfectly calibrated", [50, 100], [50, 100], 3),
            Line("this model", sure, [100 * b["accuracy"] for b in bins], 0),
            Line("95 % interval", sure, [100 * b["ci_low"] for b in bins], 1),
            Line("95 % interval", sure, [100 * b["ci_high"] for b in bins], 1),
        ]
        reliability = line_chart(curves, "accuracy by confidence, percent")
    data = {
        "models": found["models"],
        "pairs": pairs,
        "reliability": reliability,
        "margins": histogram([("held-out pairs", margins, 0)], "implicit reward margins"),
        "divergence": found.get("divergence"),
        "answers": found.get("answers"),
        "left_out": found.get("left_out", {}).get("pairs", {}),
        "not_measured": found["not_measured"],
    }
    return render(data, "preference.html.j2")
